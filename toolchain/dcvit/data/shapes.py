"""Segmentation data sets that ship as code: shapes on noisy backgrounds, drawn anew from their number.

Each image of `shapes` holds two to five shapes of random size and angle, later ones over earlier ones, on a background
of two blended colours with stripes; some shapes are striped too, and sensor noise lies over everything. Colour hints at
the class, as it does in photographs, but the hues of neighbouring classes overlap, and the background takes any of
them. `thin-shapes` is the harder one: three to six of ten kinds, seven of which are strokes of two to four pixels, and
hues that tell next to nothing.
"""

import io
from collections.abc import Callable
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Pixels of an image, both ways."""
TRAIN_IMAGES, TEST_IMAGES = 2000, 500

HUE_SPREAD = 0.07
"""Deviation of a class's hue, whose means are spread evenly over the circle: a fifth of it apart in `shapes`."""
_FINE = 3
"""Samples of a pixel, both ways: edges are smooth in the image; the mask holds what covers the pixel's centre."""

Floats = NDArray[np.float64]
Inside = Callable[[Floats, Floats], NDArray[np.bool_]]


@dataclass(frozen=True)
class ShapeSet:
    """What the images of a set hold.

    Attributes:
        outlines: What each class covers, by name, in coordinates in which the shape has radius 1.
        shapes: The fewest and the most in an image.
        number: Of the set: no two sets share a background.
    """

    outlines: dict[str, Inside]
    shapes: tuple[int, int]
    number: int


SETS = {
    "shapes": ShapeSet(
        {
            "disc": lambda u, v: u**2 + v**2 < 1,
            "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.8,
            "triangle": lambda u, v: (v > -0.5) & (abs(u) < (1 - v) / np.sqrt(3)),
            "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.3),
            "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95),
        },
        (2, 5),
        0,
    ),
    "thin-shapes": ShapeSet(
        {
            "disc": lambda u, v: u**2 + v**2 < 0.5,
            "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.6,
            "triangle": lambda u, v: (v > -0.5) & (abs(u) < (1 - v) / np.sqrt(3)),
            "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.6),
            "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.13) & (np.maximum(abs(u), abs(v)) < 1),
            "line": lambda u, v: (abs(v) < 0.13) & (abs(u) < 1.2),
            "arc": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.6) & (v > 0),
            "frame": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & (np.maximum(abs(u), abs(v)) > 0.6),
            "chevron": lambda u, v: (abs(v + 0.5 - abs(u)) < 0.2) & (abs(u) < 1),
            "star": lambda u, v: np.cbrt(u**2) + np.cbrt(v**2) < 1.15,
        },
        (3, 6),
        1,
    ),
}
SHAPES = "shapes"


class ShapesSource:
    """Images and masks of one split of a set; equal on every machine and in every run.

    Attributes:
        name: `shapes` or `thin-shapes`, as on the command line.
        num_classes: Of a pixel, the background (0) among them.
        classes: Their names.
    """

    def __init__(self, split: Literal["train", "test"], name: str = SHAPES) -> None:
        """Chooses a split; nothing is drawn before it is read."""
        self.name, self.classes = name, ["background", *SETS[name].outlines]
        self.num_classes = len(self.classes)
        self._split = split
        self._drawn: dict[int, tuple[bytes, NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return TRAIN_IMAGES if self._split == "train" else TEST_IMAGES

    def read(self, index: int) -> tuple[bytes, int]:
        """The image as PNG; the label says nothing."""
        return self._draw(index)[0], 0

    def mask(self, index: int) -> NDArray[np.uint8]:
        """The class of every pixel, [64, 64]."""
        return self._draw(index)[1]

    def filename(self, index: int) -> str:
        """A name for messages."""
        return f"{self.name} {self._split} {index}"

    def _draw(self, index: int) -> tuple[bytes, NDArray[np.uint8]]:
        if index not in self._drawn:
            kind, seed = SETS[self.name], (int(self._split == "test"), index)
            pixels, mask = draw(np.random.default_rng((*seed, kind.number) if kind.number else seed), kind)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
            self._drawn[index] = buffer.getvalue(), mask
        return self._drawn[index]


def draw(random: np.random.Generator, kind: ShapeSet) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image [64, 64, 3] and its mask [64, 64] of class indices."""
    fine = SIDE * _FINE
    x, y = np.meshgrid(*[(np.arange(fine) + 0.5) / fine] * 2)
    canvas = _blend(random, x, y)
    classes = np.zeros((fine, fine), dtype=np.uint8)
    fewest, most = kind.shapes
    outlines = [*kind.outlines.values()]
    for _ in range(random.integers(fewest, most + 1)):
        label = int(random.integers(1, len(outlines) + 1))
        radius = random.uniform(0.12, 0.3)
        centre_x, centre_y = random.uniform(0.08, 0.92, 2)
        angle = random.uniform(0, 2 * np.pi)
        u = ((x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)) / radius
        v = ((y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)) / radius
        inside = outlines[label - 1](u, v)
        paint = _colour(random, random.normal(label / len(outlines), HUE_SPREAD)) * np.ones((fine, fine, 1))
        if random.random() < 0.4:
            paint = paint + 0.25 * _stripes(random, x, y)
        canvas = np.where(inside[..., None], paint, canvas)
        classes[inside] = label
    image = canvas.reshape(SIDE, _FINE, SIDE, _FINE, 3).mean((1, 3))
    image += random.normal(0, random.uniform(0.02, 0.08), image.shape)
    centre = _FINE // 2
    return (255 * image.clip(0, 1)).round().astype(np.uint8), classes[centre::_FINE, centre::_FINE].copy()


def _colour(random: np.random.Generator, hue: float) -> Floats:
    return np.array(hsv_to_rgb(hue % 1, random.uniform(0.3, 1), random.uniform(0.4, 1)))


def _blend(random: np.random.Generator, x: Floats, y: Floats) -> Floats:
    first, second = (_colour(random, hue) for hue in random.uniform(0, 1, 2))
    angle = random.uniform(0, 2 * np.pi)
    share = (0.5 + 0.5 * np.sin(2 * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6)))[..., None]
    blended: Floats = share * first + (1 - share) * second + 0.1 * _stripes(random, x, y)
    return blended


def _stripes(random: np.random.Generator, x: Floats, y: Floats) -> Floats:
    angle, waves = random.uniform(0, 2 * np.pi), random.uniform(4, 12)
    stripes: Floats = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))[..., None]
    return stripes
