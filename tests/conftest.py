"""Small real models and images that every test may use."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcvit.plan import CompressionPlan

# The models are so small that threads only wait for each other; several test processes use the cores better.
torch.set_num_threads(1)

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_plan() -> CompressionPlan:
    """A ViT of 4 blocks on a 4×4 grid with a class token: small, but with every part of the real ones."""
    return CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=TINY)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of class folders with random images."""

    def make(classes: int = 2, each: int = 4, size: int = 40) -> Path:
        generator = np.random.default_rng(0)
        root = tmp_path / "images"
        for label in range(classes):
            (root / f"class{label}").mkdir(parents=True, exist_ok=True)
            for index in range(each):
                pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"class{label}" / f"{index}.png")
        return root

    return make
