"""Augmentations hold for every image, or are that image's fault alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform

from dcvit.data import open_source, seeded
from dcvit.data.masks import with_masks
from dcvit.data.transforms import training_transform, with_valid_bits
from dcvit.preprocessing import Preprocessing
from dcvit.training.augmentation import deit_transform
from dcvit.training.images import TrainingImages
from dcvit.training.order import Order
from dcvit.training.recipe import Augmentation
from dcvit.training.segmentation import TrainingPairs

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)
MakeFolder = Callable[..., Path]


def posterize_of(transform: Any) -> Any:
    steps = [step for step in transform.transforms if hasattr(step, "ops")]
    return next(operation for operation in steps[0].ops if operation.name.startswith("Posterize"))


@pytest.mark.parametrize("make", [deit_transform, training_transform])
def test_one_bit_of_a_colour_is_kept_at_any_magnitude(make: Callable[[Preprocessing], Any]) -> None:
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    operation = posterize_of(make(PREPROCESSING))
    operation.prob, operation.magnitude_std = 1.0, 0.0
    for magnitude in range(11):
        operation.magnitude = magnitude
        (bits,) = operation.level_fn(magnitude, operation.hparams)
        assert bits == max(1, *auto_augment.LEVEL_TO_ARG[operation.name](magnitude, operation.hparams))
        assert len(np.unique(np.asarray(operation(picture)))) == 2**bits


def test_timm_itself_is_left_as_it_is() -> None:
    deit_transform(PREPROCESSING)
    fresh = create_transform(input_size=(3, 32, 32), is_training=True, auto_augment="rand-m9-mstd0.5-inc1")
    assert posterize_of(fresh).level_fn is auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"]


def test_valid_bits_change_no_other_view() -> None:
    def views(wrap: Callable[[Any], Any]) -> list[torch.Tensor]:
        transform = wrap(create_transform(input_size=(3, 32, 32), is_training=True, auto_augment="rand-m9-inc1"))
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
        with seeded(0):
            return [transform(picture) for _ in range(64)]

    assert all(map(torch.equal, views(with_valid_bits), views(lambda transform: transform)))


def test_augmenting_as_deit_does_never_ends_a_run(image_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(image_folder(classes=2, each=8), "train")
    data = TrainingImages(source, PREPROCESSING, "deit", labelled=True, workers=0)
    assert sum(len(images) for _, images, _ in data.batches(Order(16, 16, seed=0).draws(0, 30))) == 480
    assert not caplog.records


def failing(of: int, made: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A transform that refuses images whose upper left red is the given one."""

    def transform(image: Image.Image) -> Any:
        if np.asarray(image)[0, 0, 0] == of:
            raise ValueError("no such bits")
        return made(image)

    return transform


@pytest.mark.parametrize("augmentation", ["deit", "crop"])
def test_an_image_that_cannot_be_augmented_is_named_and_replaced(
    image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    augmentation: Augmentation,
) -> None:  # fmt: skip
    root = image_folder(classes=1, each=4)
    reds = [int(np.asarray(Image.open(root / "class0" / f"{number}.png"))[0, 0, 0]) for number in range(4)]
    assert len(set(reds)) == 4
    name = "deit_transform" if augmentation == "deit" else "pixel_transform"
    made = getattr(__import__("dcvit.training.augmentation", fromlist=[name]), name)(PREPROCESSING)
    monkeypatch.setattr(f"dcvit.training.images.{name}", lambda _: failing(reds[2], made))
    data = TrainingImages(open_source(root, "train"), PREPROCESSING, augmentation, labelled=False, workers=0)
    assert data.num_images == (4 if augmentation == "deit" else 3)
    found = [images for _, images, _ in data.batches(Order(data.num_images, 2, seed=0).draws(0, 4))]
    assert [len(images) for images in found] == [2] * 4
    assert [record.message for record in caplog.records] == [
        "skipped class0/2.png: it cannot be prepared: ValueError: no such bits"
    ]


@pytest.mark.parametrize("augmentation", ["deit", "crop"])
def test_a_pair_that_cannot_be_augmented_is_named_and_replaced(
    telling_pairs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, augmentation: Augmentation
) -> None:
    preprocessing = PREPROCESSING.model_copy(update={"input_size": (3, 64, 96), "crop_mode": "squash"})
    pairs = TrainingPairs(with_masks(open_source(telling_pairs, "train")), preprocessing, 5, augmentation, seed=0)
    made, bad = pairs._transform, 3

    def transform(image: Image.Image) -> Any:
        if np.asarray(image)[0, 0, 1] == bad:  # their green is their number
            raise IndexError
        return made(image)

    monkeypatch.setattr(pairs, "_transform", transform)
    seen = torch.cat([images for _, images, _ in pairs.batches(Order(8, 8, seed=0).draws(0, 1))])
    assert len(seen) == 8
    assert [record.message for record in caplog.records] == [
        "skipped images/3.png: it cannot be prepared: IndexError: IndexError"
    ]
