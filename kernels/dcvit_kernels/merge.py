"""The public functions: each picks the Triton kernel or the plain reference by itself."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from dcvit_kernels import reference
from dcvit_kernels.reference import Axis, merged_grid

__all__ = ["merge_linear", "merge_linear_norm", "merge_mean", "merge_mean_norm", "unmerge", "use_kernels"]

_enabled = os.environ.get("DCVIT_KERNELS", "1") != "0"


class use_kernels:
    """Turn the kernels on or off, at once, as `torch.set_grad_enabled` does; as a context manager, for its block only.

    With the environment variable DCVIT_KERNELS=0 they start turned off.
    """

    def __init__(self, enabled: bool) -> None:
        """Set the switch."""
        global _enabled
        self._before, _enabled = _enabled, enabled

    def __enter__(self) -> "use_kernels":
        """Enter the block; the switch is already set."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the switch back to where it was before this object was made."""
        global _enabled
        _enabled = self._before


def merge_mean(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Merge neighbouring tokens by their mean.

    Args:
        x: tokens `[B, P + H·W, C]`: P prefix tokens, then the patch tokens row by row.
        grid: (H, W).
        axis: "horizontal" merges columns 2j and 2j+1 of a row, "vertical" rows 2i and 2i+1. The last row or column
            of an odd side merges with itself.
        num_prefix_tokens: P; prefix tokens are copied unchanged.

    Returns:
        `[B, P + H'·W', C]` with (H', W') = `merged_grid(grid, axis)`.

    Raises:
        ValueError: `x` does not have the shape the grid asks for, or the axis is unknown.

    Source: CAIT (arXiv 2309.15755), as in methods.md section 4.1.
    """
    return reference.merge_mean(x, grid, axis, num_prefix_tokens)


def merge_linear(
    x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int
) -> Tensor:
    """Merge neighbouring tokens by a learned projection: `weight @ [first; second] + bias`.

    `weight` is `[C, 2C]`, its first C columns for the left or upper token; `bias` is `[C]`. The rest is as in `merge_mean`.
    """
    return reference.merge_linear(x, weight, bias, grid, axis, num_prefix_tokens)


def merge_mean_norm(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    grid: tuple[int, int],
    axis: Axis,
    num_prefix_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Merge by the mean and normalise: (merged, LayerNorm(merged)), prefix tokens normalised too.

    `norm_weight` and `norm_bias` are `[C]`. The rest is as in `merge_mean`.
    """
    merged = merge_mean(x, grid, axis, num_prefix_tokens)
    return merged, reference.normalise(merged, norm_weight, norm_bias, eps)


def merge_linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    grid: tuple[int, int],
    axis: Axis,
    num_prefix_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Merge by the projection of `merge_linear` and normalise: (merged, LayerNorm(merged)), prefix tokens normalised too."""
    merged = merge_linear(x, weight, bias, grid, axis, num_prefix_tokens)
    return merged, reference.normalise(merged, norm_weight, norm_bias, eps)


def unmerge(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Undo a merge by repeating tokens (`repeat_interleave` in 2-D), cropped for an odd side.

    Args:
        x: merged tokens `[B, P + H'·W', C]`.
        grid: (H, W) before the merge, which is to be restored.
        axis: the axis of that merge.
        num_prefix_tokens: P; prefix tokens are copied unchanged.

    Returns:
        `[B, P + H·W, C]`.

    Raises:
        ValueError: `x` does not have the shape the grid asks for, or the axis is unknown.

    Source: methods.md section 4.2.
    """
    return reference.unmerge(x, grid, axis, num_prefix_tokens)
