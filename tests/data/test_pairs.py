"""Images with masks: from folders, tars, and drawn by the package itself."""

import hashlib
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
from dcvit.data.shapes import SETS, ShapesSource
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.segmentation import TrainingPairs

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


@pytest.mark.parametrize("name", SETS)
def test_shapes_are_the_same_everywhere_and_the_splits_differ(name: str) -> None:
    train, again, test = ShapesSource("train", name), ShapesSource("train", name), open_source(name, "test")
    assert isinstance(test, ShapesSource)
    assert (train.num_classes, train.name) == (len(SETS[name].outlines) + 1, name)
    assert (len(train), len(test)) == (2000, 500)
    for index in (7, 3):  # in any order
        assert train.read(index) == again.read(index)
        assert np.array_equal(train.mask(index), again.mask(index))
    assert train.read(3)[0] != test.read(3)[0] != train.read(4)[0]
    drawn = np.concatenate([train.mask(index).ravel() for index in range(40)])
    seen = np.bincount(drawn, minlength=train.num_classes)
    assert len(seen) == train.num_classes
    assert (seen > 0.003 * seen.sum()).all()
    image = np.asarray(decode(train.read(3)[0], 3)).astype(float)
    edges = np.abs(np.diff(train.mask(3).astype(int), axis=1)) > 0
    steps = np.abs(np.diff(image, axis=1)).max(-1)
    assert steps[edges].mean() > 2 * steps[~edges].mean()  # the mask's outlines are the image's


def test_the_first_set_is_what_it_was_before_there_was_another() -> None:
    """Results on it are committed."""
    assert hashlib.sha256(ShapesSource("test").mask(0).tobytes()).hexdigest()[:16] == "ede28200235d99d4"
    assert not np.array_equal(ShapesSource("test").mask(0), ShapesSource("test", "thin-shapes").mask(0))


def pairs_of(root: Path, values: list[int], count: int = 4) -> Path:
    """Images whose masks hold the values, each in half the rows or fewer."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    mask = np.array(values, dtype=np.uint8).repeat(8).reshape(-1, 1).repeat(8, 1)
    for index in range(count):
        Image.new("RGB", mask.shape[::-1]).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


def test_masks_of_0_and_255_are_refused_until_their_values_are_named(tmp_path: Path) -> None:
    root = pairs_of(tmp_path, [0, 255])
    with pytest.raises(InputError, match="hold 0 and 255 alone.*--mask-values 0,255; if not, --ignore-index 255"):
        with_masks(open_source(root, "test"))
    named = with_masks(open_source(root, "test", mask_values=(0, 255)))
    assert count_classes(named) == 2
    assert named.mask(0)[[0, 8], 0].tolist() == [0, 1]
    meant = with_masks(open_source(root, "test", ignore_index=255))
    assert meant.mask(0)[[0, 8], 0].tolist() == [0, 255]


@pytest.mark.parametrize("values", [[0, 128], [0, 127, 254], [0, 85, 170, 255], [0, 10, 20, 30], [100, 200]])
def test_values_that_are_no_indices_are_refused(tmp_path: Path, values: list[int]) -> None:
    with pytest.raises(InputError) as caught:
        count_classes(with_masks(open_source(pairs_of(tmp_path, values), "train")))
    named = [value for value in values if value != 255]
    assert f"--mask-values {','.join(map(str, named))}" in str(caught.value)
    source = with_masks(open_source(tmp_path, "train", mask_values=tuple(values)))
    assert count_classes(source) == len(values)
    assert source.mask(1)[::8, 0].tolist() == list(range(len(values)))


@pytest.mark.parametrize(
    ("values", "classes"), [([0, 1], 2), ([0, 1, 255], 2), ([0, 3, 5], 6), ([0, 15, 4, 7, 255], 16), ([0], 2)]
)
def test_indices_are_classes(tmp_path: Path, values: list[int], classes: int) -> None:
    assert count_classes(with_masks(open_source(pairs_of(tmp_path, values), "train"))) == classes


def test_what_is_ignored_can_be_named(tmp_path: Path) -> None:
    root = pairs_of(tmp_path, [0, 1, 2])
    source = with_masks(open_source(root, "test", ignore_index=0))
    assert source.mask(0)[::8, 0].tolist() == [255, 1, 2]
    source = with_masks(open_source(root, "test", mask_values=(1, 2), ignore_index=0))
    assert source.mask(0)[::8, 0].tolist() == [255, 0, 1]
    with pytest.raises(InputError, match="holds the value 0, which is none of --mask-values"):
        with_masks(open_source(root, "test", mask_values=(1, 2)))


def test_masks_of_which_nothing_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pixel of the masks"):
        with_masks(open_source(pairs_of(tmp_path / "all", [255]), "test"))
    with pytest.raises(InputError, match="no pixel of the masks"):
        with_masks(open_source(pairs_of(tmp_path / "named", [7]), "test", ignore_index=7))


@pytest.mark.parametrize(
    ("mask_values", "ignore_index", "message"),
    [
        ((0, 0), None, "give 2 to 255 different values"),
        ((3,), None, "give 2 to 255 different values"),
        ((0, 256), None, "a mask holds values from 0 to 255"),
        (None, -1, "--ignore-index -1: a mask holds values from 0 to 255"),
        ((0, 255), 255, "--ignore-index 255 is one of --mask-values"),
    ],
)
def test_values_that_cannot_be(
    pair_folder: Path, mask_values: tuple[int, ...] | None, ignore_index: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_source(pair_folder, "test", mask_values=mask_values, ignore_index=ignore_index)


def test_values_of_masks_need_masks(image_folder: Callable[..., Path]) -> None:
    for data in (image_folder(), "digits", "shapes"):
        with pytest.raises(InputError, match="say what masks of files hold"):
            open_source(data, "test", mask_values=(0, 255))


def test_pairs_that_are_not_used_are_counted(pair_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pair_folder / "images" / "9.heic").write_bytes(b"")
    (pair_folder / "images" / "0.png").rename(pair_folder / "images" / "0.webp")
    Image.new("L", (8, 8)).save(pair_folder / "masks" / "lone.png")
    assert len(open_source(pair_folder, "test")) == 4
    assert "left out 2 files" in caplog.text
    assert "1 .heic" in caplog.text
    assert "1 masks without an image" in caplog.text


def test_a_picture_beside_images_and_masks_is_counted(pair_folder: Path) -> None:
    before = PairSource(pair_folder)
    (pair_folder / "preview.png").write_bytes(before.read(0)[0])
    source = PairSource(pair_folder)
    assert len(source) == len(before)
    assert source.left_out["not in images/"] == before.left_out["not in images/"] + 1


def test_two_images_of_one_mask_are_refused(pair_folder: Path) -> None:
    Image.new("RGB", (56, 40)).save(pair_folder / "images" / "1.webp")
    with pytest.raises(InputError, match=r"images/1\.jpg and images/1\.webp of .* would have one mask"):
        open_source(pair_folder, "test")


def test_a_model_of_four_channels_is_refused_at_the_door(pair_folder: Path) -> None:
    source = with_masks(open_source(pair_folder, "test"))
    four = WHOLE.model_copy(update={"input_size": (4, 20, 28), "mean": (0.5,) * 4, "std": (0.5,) * 4})
    with pytest.raises(InputError, match="the model takes 4"):
        list(mask_batches(source, four, 4, 2, CorruptImages()))
    with pytest.raises(InputError, match="the model takes 4"):
        TrainingPairs(source, four, 4, "crop", seed=0)
