"""Classes, order and names of images in folders and tars."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers import create_reader

from dcvit.data import CorruptImages, batches, open_source
from dcvit.data import sources as sources_module
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.images import TrainingImages

PREPROCESSING = Preprocessing(
    input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)


@pytest.fixture(autouse=True)
def _warned_of_nothing() -> None:
    sources_module._warn_once.cache_clear()


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(root: Path, *names: str | bytes) -> Path:
    """Pictures whose pixels are their numbers."""
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def packed(root: Path, tar: Path, above: str = ".") -> Path:
    with tarfile.open(tar, "w") as archive:
        archive.add(root, above)
    return tar


def labels(path: Path) -> dict[str, str]:
    """Class of each image."""
    source = open_source(path, "train")
    return {source.filename(index): source.classes[source.read(index)[1]] for index in range(len(source))}


ORDINARY = [f"{folder}/{name}" for folder in ("cat", "Dog", "class 2", "class 10", "n01440764")
            for name in ("10.png", "9.jpg", "B.png", "a.PNG", "img_2_10.png", "img_2_9.jpeg", "x1.5.png")]  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "tar", "tar without ./", "tar in a folder", "flat"])
def test_order_and_labels_are_those_of_timm(tmp_path: Path, kind: str) -> None:
    names = [name.replace("/", " ") for name in ORDINARY] if kind == "flat" else ORDINARY
    path = write(tmp_path / "set 3", *names)
    if kind.startswith("tar"):
        above = {"tar": ".", "tar without ./": "", "tar in a folder": "set/of"}[kind]
        path = packed(path, tmp_path / "set.tar", above)
    reader, source = create_reader("", root=str(path)), open_source(path, "train")
    assert len(source) == len(reader) == len(ORDINARY)
    for index in range(len(source)):
        file, label = reader[index]
        assert source.read(index) == (file.read(), label)
        assert source.filename(index) == reader.filename(index)


def test_a_tar_of_a_tar_for_each_class_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    outer = tmp_path / "train.tar"
    with tarfile.open(outer, "w") as archive:
        for name in ("n2", "n10"):
            inner = packed(write(tmp_path / name, f"{name}_9.png", f"{name}_10.png"), tmp_path / f"{name}.tar", "")
            archive.add(inner, f"{name}.tar")
    reader, source = create_reader("", root=str(outer)), open_source(outer, "train")
    assert source.classes == ["n2", "n10"]
    for index in range(4):
        file, label = reader[index]
        assert (source.read(index), source.filename(index)) == ((file.read(), label), reader.filename(index))


@pytest.mark.parametrize("as_tar", [False, True])
@pytest.mark.parametrize("above", ["", "set/"])
def test_a_class_is_the_first_folder_whatever_it_holds(tmp_path: Path, as_tar: bool, above: str) -> None:
    names = ("even/cam1/0.png", "even/cam2/0.png", "odd/cam1/0.png", "odd/cam2/0.png", "odd/1.png")
    path = write(tmp_path / "root", *(above + name for name in names))
    path = packed(path, tmp_path / "root.tar") if as_tar else path
    source = open_source(path, "train")
    assert source.classes == ["even", "odd"]
    assert sorted(labels(path).values()) == ["even"] * 2 + ["odd"] * 3
    assert all(name.removeprefix("./").startswith(above + label) for name, label in labels(path).items())


@pytest.mark.parametrize("as_tar", [False, True])
@pytest.mark.parametrize("splits", [("train", "val"), ("Training", "test"), ("train2017", "val2017", "test2017")])
def test_splits_are_pointed_out(tmp_path: Path, as_tar: bool, splits: tuple[str, ...]) -> None:
    root = write(tmp_path / "root", *(f"{split}/{label}/0.png" for split in splits for label in range(3)))
    path = packed(root, tmp_path / "root.tar") if as_tar else root
    with pytest.raises(InputError, match=r"holds splits of a set .* give one of them, (such )?as ") as caught:
        open_source(path, "train")
    assert next(split for split in sorted(splits, key=str.lower)) in str(caught.value)
    assert open_source(root / splits[0], "train").classes == ["0", "1", "2"]


def test_one_split_alone_is_its_classes(tmp_path: Path) -> None:
    assert open_source(write(tmp_path, "train/a/0.png", "train/b/0.png"), "train").classes == ["a", "b"]


def test_two_orders_of_names_are_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, *(f"{number}/0.png" for number in range(1, 12)))
    for _ in range(2):
        assert open_source(root, "train").classes == [str(number) for number in range(1, 12)]
    (record,) = caplog.records
    assert "1, 2, 3, 4" in record.message
    assert "1, 10, 11, 2" in record.message
    assert "label 1 " in record.message


@pytest.mark.parametrize("names", [("a", "b", "c"), ("01", "02", "10"), tuple("0123456789")])
def test_one_order_of_names_is_not_worth_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...]
) -> None:
    open_source(write(tmp_path, *(f"{name}/0.png" for name in names)), "train")
    assert not caplog.records


@pytest.mark.parametrize("as_tar", [False, True])
def test_what_is_left_out_is_counted_by_extension(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, as_tar: bool
) -> None:
    root = write(tmp_path / "root", "a/0.png", "b/0.png", "b/1.heic", "b/2.HEIC", "b/.3.png", ".cache/4.png", "b/notes")
    path = packed(root, tmp_path / "root.tar") if as_tar else root
    assert len(open_source(path, "train")) == 2
    (record,) = caplog.records
    assert record.message.startswith("left out 5 files of ")
    assert all(part in record.message for part in ("2 .heic", "2 hidden", "1 without extension"))


def test_images_beside_class_folders_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(write(tmp_path, "a/0.png", "b/0.png", "1.png", "2.png"), "train")
    assert (source.classes, len(source)) == (["", "a", "b"], 4)
    assert "2 images of" in caplog.text


def test_links_in_a_tar_are_images_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = tmp_path / "set.tar"
    with tarfile.open(tar, "w") as archive:
        for name in ("a/0.png", "a/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png(7))
            archive.addfile(info, io.BytesIO(png(7)))
        for name, kind, target in (
            ("b/hard.png", tarfile.LNKTYPE, "a/0.png"),
            ("b/soft.png", tarfile.SYMTYPE, "../a/1.png"),
            ("b/twice.png", tarfile.SYMTYPE, "hard.png"),
            ("b/nowhere.png", tarfile.SYMTYPE, "../c/0.png"),
            ("b/itself.png", tarfile.SYMTYPE, "itself.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    assert labels(tar) == {"a/0.png": "a", "a/1.png": "a", "b/hard.png": "b", "b/soft.png": "b", "b/twice.png": "b"}
    source = open_source(tar, "train")
    assert {source.read(index)[0] for index in range(5)} == {png(7)}
    assert "2 a link to nothing" in caplog.text


def test_of_one_name_in_a_tar_the_last_file_counts(tmp_path: Path) -> None:
    tar = packed(write(tmp_path / "old", "a/0.png", "a/1.png"), tmp_path / "set.tar", "")
    with tarfile.open(tar, "a") as archive:
        archive.add(write(tmp_path / "new", "x.png", "y.png", "a/0.png"), "")
    source = open_source(tar, "train")
    found = {source.filename(index): source.read(index)[0] for index in range(len(source))}
    assert (found["a/0.png"], found["a/1.png"]) == (png(2), png(1))


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "a/0.png", "b/0.png")
    elsewhere = write(tmp_path / "elsewhere", "0.png", "1.png")
    (root / "c").symlink_to(elsewhere)
    (root / "b" / "again").symlink_to(root)
    (root / "b" / "loop").symlink_to("loop")
    assert list(labels(root)) == ["a/0.png", "b/0.png", "c/0.png", "c/1.png"]


@pytest.mark.parametrize("as_tar", [False, True])
def test_names_that_are_not_utf8_can_be_printed_and_hashed(tmp_path: Path, as_tar: bool) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ro\xffot"))
    write(root, b"caf\xe9/\xfc.png", "b/ü.png")
    path = packed(root, Path(str(root) + ".tar"), "") if as_tar else root
    source = open_source(path, "train")
    fingerprint = TrainingImages(source, PREPROCESSING, "deit", labelled=True).fingerprint
    texts = [source.name, *source.classes, *(source.filename(index) for index in range(2)), fingerprint["source"]]
    assert [text.encode() for text in texts][1:] == [
        b"b", b"caf\\xe9", "b/ü.png".encode(), b"caf\\xe9/\\xfc.png", b"ro\\xffot" + b".tar" * as_tar
    ]  # fmt: skip
    assert [source.read(index)[0] for index in range(2)] == [png(1), png(0)]
    with pytest.raises(InputError) as caught:
        open_source(Path(str(path) + "no"), "train")
    assert str(caught.value).encode()


def test_a_file_that_cannot_be_read_is_one_corrupt_image(tmp_path: Path) -> None:
    root = write(tmp_path, "a/0.png", "b/0.png", "b/1.png")
    source = open_source(root, "train")
    (root / "b" / "0.png").unlink()
    corrupt = CorruptImages()
    (batch,) = batches(source, PREPROCESSING, 4, corrupt)
    assert (batch.labels.tolist(), corrupt.names) == ([0, 1], ["b/0.png"])
    assert TrainingImages(source, PREPROCESSING, "crop", labelled=True).num_images == 2


@pytest.mark.parametrize("name", ["train[1].tar", "a*b.tar", "what?.tar", "set[0-9]"])
def test_signs_of_patterns_in_a_name_that_is_there(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "root", "a/0.png", "b/0.png")
    path = packed(root, tmp_path / name) if name.endswith(".tar") else root.rename(tmp_path / name)
    assert open_source(path, "train").classes == ["a", "b"]


def test_a_pattern_of_sets_with_masks_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"set{number}", "images/0.png", "masks/0.png")
    with pytest.raises(InputError, match="has masks; give one folder or tar"):
        open_source(tmp_path / "set*", "train")


@pytest.fixture
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    return


@pytest.mark.usefixtures("_inside")
@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_a_folder_called_like_a_bundled_set(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    open_source(name, "test")
    assert not caplog.records
    write(tmp_path / name, "a/0.png", "b/0.png")
    assert len(open_source(name, "test")) == 500
    assert f"./{name} names the folder" in caplog.text
    assert open_source(f"./{name}", "test").classes == ["a", "b"]


def test_no_pickle_lies_beside_a_tar_nor_is_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = packed(write(tmp_path / "root", "a/0.png", "b/0.png"), tmp_path / "set.tar")
    (tmp_path / "_set_tarinfos.pickle").write_bytes(b"no pickle")
    monkeypatch.setattr("os.path.getsize", lambda path: 11 << 30)  # where timm keeps one
    assert len(open_source(tar, "train")) == 2
    assert (tmp_path / "_set_tarinfos.pickle").read_bytes() == b"no pickle"
    assert len(list(tmp_path.iterdir())) == 3


def test_pixels_reach_their_labels(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in ("even", "odd") for number in range(3)]
    source = open_source(write(tmp_path, *names), "train")
    (batch,) = batches(source, PREPROCESSING, 8, CorruptImages())
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(255 * (batch.images[:, 0, 0, 0] / 2 + 0.5), range(6), atol=1e-4)  # fp32
