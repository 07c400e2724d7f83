"""Models with merges on an odd, non-square grid, and images with masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcvit.folder import ModelFolder
from dcvit.manifest import Manifest, Preprocessing
from dcvit.model import build
from dcvit.plan import CompressionPlan, HeadPlan
from dcvit.types import TimmModule

MERGES = ({"after": 1, "axis": "horizontal"}, {"after": 2, "axis": "vertical"}, {"after": 2, "axis": "horizontal"})


@pytest.fixture(scope="session")
def odd_plan() -> CompressionPlan:
    """Four blocks on a 5×7 grid of patches of 8 pixels, merged once after one block and twice after two."""
    kwargs = {"img_size": [40, 56], "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    return CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=kwargs, merges=MERGES)


@pytest.fixture(scope="session")
def random_model() -> Callable[[CompressionPlan], TimmModule]:
    """Builds a plan with weights none of which is 0 or 1, as timm's first ones are."""

    @torch.no_grad()
    def make(plan: CompressionPlan) -> TimmModule:
        torch.manual_seed(1)
        model = build(plan)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def segmentation_folder(
    tmp_path: Path, odd_plan: CompressionPlan, random_model: Callable[[CompressionPlan], TimmModule]
) -> ModelFolder:
    """A multi-level model of four classes."""
    plan = odd_plan.replace(head=HeadPlan(kind="multi-level", num_classes=4, width=16))
    preprocessing = Preprocessing(
        input_size=(3, 40, 56), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0,
        crop_mode="squash",
    )  # fmt: skip
    manifest = Manifest(model=plan.model, method="none", plan_digest="", seed=0, preprocessing=preprocessing)
    return ModelFolder.create(tmp_path / "segmentation", random_model(plan), plan, manifest)


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    """Six images of two sizes, as JPEG and PNG, one in a folder of its own; masks of classes 0 to 3 and 255."""
    generator = np.random.default_rng(0)
    root = tmp_path / "pairs"
    for index in range(6):
        size = (40, 56) if index % 2 else (50, 60)
        name = "more/5" if index == 5 else str(index)
        for folder in ("images", "masks"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        pixels.save(root / "images" / f"{name}.{'jpg' if index < 2 else 'png'}")
        mask = generator.choice(np.array([0, 1, 2, 3, 255], dtype=np.uint8), size)
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


@pytest.fixture
def telling_pairs(tmp_path: Path) -> Path:
    """Eight images in squares of 32 pixels whose red is 60 × their class, so that a mask can be read off its image."""
    generator = np.random.default_rng(0)
    for index in range(8):
        mask = generator.integers(0, 5, (2, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
        pixels = np.zeros((64, 96, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1] = 60 * mask, index
        for folder, picture in (("images", pixels), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / folder / f"{index}.png")
    return tmp_path
