"""Images in memory: every kind that is read, with its pixels and labels, and what is refused."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from dcvit.data import CorruptImages, batches, class_names, draw_few_shot, fits, names_of, open_source
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.images import TrainingImages

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
PREPROCESSING = Preprocessing(
    input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)


class Pictures(Dataset[Any]):
    """As torchvision's datasets are."""

    def __init__(self, transform: Any = None) -> None:
        self.transform, self.classes = transform, ["ant", "bee", "cow"]

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture: Any = Image.fromarray(PIXELS[index])
        return (picture if self.transform is None else self.transform(picture)), LABELS[index]


class Table:
    """What `datasets.Dataset` is to whoever reads it."""

    class ClassLabel:
        names = ("ant", "bee", "cow")

    def __init__(self, image: str = "image") -> None:
        self.column_names, self._image = ["id", image, "label"], image
        self.features = {"label": self.ClassLabel()}

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            assert key == "label", "a column of images would be decoded as a whole"
            return LABELS
        return {"id": key, self._image: Image.fromarray(PIXELS[key]), "label": LABELS[key]}


def chw() -> torch.Tensor:
    return torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


def as_files(place: Path) -> list[Path]:
    for index, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(place / f"{index}.png")
    return [place / f"{index}.png" for index in range(len(PIXELS))]


KINDS: dict[str, Any] = {
    "array, NHWC": lambda place: PIXELS,
    "array, NCHW": lambda place: PIXELS.transpose(0, 3, 1, 2),
    "tensor, NCHW": lambda place: chw(),
    "tensor, NHWC": lambda place: torch.from_numpy(PIXELS),
    "floats from 0 to 1": lambda place: chw().float() / 255,
    "float64 from 0 to 1": lambda place: PIXELS / 255,
    "list of PIL images": lambda place: [Image.fromarray(pixels) for pixels in PIXELS],
    "list of arrays": lambda place: list(PIXELS),
    "list of tensors": lambda place: list(chw()),
    "list of paths": as_files,
    "list of str": lambda place: [str(path) for path in as_files(place)],
    "images without labels in a dataset": lambda place: TensorDataset(chw()),
}


def pixels_of(source: Any) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(io.BytesIO(source.read(i)[0])).convert("RGB")) for i in range(len(source))])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_pixels(kind: str, tmp_path: Path) -> None:
    source = open_source(KINDS[kind](tmp_path), "train")
    assert source.classes == [""]
    assert names_of(source) is None
    assert (pixels_of(source) == PIXELS).all()


LABELLED: dict[str, Any] = {
    "images and labels": lambda place: (PIXELS, LABELS),
    "images and an array of labels": lambda place: (chw(), np.array(LABELS)),
    "images and a tensor of labels": lambda place: (list(PIXELS), torch.tensor(LABELS)),
    "paths and labels": lambda place: (as_files(place), LABELS),
    "pairs": lambda place: list(zip(PIXELS, LABELS, strict=True)),
    "dicts": lambda place: [{"image": p, "label": label} for p, label in zip(PIXELS, LABELS, strict=True)],
    "tensor dataset": lambda place: TensorDataset(chw(), torch.tensor(LABELS)),
    "loader of a tensor dataset": lambda place: DataLoader(TensorDataset(chw(), torch.tensor(LABELS)), 4, shuffle=True),
}
NAMED: dict[str, Any] = {
    "dataset": lambda place: Pictures(),
    "dataset of tensors": lambda place: Pictures(lambda p: torch.tensor(np.asarray(p)).permute(2, 0, 1) / 255),
    "subset": lambda place: Subset(Pictures(), range(6)),
    "loader": lambda place: DataLoader(Pictures(), batch_size=4, collate_fn=list),
    "Hugging Face": lambda place: Table(),
    "Hugging Face, img": lambda place: Table("img"),
    "words": lambda place: (PIXELS, [("ant", "bee", "cow")[label] for label in LABELS]),
}


@pytest.mark.parametrize("kind", [*LABELLED, *NAMED])
def test_every_kind_of_labels(kind: str, tmp_path: Path) -> None:
    named = kind in NAMED
    source = open_source((LABELLED | NAMED)[kind](tmp_path), "train")
    assert names_of(source) == (("ant", "bee", "cow") if named else None)
    assert len(source.classes) == 3
    assert [source.read(index)[1] for index in range(6)] == LABELS
    assert (pixels_of(source) == PIXELS).all()
    (batch,) = batches(source, PREPROCESSING, 8, CorruptImages())
    assert torch.allclose(batch.images, (chw() / 255 - 0.5) / 0.5, atol=1e-6)
    assert fits(source, 3)
    assert fits(source, 10) is not named  # numbers alone do not say how many classes there are
    assert not fits(source, 2)


def test_a_class_map_names_numbers_and_sorts_names() -> None:
    source = open_source((PIXELS, LABELS), "train", class_map=["x", "y", "z", "w"])
    assert [source.read(index)[1] for index in range(6)] == LABELS
    assert class_names(None, source, 4) == ("x", "y", "z", "w")
    source = open_source(Pictures(), "train", class_map=["cow", "bee", "ant"])
    assert [source.read(index)[1] for index in range(6)] == [2, 1, 0, 2, 1, 0]
    with pytest.raises(InputError, match="holds 2 names, and .* the label 2"):
        open_source((PIXELS, LABELS), "train", class_map=["x", "y"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (chw().float(), r"holds floats from 0 to 255; give pixels as they are before normalisation: uint8"),
        ((chw() / 255 - 0.5) / 0.5, r"holds floats from -1 to 1; they look normalised; give pixels"),
        (Pictures(lambda p: torch.tensor(np.asarray(p)).permute(2, 0, 1) / 127.5 - 1), "image 0 of .* look normalised"),
        (torch.full((2, 3, 8, 8), torch.nan), "not finite"),
        (PIXELS.astype(np.int64), "holds int64; give pixels"),
        ((PIXELS > 100).astype(np.uint8), "nothing but 0 and 1 as uint8"),
        (PIXELS[0], "may be one image or grey ones"),
        (PIXELS[None], "has 5 dimensions"),
        (np.zeros((4, 5, 8, 8), np.uint8), r"is \[5, 8, 8\]; an image is \[C, H, W\]"),
        (np.zeros((4, 3, 8, 3), np.uint8), "channels may come first or last"),
        ([], "is empty"),
        (np.zeros((0, 3, 8, 8), np.uint8), "is empty"),
        ([1, 2], "image 0 of list in memory is of the type int; give a folder of class folders or a tar"),
        ((PIXELS, LABELS[:2]), "6 images and 2 labels"),
        ((PIXELS, [0, 1, 2, 0, 1, -1]), "label of image 5 .* is -1; a label is the number of a class, from 0 on"),
        ([(PIXELS[0], PIXELS[0])], r"label of image 0 .* is of shape \(8, 8, 3\).*masks are read from folders"),
        ([{"pixels": PIXELS[0]}], "items of list in memory hold pixels, and no image; call it 'image'"),
        (Table("photo"), "has the columns id, photo, label, and no image"),
        ({"train": Table(), "test": Table()}, r"it holds splits \(train, test\); give one of them"),
        ([Path("a.png"), Path("b.png")], "there is no file a.png"),
        (7, "images cannot be read from an int; give a folder"),
        ((image for image in PIXELS), "a generator, which has no length and no numbers to read by; give"),
        (DataLoader(Subset(Pictures(), [0]), sampler=torch.utils.data.SubsetRandomSampler([0])), "SubsetRandomSampler"),
    ],
)
def test_what_is_refused_and_with_which_words(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        source = open_source(data, "train")
        source.classes  # noqa: B018 (labels are read when they are needed)
        [source.read(index) for index in range(len(source))]
    assert "\n" not in str(caught.value)


def test_a_stream_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(PIXELS)

    for data in (Stream(), DataLoader(Stream())):
        with pytest.raises(InputError, match="a Stream, which has no length"):
            open_source(data, "train")


def test_equal_images_have_equal_fingerprints_and_others_do_not(tmp_path: Path) -> None:
    """However they are held: the manifest knows them by their pixels."""
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    as_files(folder / "a")
    wanted = draw_few_shot(open_source(folder, "train"), 4, seed=0).fingerprint["sha256"]
    for data in (PIXELS, chw() / 255, Pictures(), Table()):
        found = draw_few_shot(open_source(data, "train"), 4, seed=0).fingerprint
        assert found["sha256"] == wanted
        assert found["source"].endswith("in memory")
    assert draw_few_shot(open_source(255 - PIXELS, "train"), 4, seed=0).fingerprint["sha256"] != wanted

    def trained_on(data: Any) -> dict[str, Any]:
        source = open_source(data, "train")
        return TrainingImages(source, PREPROCESSING, "deit", labelled=True).fingerprint

    assert trained_on((PIXELS, LABELS)) == trained_on((PIXELS.copy(), list(LABELS)))
    others = (255 - PIXELS, LABELS), (PIXELS, LABELS[::-1])
    assert len({trained_on(each)["sha256_of_some"] for each in [(PIXELS, LABELS), *others]}) == 3


def test_a_file_that_is_gone_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = as_files(tmp_path)
    source = open_source((paths, LABELS), "test")
    paths[2].unlink()
    (batch,) = batches(source, PREPROCESSING, 8, CorruptImages())
    assert len(batch.images) == 5
    assert f"skipped {paths[2]}" in caplog.text


def test_other_processes_can_read_them() -> None:
    for data in ((PIXELS, LABELS), list(PIXELS), TensorDataset(chw(), torch.tensor(LABELS))):
        source = open_source(data, "train")
        assert pickle.loads(pickle.dumps(source)).read(3) == source.read(3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_are_what_their_files_are(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(PIXELS[0])
    picture = Image.fromarray(np.full((8, 8), 40_000, np.uint16)) if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / "0.tif") if mode != "LA" else picture.save(tmp_path / "0.png")
    in_memory, file = open_source([picture], "train"), open_source(tmp_path, "train")
    (ours,), (theirs,) = (batches(each, PREPROCESSING, 1, CorruptImages()) for each in (in_memory, file))
    assert torch.equal(ours.images, theirs.images)


def test_the_real_hugging_face_package() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])})
    held = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": LABELS}
    table = datasets.Dataset.from_dict(held, features=features)
    source = open_source(table, "train")
    assert names_of(source) == ("ant", "bee", "cow")
    assert [source.read(index)[1] for index in range(6)] == LABELS
    assert (pixels_of(source) == PIXELS).all()
    with pytest.raises(InputError, match="it holds splits"):
        open_source(datasets.DatasetDict({"train": table}), "train")
    with pytest.raises(InputError, match="no length"):
        open_source(table.to_iterable_dataset(), "train")
