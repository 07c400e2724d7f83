"""A few images: what is kept of them, and what becomes of each."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from dcvit.data import decode, draw_few_shot, evaluation_transform, few_shot, open_source, seeded
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(
    input_size=(3, 24, 32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    crop_pct=0.9,
)
MakeFolder = Callable[..., Path]


@pytest.fixture(params=["decoded", "encoded"])
def _kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "encoded":
        monkeypatch.setattr(few_shot, "MAX_DECODED_BYTES", 0)


@pytest.mark.usefixtures("_kept")
def test_tensors_and_fingerprint_are_those_of_images_kept_decoded(image_folder: MakeFolder) -> None:
    source = open_source(image_folder(classes=3, each=8), "train")
    few = draw_few_shot(source, 10, seed=1)
    drawn = np.random.default_rng(1).permutation(len(source))[:10].tolist()
    images = [decode(source.read(index)[0], 3) for index in drawn]
    digest = hashlib.sha256(b"".join(repr(image.size).encode() + image.tobytes() for image in images))
    assert few.fingerprint["sha256"] == digest.hexdigest()
    evaluation = evaluation_transform(PREPROCESSING)
    assert torch.equal(few.tensor(PREPROCESSING), torch.stack([evaluation(image) for image in images]))
    augmentation = create_transform(
        input_size=PREPROCESSING.input_size, is_training=True, interpolation="bicubic", auto_augment="rand-m9-n2",
        color_jitter=None, mean=PREPROCESSING.mean, std=PREPROCESSING.std,
    )  # fmt: skip
    for seed in (0, 5):
        with seeded(seed):
            expected = torch.stack([augmentation(image) for image in images])
        assert torch.equal(few.augmented(PREPROCESSING, seed), expected)


def test_images_are_decoded_again_where_they_take_too_much(
    image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(image_folder(classes=2, each=4), "train")
    for limit, kept in ((8 * 40 * 40 * 4, True), (8 * 40 * 40 * 4 - 1, False)):
        monkeypatch.setattr(few_shot, "MAX_DECODED_BYTES", limit)
        assert (draw_few_shot(source, 8, 0).decoded is not None) == kept


@pytest.mark.usefixtures("_kept")
def test_an_image_that_cannot_be_augmented_is_replaced(
    image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few = draw_few_shot(open_source(image_folder(), "train"), 4, 0)
    wide = (100, 10)
    bad = few.indices[1]

    def transform(image: Image.Image) -> torch.Tensor:
        if image.size == wide:
            raise ValueError("bits must be between or equal to 1 and 8")
        return torch.from_numpy(np.array(image.resize((32, 24)))).permute(2, 0, 1)

    monkeypatch.setattr(few_shot, "training_transform", lambda _: transform)
    before = few.augmented(PREPROCESSING, 0)
    name = few.source.filename(bad)
    if few.decoded is None:
        Image.new("RGB", wide).save(Path(few.source.name) / name)
    else:
        few.decoded[1].resize(wide).save(Path(few.source.name) / name)
        few = draw_few_shot(few.source, 4, 0)
    for seed in (0, 1):
        after = few.augmented(PREPROCESSING, seed)
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
        assert torch.equal(after[1], before[2])
    assert [name in record.message for record in caplog.records] == [True]
    assert "bits must be between" in caplog.text


def test_images_that_are_gone_are_replaced_or_refused(
    image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_shot, "MAX_DECODED_BYTES", 0)
    root = image_folder(classes=1, each=3)
    few = draw_few_shot(open_source(root, "train"), 3, 0)
    before = few.tensor(PREPROCESSING)
    (root / few.source.filename(few.indices[2])).unlink()
    (root / few.source.filename(few.indices[1])).write_bytes(b"")
    assert torch.equal(few.tensor(PREPROCESSING), before[[0, 0, 0]])
    (root / few.source.filename(few.indices[0])).unlink()
    with pytest.raises(InputError, match="none of the 3 images"):
        few.tensor(PREPROCESSING)


_MEASURED = """
import resource, sys
from dcvit.data import draw_few_shot, few_shot, open_source
from dcvit.preprocessing import Preprocessing
few_shot.MAX_DECODED_BYTES = 32 << 20
numbers = (0.5,) * 3
small = Preprocessing(input_size=(3, 32, 32), mean=numbers, std=numbers, interpolation="bicubic", crop_pct=1.0)
draw_few_shot(open_source(sys.argv[1], "train"), 1, 0).augmented(small, 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
few = draw_few_shot(open_source(sys.argv[2], "train"), 16, 0)
few.tensor(small), few.augmented(small, 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_large_photographs_are_not_all_in_memory_at_once(tmp_path: Path) -> None:
    for name, size, count in (("small", 64, 1), ("large", 2400, 16)):
        (tmp_path / name).mkdir()
        picture = Image.new("RGB", (size, size), (90, 120, 30))
        for number in range(count):
            picture.save(tmp_path / name / f"{number}.jpg")
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # All 16 decoded would be 369 MB; 32 may be kept, and with copies about six of 23 MB each are under way at once.
    assert int(done.stdout) * 1024 < 250e6
