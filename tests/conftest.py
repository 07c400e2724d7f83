"""Small real models and images that every test may use."""

import gc
import os
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
from dcvit.folder.findings import EVALUATIONS, VERIFY
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build
from dcvit.plan import CompressionPlan, HeadPlan
from dcvit.preprocessing import Preprocessing
from dcvit.subject import original_of
from dcvit.types import TimmModule

from .made_up import MadeUp

if TYPE_CHECKING:
    from dcvit.exporting.quantization import Calibration

# The models are so small that threads only wait for each other; several test processes use the cores better.
torch.set_num_threads(1)


def pytest_configure() -> None:
    """A core for each worker and all that it starts: runtimes whose threads wait for each other's turn cost a tenth."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """What is imported by now is never looked through again: a full collection takes half a second otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    """Latencies that are known, and tables of them."""
    return MadeUp()


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
    from dcvit.exporting.quantization import Calibration

    pixels = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return Calibration(pixels / 127.5 - 1, {"source": "random pixels", "images": 12})


@pytest.fixture
def blind(random_pixels: "Calibration", monkeypatch: pytest.MonkeyPatch) -> "Calibration":
    """int8 and fp8 without a look at what is sensitive."""
    monkeypatch.setattr("dcvit.exporting.quantization.AGREEMENT", -1)
    return random_pixels


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, exported: Path, random_pixels: "Calibration") -> Path:
    """The exported folder with int8 and bf16 files of batch 4 too, both of pixels; tests that change it copy it."""
    from dcvit.exporting import export

    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("quantized") / "model"))
    export(folder, 4, "int8", with_preprocessing=True, data=random_pixels)
    export(folder, 4, "bf16", with_preprocessing=True)
    return folder


ODD_MERGES = ({"after": 1, "axis": "horizontal"}, {"after": 2, "axis": "vertical"}, {"after": 2, "axis": "horizontal"})


@pytest.fixture(scope="session")
def odd_plan() -> CompressionPlan:
    """Four blocks on a 5×7 grid of patches of 8 pixels, merged once after one block and twice after two."""
    kwargs = {"img_size": [40, 56], "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    return CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=kwargs, merges=ODD_MERGES)


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
    plan = odd_plan.replace(head=HeadPlan(kind="multi-level", num_classes=4, width=16, unmerge="residual"))
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
