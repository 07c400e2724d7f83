"""A model that int8 ruins."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan


@pytest.fixture
def fragile(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, tiny_plan: CompressionPlan
) -> ModelFolder:
    """Two blocks; beside one hidden node of the second, the range of all others is nothing."""
    plan = tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"depth": 2})
    folder = make_folder(tmp_path / "sound", plan)
    model = folder.load()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.bias[3] = 3e4
        model.blocks[1].mlp.fc2.weight[:, 3] = 1e-6
        # What the others say decides the class.
        model.blocks[1].mlp.fc2.weight[:, 4:] *= 20
    return ModelFolder.create(tmp_path / "fragile", model, plan, folder.manifest)
