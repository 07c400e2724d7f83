"""Small real models and images that every test may use."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from dcvit.data import preprocessing_of
from dcvit.families import family_of
from dcvit.findings import EVALUATIONS, VERIFY
from dcvit.folder import ModelFolder
from dcvit.manifest import Manifest
from dcvit.model import build
from dcvit.plan import CompressionPlan
from dcvit.subject import original_of

if TYPE_CHECKING:
    from dcvit.exporting.int8 import Calibration

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


MakeFolder = Callable[..., ModelFolder]


@pytest.fixture(scope="session")
def make_folder() -> MakeFolder:
    """Writes a model folder of a plan; its weights are random, and like trained ones in that none is 0 or 1."""

    def make(path: Path, plan: CompressionPlan) -> ModelFolder:
        torch.manual_seed(0)
        model = build(plan)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        original = original_of(plan)
        preprocessing = preprocessing_of(original, family_of(original).architecture(original).input_size)
        manifest = Manifest(
            model=plan.model, method="none", plan_digest=plan.digest, seed=0, preprocessing=preprocessing
        )
        return ModelFolder.create(path, model, plan, manifest)

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> Path:
    """A folder with ONNX files of batch 4 in fp32 and fp16; tests that change it copy it first."""
    from dcvit.exporting import export

    merges = ({"after": 1, "axis": "horizontal"}, {"after": 2, "axis": "vertical"})
    folder = make_folder(
        tmp_path_factory.mktemp("exported") / "model", tiny_plan.replace(merges=merges, trims_last_block=True)
    )
    export(folder, 4, "fp32")
    export(folder, 4, "fp16")
    return folder.path


@pytest.fixture
def exported_copy(exported: Path, tmp_path: Path) -> ModelFolder:
    """The same, to be changed; without what other tests found out about it."""
    folder = ModelFolder(shutil.copytree(exported, tmp_path / "model"))
    folder.remove([EVALUATIONS, VERIFY])
    return folder


@pytest.fixture(scope="session")
def random_pixels() -> "Calibration":
    """Images to calibrate int8 on."""
    from dcvit.exporting.int8 import Calibration

    pixels = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return Calibration(pixels / 127.5 - 1, {"source": "random pixels", "images": 12})


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, exported: Path, random_pixels: "Calibration") -> Path:
    """The exported folder with int8 and bf16 files of batch 4 too, both of pixels; tests that change it copy it."""
    from dcvit.exporting import export

    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("quantized") / "model"))
    export(folder, 4, "int8", with_preprocessing=True, data=random_pixels)
    export(folder, 4, "bf16", with_preprocessing=True)
    return folder
