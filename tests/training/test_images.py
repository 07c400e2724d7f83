from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcvit.data import CorruptImages, batches, open_source
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training import images as images_module
from dcvit.training.images import TrainingImages
from dcvit.training.mixing import Mixing
from dcvit.training.order import Order
from dcvit.training.recipe import Augmentation, TrainingRecipe

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic", crop_pct=1.0
)
MakeFolder = Callable[..., Path]


def taken(data: TrainingImages, start: int = 0, steps: int = 4) -> list[tuple[Tensor, Tensor | None]]:
    found = list(data.batches(Order(data.num_images, 4, seed=3).draws(start, steps)))
    return [(images, labels) for _, images, labels in found]


@pytest.fixture
def root(image_folder: MakeFolder) -> Path:
    return image_folder(classes=2, each=4)


@pytest.mark.parametrize("augmentation", ["crop", "deit", "none"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_view_depends_on_seed_epoch_and_image_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, augmentation: Augmentation, cached: bool
) -> None:
    if not cached:
        monkeypatch.setattr(images_module, "MAX_CACHE_BYTES", 0)

    def opened(seed: int = 0, workers: int = 0) -> TrainingImages:
        source = open_source(root, "train")
        return TrainingImages(source, PREPROCESSING, augmentation, labelled=True, seed=seed, workers=workers)

    whole = taken(opened())
    workers = 0 if cached else 2
    for (images, labels), (later, later_labels) in zip(whole[2:], taken(opened(workers=workers), start=2), strict=True):
        assert torch.equal(images, later)
        assert torch.equal(labels, later_labels)
    first, second = (torch.cat([images for images, _ in whole[part : part + 2]]) for part in (0, 2))  # two epochs
    order = torch.cat([draw.indices for draw in Order(8, 4, seed=3).draws(0, 4)])
    by_image = [epoch[order[at : at + 8].argsort()] for epoch, at in ((first, 0), (second, 8))]
    assert torch.equal(*by_image) == (augmentation == "none")
    other = torch.cat([images for images, _ in taken(opened(seed=1))])
    assert torch.equal(other, torch.cat([first, second])) == (augmentation == "none")


def test_without_augmentation_images_are_as_for_evaluation(root: Path) -> None:
    data = TrainingImages(open_source(root, "train"), PREPROCESSING, "none", labelled=True)
    (_, images, labels) = next(data.batches(Order(8, 8, seed=0).draws(0, 1)))
    order = next(Order(8, 8, seed=0).draws(0, 1)).indices
    (expected,) = batches(open_source(root, "test"), PREPROCESSING, 8, CorruptImages())
    torch.testing.assert_close(images, expected.images[order], rtol=0, atol=1e-5)  # fp32: 255 levels, divided once
    assert labels is not None
    assert torch.equal(labels, expected.labels[order])


def test_crops_are_shifts_and_flips_of_the_image(root: Path) -> None:
    plain, shifted = (
        TrainingImages(open_source(root, "train"), PREPROCESSING.model_copy(update={"mean": (0.0,) * 3}), kind,
                       labelled=False)
        for kind in ("none", "crop")
    )  # fmt: skip
    before = torch.cat([images for images, _ in taken(plain, steps=2)])
    after = torch.cat([images for images, _ in taken(shifted, steps=2)])
    padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
    for number in range(len(after)):
        views = [
            padded[number, :, top : top + 32, left : left + 32].flip(2) if flip else
            padded[number, :, top : top + 32, left : left + 32]
            for top in range(9) for left in range(9) for flip in (False, True)
        ]  # fmt: skip
        assert any(torch.equal(after[number], view) for view in views)


@pytest.mark.parametrize("cached", [True, False])
def test_corrupt_images_do_not_stop_a_training(root: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    if not cached:
        monkeypatch.setattr(images_module, "MAX_CACHE_BYTES", 0)
    (root / "class0" / "1.png").write_bytes(b"not a picture")
    data = TrainingImages(open_source(root, "train"), PREPROCESSING, "crop", labelled=True, workers=0)
    assert data.num_images == (7 if cached else 8)
    assert len(taken(data)) == 4
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 8 images"):
        taken(TrainingImages(open_source(root, "train"), PREPROCESSING, "crop", labelled=True, workers=0))


def test_samples_are_drawn_by_the_seed(root: Path) -> None:
    def opened(seed: int, samples: int = 4) -> TrainingImages:
        source = open_source(root, "train")
        return TrainingImages(source, PREPROCESSING, "crop", labelled=False, samples=samples, seed=seed)

    assert opened(0).fingerprint == opened(0).fingerprint
    assert opened(0).fingerprint["sha256"] != opened(1).fingerprint["sha256"]
    with pytest.raises(InputError, match="--samples 9: .* has 8 images"):
        opened(0, samples=9)


def test_the_recipe_goes_by_the_input_size() -> None:
    small = TrainingRecipe().resolved(PREPROCESSING)
    large = TrainingRecipe(mixup=0.1).resolved(PREPROCESSING.model_copy(update={"input_size": (3, 224, 224)}))
    assert (small.augmentation, small.mixup, small.cutmix) == ("crop", 0.0, 0.0)
    assert (large.augmentation, large.mixup, large.cutmix) == ("deit", 0.1, 1.0)
    assert TrainingRecipe(epochs=0.01, batch_size=100).steps(1000) == 1
    assert TrainingRecipe(epochs=2.5, batch_size=100).steps(1000) == 25


def test_mixing_is_the_same_for_the_parts_of_a_step() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    mixing = Mixing(0.5, 1.0, 0.1, 8, seed=0)
    part = torch.tensor([1, 3, 4, 6])  # two images and their mirror images
    for step in range(4):
        mixed, soft = mixing(images.clone(), labels, step)
        assert soft is not None
        again, soft_part = mixing(images[part].clone(), labels[part], step)
        assert torch.equal(mixed[part], again)
        assert torch.equal(soft[part], soft_part)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
    assert mixing(images.clone(), None, 0)[1] is None
