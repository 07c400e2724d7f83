"""The bundled digits."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

DIGITS = "digits"
FILE = Path(__file__).parents[1] / "assets" / "digits.safetensors"
"""Where they come from, and their licence, stands in DIGITS.md beside it."""

_TRAIN = 1297


class DigitsSource:
    """Handwritten digits: 8×8 grey images, 1297 to train and 500 to test, split once and for all."""

    name = DIGITS
    classes = [str(digit) for digit in range(10)]  # noqa: RUF012 (the protocol's field, never changed)

    def __init__(self, split: Literal["train", "test"]) -> None:
        """Loads one of the two splits."""
        digits = load_file(FILE)
        order = np.random.default_rng(0).permutation(len(digits["images"]))
        chosen = order[:_TRAIN] if split == "train" else order[_TRAIN:]
        self._images = (digits["images"][chosen] * (255 / 16)).round().astype(np.uint8)
        self._labels = digits["labels"][chosen]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, int]:
        buffer = io.BytesIO()
        Image.fromarray(self._images[index]).save(buffer, format="PNG")
        return buffer.getvalue(), int(self._labels[index])

    def filename(self, index: int) -> str:
        return f"digit {index}"
