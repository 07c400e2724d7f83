import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from dcvit.data import CorruptImages, batches, draw_few_shot, open_source, preprocessing_of, seeded
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.images import TrainingImages

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=1.0
)
MakeFolder = Callable[..., Path]


def test_a_folder_and_a_tar_of_it_give_the_same(image_folder: MakeFolder, tmp_path: Path) -> None:
    root = image_folder(classes=3, each=2)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(root, arcname=".")
    folder, tar_source = open_source(root, "test"), open_source(tmp_path / "images.tar", "test")
    assert folder.classes == tar_source.classes == ["class0", "class1", "class2"]
    for left, right in zip(
        batches(folder, PREPROCESSING, 4, CorruptImages()), batches(tar_source, PREPROCESSING, 4, CorruptImages()),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def test_a_pattern_joins_shards_of_the_same_classes(image_folder: MakeFolder, tmp_path: Path) -> None:
    root = image_folder(classes=2, each=2)
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for label in range(2):
                tar.add(root / f"class{label}" / f"{shard}.png", arcname=f"class{label}/{shard}.png")
    joined = open_source(tmp_path / "shard-*.tar", "train")
    assert (len(joined), joined.classes) == (4, ["class0", "class1"])
    pixels = {(root / f"class{label}" / f"{i}.png").read_bytes(): label for label in range(2) for i in range(2)}
    assert [label for _, label in map(joined.read, range(4))] == [0, 1, 0, 1]
    assert all(pixels[data] == label for data, label in map(joined.read, range(4)))
    with tarfile.open(tmp_path / "shard-2.tar", "w") as tar:
        tar.add(root / "class0" / "0.png", arcname="other/0.png")
    with pytest.raises(InputError, match="other classes"):
        open_source(tmp_path / "shard-*.tar", "train")


def test_batches_keep_order_and_end_short(image_folder: MakeFolder) -> None:
    source = open_source(image_folder(classes=2, each=4), "test")
    found = list(batches(source, PREPROCESSING, 3, CorruptImages()))
    assert [len(batch.labels) for batch in found] == [3, 3, 2]
    assert torch.cat([batch.labels for batch in found]).tolist() == [0] * 4 + [1] * 4
    assert found[0].images.shape == (3, 3, 32, 32)


def test_corrupt_images_are_named_skipped_and_counted(
    image_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(classes=2, each=3)
    (root / "class0" / "1.png").write_bytes(b"not a picture")
    truncated = root / "class1" / "2.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    corrupt = CorruptImages()
    total = sum(len(batch.labels) for batch in batches(open_source(root, "test"), PREPROCESSING, 2, corrupt))
    assert total == 4
    assert sorted(corrupt.names) == ["class0/1.png", "class1/2.png"]
    assert "class0/1.png" in caplog.text
    few = draw_few_shot(open_source(root, "train"), 4, seed=0)
    assert len(few) == 4
    with pytest.raises(InputError, match="only 4 images .* can be decoded"):
        draw_few_shot(open_source(root, "train"), 5, seed=0)


def test_all_corrupt_is_refused(image_folder: MakeFolder) -> None:
    root = image_folder(classes=1, each=2)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 2 images"):
        list(batches(open_source(root, "test"), PREPROCESSING, 2, CorruptImages()))


def test_few_shot_depends_on_the_seed_alone(image_folder: MakeFolder) -> None:
    root = image_folder(classes=2, each=8)
    first, again, other = (draw_few_shot(open_source(root, "train"), 6, seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint["sha256"] != other.fingerprint["sha256"]
    assert torch.equal(first.augmented(PREPROCESSING, 5), again.augmented(PREPROCESSING, 5))
    assert not torch.equal(first.augmented(PREPROCESSING, 5), first.augmented(PREPROCESSING, 6))


def test_a_fingerprint_is_the_same_wherever_the_images_lie(image_folder: MakeFolder, tmp_path: Path) -> None:
    root = image_folder(classes=2, each=2)
    places = [tmp_path / "here", tmp_path / "somewhere" / "else"]
    for place in places:
        for shard in range(2):
            shutil.copytree(root, place / f"shard-{shard}")
    for name in ("shard-0", "shard-*"):
        sources = [open_source(place / name, "train") for place in places]
        drawn = [draw_few_shot(source, 3, seed=0).fingerprint for source in sources]
        names = [TrainingImages(source, PREPROCESSING, "deit", labelled=True).fingerprint for source in sources]
        assert drawn[0] == drawn[1]
        assert names[0] == names[1]
        assert drawn[0]["source"] == names[0]["source"] == name


def test_augmenting_leaves_the_callers_random_state(image_folder: MakeFolder) -> None:
    few = draw_few_shot(open_source(image_folder(), "train"), 4, 0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    few.augmented(PREPROCESSING, 0)
    with seeded(3):
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)


def test_digits_splits_do_not_overlap() -> None:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    seen = {train.read(index)[0] for index in range(len(train))}
    assert sum(test.read(index)[0] in seen for index in range(len(test))) == 0


def test_sources_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    for path, message in (
        ("nowhere", "there is nothing at"),
        ("empty", "there are no images in"),
        ("note.txt", "neither a folder nor a .tar"),
        ("bad.tar", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_source(tmp_path / path, "train")
        assert "\n" not in str(caught.value)


def test_more_samples_than_images(image_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="has 8 images; ask for at most as many"):
        draw_few_shot(open_source(image_folder(), "train"), 9, 0)


def test_a_grey_model_gets_grey_images() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=1, in_chans=1)
    preprocessing = preprocessing_of(model, (1, 32, 32))
    assert len(preprocessing.mean) == len(preprocessing.std) == 1
    batch = next(batches(open_source("digits", "test"), preprocessing, 4, CorruptImages()))
    assert batch.images.shape == (4, 1, 32, 32)
    assert draw_few_shot(open_source("digits", "train"), 4, 0, channels=1).augmented(preprocessing, 0).shape[1] == 1
