"""Undoing token merges: a map of the full patch grid from the tokens that are left (methods: CAIT, dense prediction).

Blocks add to a residual stream, so what a token has gained since its merge is the difference to what it was then. By
default a patch gets its own value from before the merge and that difference: details that the merge averaged away stay,
and nothing is computed on the full grid but a subtraction and an addition (the way in which merged tokens return to the
stream in ToMe for diffusion, arXiv 2303.17604, over many blocks instead of one).

Grids are static, so every way exports as Reshape, Expand, Slice, Sub, Add and MatMul: no Resize, Gather or Scatter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import dcvit_kernels
from dcvit.layers import Merged, TokenMerge
from dcvit.layers.token_grid import TokenGrid
from dcvit.plan import Axis, Unmerge
from dcvit.types import TimmModule


@dataclass(frozen=True)
class MergeStep:
    """One merge: the patch grid (H, W) in front of it, and its axis."""

    grid: tuple[int, int]
    axis: Axis


def merge_steps(model: TimmModule, last_block: int) -> tuple[MergeStep, ...]:
    """The merges on a Vision Transformer that the output of block `last_block` has gone through, in order.

    They are read off the model, so they are right whatever was merged since it was built.
    """
    return tuple(
        MergeStep(child.grid, child.axis)
        for block in model.blocks[: last_block + 1]
        for child in block.children()
        if isinstance(child, TokenMerge)
    )


def undo(
    tokens: Tensor,
    steps: Sequence[MergeStep],
    how: Unmerge = "repeat",
    seen: Sequence[Merged] = (),
    norm: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008 (it has no state)
) -> Tensor:
    """Restores patch tokens to the full grid.

    Args:
        tokens: [B, H'·W', C], without prefix tokens, as the last of the merges left them or blocks made them since.
        steps: The merges, in the order in which they happened.
        how: `repeat` gives every patch the token that it went into; `bilinear` interpolates between their centres;
            `residual` adds what the token has gained since to what the patch was before.
        seen: For `residual`: what went through each merge (`merges_seen`), in the same order.
        norm: Of every token; on the full grid for `residual`, where what a token has gained must be known first.

    Returns:
        [B, H·W, C].
    """
    if how == "residual":
        for step, (before, after) in reversed(list(zip(steps, seen, strict=False))):
            tokens = before + dcvit_kernels.unmerge(tokens - after, step.grid, step.axis, 0)
        return norm(tokens)
    tokens = norm(tokens)
    if how == "bilinear":
        return _interpolate(tokens, steps) if steps else tokens
    for step in reversed(steps):
        tokens = dcvit_kernels.unmerge(tokens, step.grid, step.axis, 0)
    return tokens


def _interpolate(tokens: Tensor, steps: Sequence[MergeStep]) -> Tensor:
    grid = TokenGrid.unmerged(steps[0].grid)
    for step in steps:
        grid = grid.merged(step.axis)
    rows, columns = (interpolation(sizes, tokens) for sizes in (grid.rows, grid.columns))
    height, width = grid.shape
    batch, _, channels = tokens.shape
    down = rows @ tokens.reshape(batch, height, width * channels)
    across = columns @ down.reshape(batch, len(rows), width, channels)
    return across.flatten(1, 2)


def interpolation(sizes: tuple[int, ...], like: Tensor) -> Tensor:
    """The matrix [Σ sizes, n] that interpolates linearly from n cells of the given sizes to cells of size 1.

    A value stands at the centre of its cell; outside the first and last centre it stays constant. For equal sizes this
    is what `torch.nn.functional.interpolate` computes with `align_corners=False`. Device and dtype are those of `like`.
    """
    return torch.tensor(_interpolation(sizes), dtype=like.dtype, device=like.device)


@cache
def _interpolation(sizes: tuple[int, ...]) -> list[list[float]]:
    edges = np.cumsum((0, *sizes))
    centres = (edges[:-1] + edges[1:]) / 2
    cells = np.eye(len(sizes))
    targets = np.arange(edges[-1]) + 0.5
    columns = [np.interp(targets, centres, cell) for cell in cells]
    return [[float(value) for value in row] for row in np.stack(columns, axis=1)]
