"""Segmentation heads: class scores for every pixel, from feature maps of one or several blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.dense.unmerge import interpolation
from dcvit.plan import HeadPlan

DEFAULT_LEVELS = 4


def head_levels(head: HeadPlan, depth: int) -> list[int]:
    """The blocks that a head reads in a model of `depth` blocks; the last is always among them.

    Raises:
        ValueError: If the model has no such block, or the blocks behind the last level would be dead weight.
    """
    if head.kind == "linear":
        return [depth - 1]
    if head.levels is None:
        count = min(DEFAULT_LEVELS, depth)
        return [(level + 1) * depth // count - 1 for level in range(count)]
    if head.levels[-1] != depth - 1:
        raise ValueError(f"the last level must be the last block, {depth - 1}, and is {head.levels[-1]}")
    return list(head.levels)


class SegmentationHead(nn.Module):
    """A 1×1 convolution on the map of the last block, or on the sum of projected maps of several.

    Args:
        dim: Channels C of every map.
        grid: Their size (H, W).
        input_size: Of the images, (height, width) in pixels.
        plan: Kind, classes, and width.
        levels: The blocks whose maps it gets.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], input_size: tuple[int, int], plan: HeadPlan, levels: Sequence[int]
    ) -> None:
        super().__init__()
        self.plan, self.levels = plan, list(levels)
        several = plan.kind == "multi-level"
        self.project = nn.ModuleList(nn.Conv2d(dim, plan.width, 1) for _ in levels if several)
        self.predict = nn.Conv2d(plan.width if several else dim, plan.num_classes, 1)
        self.upsample = Upsample(grid, input_size)

    def of_patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Class scores of every patch, [B, classes, H, W], from one map [B, C, H, W] a level."""
        if not self.project:
            (features,) = maps
        else:
            projected = [project(each) for project, each in zip(self.project, maps, strict=True)]
            features = F.gelu(sum(projected[1:], start=projected[0]))
        scores: Tensor = self.predict(features)
        return scores

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Class scores of every pixel, [B, classes, height, width]."""
        scores: Tensor = self.upsample(self.of_patches(maps))
        return scores


class Upsample(nn.Module):
    """Bilinear interpolation from one fixed size (H, W) to another, as two products with fixed matrices.

    It computes what `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does, and exports as MatMul
    where that exports as Resize.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], output_size: tuple[int, int]) -> None:
        super().__init__()
        for name, small, large in zip(("rows", "columns"), size, output_size, strict=True):
            if large % small:
                raise ValueError(f"{large} pixels are no multiple of {small} patches")
            matrix = interpolation((large // small,) * small, torch.empty(0))
            self.register_buffer(name, matrix if name == "rows" else matrix.T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K, H, W] to [B, K, height, width]."""
        return self.rows @ (x @ self.columns)
