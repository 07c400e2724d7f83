"""How far an accuracy can be trusted: intervals of one, and of the difference of two on the same images."""

import base64
import math

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Of a 95 % interval."""


def share_interval(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a share in percent: Wilson's, which holds for few images and for shares near 100 % too.

    Args:
        right: Images that count.
        images: Of so many, at least one.
    """
    share, spread = right / images, Z * Z / images
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / images + spread / (4 * images)) / (1 + spread)
    return max(0.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))


def paired_interval(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[float, float]:
    """The 95 % interval of the change in accuracy, in points, of two models on the same images.

    Only images on which one is right and the other is not say anything of it, so it is much narrower than the intervals
    of both accuracies (Agresti and Min 2005: Wald's, with half a pair added to each of the four cells).

    Args:
        before: Whether the original is right, by image [n].
        after: The same of the other model.
    """
    gained = int((~before & after).sum()) + 0.5
    lost = int((before & ~after).sum()) + 0.5
    images = len(before) + 2
    change = (gained - lost) / images
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / images) / images
    return 100 * (change - half), 100 * (change + half)


def packed(right: NDArray[np.bool_]) -> str:
    """Which images a model is right on, as text: eight a byte, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpacked(text: str, images: int) -> NDArray[np.bool_]:
    """The same, back.

    Raises:
        ValueError: If the text holds none, or of fewer images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8))
    if not images <= len(bits) < images + 8:
        raise ValueError(f"{len(bits)} images, and not {images}")
    return bits[:images].astype(bool)
