"""Weights and checks that the tests of every family share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing


@pytest.fixture
def like_trained() -> Callable[[nn.Module], nn.Module]:
    """Gives a model random weights and statistics like trained ones.

    timm starts biases at 0, norms at 1 and the last batch norm of a residual block at 0, which would hide mistakes.
    """

    @torch.no_grad()
    def change(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    return change


@pytest.fixture
def through_folder(tmp_path: Path) -> Callable[[nn.Module, CompressionPlan], nn.Module]:
    """Writes a model as a model folder, and loads it from there."""

    def reload(model: nn.Module, plan: CompressionPlan) -> nn.Module:
        preprocessing = Preprocessing(
            input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
        )
        manifest = Manifest(model=plan.model, method="none", plan_digest="", seed=0, preprocessing=preprocessing)
        return ModelFolder.create(tmp_path / "folder", model, plan, manifest).load()

    return reload
