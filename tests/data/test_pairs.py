"""Images with masks: from folders, tars, and drawn by the package itself."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcvit.data import CorruptImages, decode, open_source
from dcvit.data.masks import count_classes, mask_batches, with_masks
from dcvit.data.pairs import PairSource
from dcvit.data.shapes import CLASSES, ShapesSource
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing

WHOLE = Preprocessing(
    input_size=(3, 20, 28), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0, crop_mode="squash"
)


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    """Four images of 40×56 pixels; the mask of image i is i everywhere, but for one row of 255."""
    root = tmp_path / "pairs"
    for index in range(4):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.full((40, 56, 3), 60 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.{'jpg' if index else 'png'}")
        mask = np.full((40, 56), index, dtype=np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


@pytest.mark.parametrize("above", ["", "set/", "./"])
def test_a_tar_is_what_its_folder_is(pair_folder: Path, tmp_path: Path, above: str) -> None:
    path = tmp_path / "pairs.tar"
    with tarfile.open(path, "w") as tar:
        for folder in ("images", "masks"):
            tar.add(pair_folder / folder, f"{above}{folder}")
    folder, archive = with_masks(open_source(pair_folder, "test")), with_masks(open_source(path, "test"))
    assert len(folder) == len(archive) == 4
    for index in range(4):
        assert folder.read(index) == archive.read(index)
        assert np.array_equal(folder.mask(index), archive.mask(index))
        assert folder.filename(index) == archive.filename(index)


def test_batches_hold_each_image_with_its_own_mask(pair_folder: Path) -> None:
    source = with_masks(open_source(pair_folder, "test"))
    assert count_classes(source) == 4
    (pair_folder / "images" / "2.jpg").write_bytes(b"not an image")
    corrupt = CorruptImages()
    found = list(mask_batches(source, WHOLE, 4, 3, corrupt))
    assert [len(batch.images) for batch in found] == [2, 1]
    assert corrupt.names == ["images/2.jpg"]
    images, masks = (torch.cat([getattr(batch, name) for batch in found]) for name in ("images", "masks"))
    assert images.shape == (3, 3, 20, 28)
    for image, mask, label in zip(images, masks, (0, 1, 3), strict=True):
        assert image.mean().item() == pytest.approx((60 * label / 255 - 0.5) / 0.5, abs=0.02)
        assert set(mask.unique().tolist()) <= {label, 255}
        assert (mask == label).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "masks" / "1.png").unlink(), r"images/1\.jpg of .* has no mask masks/1\.png"),
        (lambda root: [path.unlink() for path in (root / "images").iterdir()], "there are no images in .*/images"),
        (lambda root: Image.new("RGB", (56, 40)).save(root / "masks" / "1.png"), "is a RGB picture"),
        (lambda root: Image.new("L", (40, 56)).save(root / "masks" / "1.png"), "56×40 pixels, and its mask 40×56"),
        (
            lambda root: Image.new("L", (56, 40), 7).save(root / "masks" / "1.png"),
            "holds class 7, and the model knows 4",
        ),
        (lambda root: (root / "masks" / "1.png").write_bytes(b"no"), r"the mask masks/1\.png of .* cannot be read"),
    ],
)
def test_what_is_wrong_with_masks_is_one_sentence(
    pair_folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(pair_folder)
    with pytest.raises(InputError, match=message):
        list(mask_batches(with_masks(open_source(pair_folder, "test")), WHOLE, 4, 8, CorruptImages()))


def test_class_folders_are_no_pairs(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder(classes=2)
    with tarfile.open(tmp_path / "classes.tar", "w") as tar:
        tar.add(root, "images")
    assert not PairSource.is_one(root)
    assert not PairSource.is_one(tmp_path / "classes.tar")
    with pytest.raises(InputError, match="has no masks; segmentation needs"):
        with_masks(open_source(root, "test"))


def test_shapes_are_the_same_everywhere_and_the_splits_differ() -> None:
    train, again, test = ShapesSource("train"), ShapesSource("train"), ShapesSource("test")
    assert (len(train), len(test)) == (2000, 500)
    for index in (7, 3):  # in any order
        assert train.read(index) == again.read(index)
        assert np.array_equal(train.mask(index), again.mask(index))
    assert train.read(3)[0] != test.read(3)[0] != train.read(4)[0]
    seen = np.bincount(np.concatenate([train.mask(index).ravel() for index in range(40)]), minlength=len(CLASSES))
    assert (seen > 0.01 * seen.sum()).all()
    image = np.asarray(decode(train.read(3)[0], 3)).astype(float)
    edges = np.abs(np.diff(train.mask(3).astype(int), axis=1)) > 0
    steps = np.abs(np.diff(image, axis=1)).max(-1)
    assert steps[edges].mean() > 2 * steps[~edges].mean()  # the mask's outlines are the image's
