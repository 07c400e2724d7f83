"""Every verb on images in memory gives what it gives on the same images in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import dcvit
from dcvit.exporting import calibration_from
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.plan import CompressionPlan
from dcvit.training.recipe import TrainingRecipe

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = [index % 10 for index in range(40)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The same as files, in the same order."""
    for index, label in sorted(enumerate(LABELS), key=lambda pair: (pair[1], pair[0])):
        place = tmp_path / "images" / f"class {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(place / f"{index:02}.png")
    return tmp_path / "images"


@pytest.fixture
def in_order() -> tuple[Any, list[int]]:
    order = sorted(range(40), key=lambda index: (LABELS[index], index))
    return PIXELS[order], [LABELS[index] for index in order]


def test_compress_evaluate_and_verify(
    tmp_path: Path, images: Path, in_order: tuple[Any, list[int]], tiny_plan: CompressionPlan
) -> None:
    kwargs = {"model_kwargs": tiny_plan.model_kwargs, "weights": "random", "samples": 24, "macs_reduction": 0.3}
    pixels, labels = in_order
    made = []
    for name, data in (("file", images), ("memory", pixels)):
        asked: dict[str, Any] = {"settings": SearchSettings(steps=1), **kwargs}
        dcvit.compress(tiny_plan.model, data, out=tmp_path / name, **asked)
        made.append(ModelFolder(tmp_path / name).manifest)
    files, memory = made
    assert memory.files["model.safetensors"] == files.files["model.safetensors"]  # to the bit
    assert memory.data is not None
    assert files.data is not None
    assert memory.data["sha256"] == files.data["sha256"]
    assert memory.data["source"] == "ndarray [40, 32, 32, 3] in memory"
    assert (memory.classes, files.classes) == (None, tuple(f"class {label}" for label in range(10)))

    on_files = dcvit.evaluate(tmp_path / "file", images)
    in_memory = dcvit.evaluate(tmp_path / "file", (pixels, labels))
    assert (in_memory.top1, in_memory.top5, in_memory.images) == (on_files.top1, on_files.top5, 40)
    calibrated = [calibration_from(files, data) for data in (images, list(pixels))]
    assert (calibrated[0].images == calibrated[1].images).all()

    dcvit.export(tmp_path / "file", 2)
    checked = dcvit.verify(tmp_path / "file", pixels)
    assert checked.passed
    assert checked.data == "ndarray [40, 32, 32, 3] in memory"


def test_a_training_on_labels(tmp_path: Path, tiny_plan: CompressionPlan, in_order: tuple[Any, list[int]]) -> None:
    """Nine of ten classes: numbers alone do not say that there are no more."""
    pixels, labels = in_order
    data = TensorDataset(torch.from_numpy(pixels[:36]).permute(0, 3, 1, 2), torch.tensor(labels[:36]))
    asked: dict[str, Any] = {"model_kwargs": tiny_plan.model_kwargs, "weights": "random", "macs_reduction": 0.2}
    settings = CaitSettings(widths="cdcp", training=TrainingRecipe(epochs=1, batch_size=12))
    result = dcvit.compress(tiny_plan.model, data, out=tmp_path / "cait", settings=settings, **asked)
    assert result.metrics["labelled"]
    assert result.metrics["images"] == 36


def test_another_order_of_names_in_memory(
    tmp_path: Path, tiny_plan: CompressionPlan, make_folder: Callable[..., ModelFolder]
) -> None:
    """A folder that was made with timm's order, and torchvision's dataset of the same images."""
    manifest = make_folder(tmp_path / "model", tiny_plan).manifest
    manifest.classes = tuple(str(number) for number in range(1, 11))
    ModelFolder.create(tmp_path / "known", ModelFolder(tmp_path / "model").load(), tiny_plan, manifest)
    words = [str(number) for number in range(1, 11) for _ in range(2)]

    as_text = sorted({*words})
    items = [(PIXELS[index], as_text.index(word)) for index, word in enumerate(words)]

    class Pairs:
        """What torchvision's ImageFolder is: pairs, and names that are sorted as text."""

        classes = as_text

        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    with pytest.raises(dcvit.InputError, match="class 1 is '10' in Pairs in memory, and '2' in .*give --class-map"):
        dcvit.evaluate(tmp_path / "known", Pairs())
    by_name = dcvit.evaluate(tmp_path / "known", Pairs(), class_map=manifest.classes)
    assert by_name.top1 == dcvit.evaluate(tmp_path / "known", (PIXELS[:20], words)).top1
