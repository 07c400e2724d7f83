"""Arrays and tensors as pictures: which shapes and which ranges of values they may have."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dcvit.errors import InputError

Layout = Literal["CHW", "HWC", "HW"]

RANGES = "give pixels as they are before normalisation: uint8 from 0 to 255, or floats from 0 to 1"


def layout_of(image: NDArray[Any] | torch.Tensor, where: str) -> Layout:
    """Which axis of an image holds its channels, of which there are 1 or 3.

    Raises:
        InputError: If none can, or both ends can.
    """
    shape = tuple(image.shape)
    if len(shape) == 2:
        return "HW"
    first, last = (len(shape) == 3 and shape[axis] in (1, 3) for axis in (0, -1))
    if first and last:
        raise InputError(f"--data: {where} is {list(shape)}, whose channels may come first or last; give larger images")
    if not first and not last:
        raise InputError(
            f"--data: {where} is {list(shape)}; an image is [C, H, W] or [H, W, C] with C = 1 or 3, or [H, W]"
        )
    return "CHW" if first else "HWC"


def check_pixels(values: NDArray[Any] | torch.Tensor, where: str) -> None:
    """Whether values can be pixels, by their type and their range.

    Raises:
        InputError: If they are neither uint8 nor floats from 0 to 1. What looks normalised is named.
    """
    kind = str(values.dtype).removeprefix("torch.")
    if kind == "uint8":
        if values.ndim == 4 and len(values) > 1 and int(values.max()) == 1:
            raise InputError(f"--data: {where} holds nothing but 0 and 1 as uint8; {RANGES}")
        return
    if not kind.startswith(("float", "bfloat")):
        raise InputError(f"--data: {where} holds {kind}; {RANGES}")
    least, most = float(values.min()), float(values.max())
    if least >= 0 and most <= 1:
        return
    if not np.isfinite([least, most]).all():
        raise InputError(f"--data: {where} holds numbers that are not finite (NaN or infinity); {RANGES}")
    looks = "they look normalised; " if least < 0 else ""
    raise InputError(f"--data: {where} holds floats from {least:.3g} to {most:.3g}; {looks}{RANGES}")


def as_picture(image: NDArray[Any] | torch.Tensor, layout: Layout, where: str) -> Image.Image:
    """An image as a grey or RGB picture of 8 bits; floats are rounded.

    Raises:
        InputError: If its values can be no pixels.
    """
    check_pixels(image, where)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        values = (image.float() if image.dtype.is_floating_point else image).numpy()
    else:
        values = image
    if layout == "CHW":
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype != np.uint8:
        values = (values.astype(np.float32) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))
