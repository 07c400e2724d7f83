"""Which files are pictures, and opening one."""

import io
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcvit.errors import InputError

MAX_PIXELS = 128_000_000
"""Pixels of an image at most, unless the environment variable `DCVIT_MAX_PIXELS` says otherwise: a file of a few
kilobytes may decode to gigabytes."""

PIXEL_LIMIT = "DCVIT_MAX_PIXELS"

# Pillow knows these by name, but has no decoder of its own for them; Ghostscript, which EPS starts, runs programs.
_UNDECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_SIXTEEN_BITS = {"PNG", "PPM"}
"""Formats whose grey of more than 8 bits is 16 bits wide, though some Pillows give it in a wider mode."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _UNDECODED)


@cache
def _extensions() -> frozenset[str]:
    readable = set(_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in readable)


def is_picture(name: str) -> bool:
    """Whether Pillow reads such a file, by the extension of its name."""
    return os.path.splitext(name)[1].lower() in _extensions()


def max_pixels() -> int:
    """Pixels of an image at most.

    Raises:
        InputError: If the environment variable holds no positive whole number.
    """
    text = os.environ.get(PIXEL_LIMIT)
    if text is None:
        return MAX_PIXELS
    if not text.strip().isdecimal() or not int(text):
        raise InputError(f"{PIXEL_LIMIT}={text}: give the pixels of an image at most, such as {MAX_PIXELS}")
    # Pillow has a limit of its own, of twice this figure.
    Image.MAX_IMAGE_PIXELS = max(int(text), Image.MAX_IMAGE_PIXELS or 0)
    return int(text)


def opened(data: bytes, limit: int) -> Image.Image:
    """Opens an encoded picture; nothing is decoded yet. Raises whatever Pillow raises.

    Raises:
        ValueError: If it has more pixels than the limit.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} ({PIXEL_LIMIT} raises the limit)") from error
    width, height = picture.size
    if width * height > limit:
        raise ValueError(f"{width}×{height} pixels are more than {limit} ({PIXEL_LIMIT} raises the limit)")
    return picture


def with_eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of more than 8 bits a channel as grey of 8 bits, where Pillow itself would clip to white; others as is.

    Grey of 16 bits keeps its upper 8, as Pillow does with colours of 16. Of 32 bits, whose range no format tells, the
    narrowest of 8, 16 and 31 bits that holds the largest value; floats are 0 to 1, or else 0 to 255, or 0 to 65535.

    Raises:
        ValueError: If a value is negative, no number, or larger than these.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_BITS):
        return _grey(values >> 8)
    largest = values.max()
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"values from {values.min():g} to {largest:g} have no known range")
    if picture.mode == "I":
        return _grey(values >> (0 if largest < 1 << 8 else 8 if largest < 1 << 16 else 23))
    if largest >= 1 << 16:
        raise ValueError(f"values from {values.min():g} to {largest:g} have no known range")
    return _grey((values * (255 if largest <= 1 else 1 if largest <= 255 else 1 / 257)).round())


def _grey(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
