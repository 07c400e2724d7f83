"""Which files are pictures, and what their pixels are."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from dcvit.data import CorruptImages, batches, check_channels, decode, draw_few_shot, open_source
from dcvit.data.formats import MAX_PIXELS, is_picture
from dcvit.errors import InputError
from dcvit.preprocessing import Preprocessing
from dcvit.training.images import TrainingImages

PREPROCESSING = Preprocessing(
    input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    return buffer.getvalue()


def grey(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(decode(data, 1))


@pytest.mark.parametrize("extension", ["webp", "bmp", "tif", "TIFF", "gif", "ppm", "jp2", "tga", "avif"])
def test_what_pillow_reads_is_read(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for number, kind in enumerate(("png", extension)):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / "a" / f"{number}.{kind}")
    source = open_source(tmp_path, "test")
    assert len(source) == 2
    (batch,) = batches(source, PREPROCESSING, 2, CorruptImages())
    # AVIF and WebP are not exact.
    assert (batch.images - (200 / 255 - 0.5) / 0.5).abs().max() < 0.05


@pytest.mark.parametrize("name", ["a.h5", "a.mpg", "a.eps", "a.pdf", "a.txt", "a.heic", "png", ".png"])
def test_what_pillow_only_knows_by_name_is_no_picture(name: str) -> None:
    assert not is_picture(name)


def test_programs_are_not_run_whatever_the_name_says() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    with pytest.raises(OSError, match="cannot identify"):
        decode(postscript, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_upper_8(kind: str) -> None:
    data = encoded(Image.fromarray(RAMP.astype(np.uint16) * 256 + 200), kind)
    assert np.array_equal(grey(data), RAMP)
    assert np.array_equal(np.asarray(decode(data, 3)), RAMP[..., None].repeat(3, 2))


def test_a_pgm_of_16_bits_keeps_its_upper_8() -> None:
    data = b"P5 16 16 65535\n" + (RAMP.astype(np.uint16) * 256 + 3).astype(">u2").tobytes()
    assert np.array_equal(grey(data), RAMP)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.int32), RAMP),
        (RAMP.astype(np.int32) << 8, RAMP),
        (RAMP.astype(np.int32) << 23, RAMP),
        (RAMP.astype(np.float32) / 255, RAMP),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.float32) * 257, RAMP),
    ],
)
def test_32_bits_are_scaled_by_the_narrowest_range_that_holds_them(
    values: NDArray[np.generic], expected: NDArray[np.uint8]
) -> None:
    assert np.array_equal(grey(encoded(Image.fromarray(values), "TIFF")), expected)


@pytest.mark.parametrize(
    "values",
    [np.full((4, 4), -1, np.int32), np.full((4, 4), np.nan, np.float32), np.full((4, 4), 1e6, np.float32)],
)
def test_values_without_a_range_are_a_corrupt_image(values: NDArray[np.generic]) -> None:
    with pytest.raises(OSError, match="have no known range"):
        decode(encoded(Image.fromarray(values), "TIFF"), 3)


def test_transparency_is_dropped_as_pillow_drops_it() -> None:
    picture = Image.fromarray(np.dstack([RAMP, RAMP.T, RAMP, RAMP]), "RGBA")
    assert np.array_equal(np.asarray(decode(encoded(picture, "PNG"), 3)), np.dstack([RAMP, RAMP.T, RAMP]))


def bomb(width: int, height: int) -> bytes:
    """A PNG of black pixels, 1 bit each, in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 14_000])  # the larger one Pillow refuses by itself
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_corrupt(tmp_path: Path, side: int, caplog: pytest.LogCaptureFixture) -> None:
    assert side**2 > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    corrupt = CorruptImages()
    (batch,) = batches(open_source(tmp_path, "test"), PREPROCESSING, 2, corrupt)
    assert (len(batch.images), corrupt.names) == (1, ["bomb.png"])
    assert "DCVIT_MAX_PIXELS raises the limit" in caplog.text
    assert f"{side}×{side}" in caplog.text or str(side**2) in caplog.text


def test_the_limit_of_pixels_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (10, 11)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    monkeypatch.setenv("DCVIT_MAX_PIXELS", "110")
    assert decode(data, 1).size == (10, 11)
    monkeypatch.setenv("DCVIT_MAX_PIXELS", "109")
    with pytest.raises(OSError, match=r"10×11 pixels are more than 109"):
        decode(data, 1)
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv("DCVIT_MAX_PIXELS", wrong)
        with pytest.raises(InputError, match=f"DCVIT_MAX_PIXELS={wrong}"):
            decode(data, 1)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken files
@pytest.mark.parametrize("kind", ["AVIF", "BMP", "DDS", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TGA", "TIFF", "WEBP"])
def test_broken_files_raise_nothing_but_oserror(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    whole = encoded(Image.fromarray(np.dstack([RAMP] * 3)), kind)
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: int(generator.integers(1, len(whole) + 1))])
        for at in generator.integers(0, len(data), 8):
            data[at] = generator.integers(0, 256)
        try:
            decode(bytes(data), 3)
        except OSError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    "error", [SystemError("x"), RuntimeError("x"), IndexError(), NotImplementedError(), OverflowError()]
)
def test_whatever_a_decoder_raises_is_one_corrupt_image(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(OSError, match="it cannot be decoded"):
        decode(encoded(Image.new("RGB", (4, 4)), "PNG"), 3)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_model_of_other_channels_is_refused_at_the_door(image_folder: Callable[..., Path], channels: int) -> None:
    source = open_source(image_folder(), "train")
    preprocessing = PREPROCESSING.model_copy(
        update={"input_size": (channels, 16, 16), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    )
    for use in (
        lambda: check_channels(channels),
        lambda: decode(source.read(0)[0], channels),
        lambda: draw_few_shot(source, 2, 0, channels),
        lambda: list(batches(source, preprocessing, 2, CorruptImages())),
        lambda: TrainingImages(source, preprocessing, "crop", labelled=True),
    ):
        with pytest.raises(InputError, match=f"images have 1 or 3 channels, and the model takes {channels}"):
            use()
