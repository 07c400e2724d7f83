"""The grid of patch tokens as merging shrinks it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from dcvit.plan import Axis, Merge
from dcvit.types import TimmModule


@dataclass(frozen=True)
class TokenGrid:
    """How many original rows and columns each row and column of the grid stands for.

    Merging is separable, so the token at (i, j) stands for `rows[i] · columns[j]` original patches.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def unmerged(cls, shape: tuple[int, int]) -> "TokenGrid":
        """A grid of the given (H, W) in which every token is one patch."""
        height, width = shape
        return cls((1,) * height, (1,) * width)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.rows), len(self.columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Patches that each token stands for, H·W numbers, row by row."""
        return tuple(row * column for row in self.rows for column in self.columns)

    def merged(self, axis: Axis) -> "TokenGrid":
        """The grid after one merge; the last row or column of an odd side merges with itself and counts once."""
        if axis == "horizontal":
            return TokenGrid(self.rows, _pairs(self.columns))
        return TokenGrid(_pairs(self.rows), self.columns)


def grids(shape: tuple[int, int], merges: tuple[Merge, ...], depth: int) -> Iterator[TokenGrid]:
    """The grid in front of each of `depth` blocks."""
    grid = TokenGrid.unmerged(shape)
    for index in range(depth):
        yield grid
        for merge in merges:
            if merge.after == index + 1:
                grid = grid.merged(merge.axis)


def patch_grid(model: TimmModule) -> tuple[int, int]:
    """(H, W) in front of the first block; `dynamic_img_pad` fills up the last row and column of patches."""
    patches = model.patch_embed
    if not patches.dynamic_img_pad:
        return cast(tuple[int, int], tuple(patches.grid_size))
    height, width = getattr(patches, "feature_size", patches.img_size)
    return -(-height // patches.patch_size[0]), -(-width // patches.patch_size[1])


def _pairs(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(sizes[start : start + 2]) for start in range(0, len(sizes), 2))
