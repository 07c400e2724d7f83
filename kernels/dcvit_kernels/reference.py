"""Asymmetric token merging in plain PyTorch: the one definition of the mathematics (methods.md, section 4.1).

It runs on CPU, wherever a model is exported, and as the float64 yardstick of the kernels. Only slices, reshapes,
transposes, expands, concatenations, matrix products and means are used, so an exported graph is static and holds no
Gather, Scatter, NonZero or TopK.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Axis = Literal["horizontal", "vertical"]


def merged_grid(grid: tuple[int, int], axis: Axis) -> tuple[int, int]:
    """Give the patch grid (height, width) after one merge: the merged side is halved, rounded up.

    Raises:
        ValueError: `axis` is neither "horizontal" nor "vertical".
    """
    height, width = grid
    if axis == "horizontal":
        return height, (width + 1) // 2
    if axis == "vertical":
        return (height + 1) // 2, width
    raise ValueError(f"axis is {axis!r}; it must be 'horizontal' or 'vertical'")


def check_tokens(shape: torch.Size, grid: tuple[int, int], num_prefix_tokens: int) -> None:
    """Raise ValueError unless `shape` is `[B, P + H·W, C]` for the grid (H, W) and P prefix tokens."""
    if len(shape) != 3 or shape[1] != num_prefix_tokens + grid[0] * grid[1]:
        raise ValueError(
            f"x has shape {tuple(shape)}; {num_prefix_tokens} prefix tokens and a {grid[0]}x{grid[1]} grid "
            f"need [B, {num_prefix_tokens + grid[0] * grid[1]}, C]"
        )


def _split(x: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Split into prefix and patch tokens; `split` has a cheaper backward than two slices (no zero-filled copies)."""
    if not num_prefix_tokens:
        return x[:, :0], x
    prefix, tokens = x.split([num_prefix_tokens, x.shape[1] - num_prefix_tokens], dim=1)
    return prefix, tokens


def _pairs(tokens: Tensor, grid: tuple[int, int], axis: Axis) -> Tensor:
    """View patch tokens `[B, H·W, C]` as pairs: `[B, H, W/2, 2, C]` (horizontal) or `[B, H/2, 2, W, C]` (vertical)."""
    merged_height, merged_width = merged_grid(grid, axis)
    if axis == "vertical":
        if grid[0] % 2:
            tokens = torch.cat([tokens, tokens[:, -grid[1] :]], dim=1)
        return tokens.unflatten(1, (merged_height, 2, merged_width))
    if grid[1] % 2:
        rows = tokens.unflatten(1, grid)
        tokens = torch.cat([rows, rows[:, :, -1:]], dim=2).flatten(1, 2)
    return tokens.unflatten(1, (merged_height, merged_width, 2))


def _join(prefix: Tensor, grid_tokens: Tensor) -> Tensor:
    """Put the untouched prefix tokens before patch tokens `[B, H, W, C]`."""
    tokens = grid_tokens.flatten(1, 2)
    return torch.cat([prefix, tokens], dim=1) if prefix.shape[1] else tokens


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert where autocast changed the dtype only: even an idle conversion would stand in an exported graph."""
    return x if x.dtype == dtype else x.to(dtype)


def merge_mean(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Replace each pair of neighbouring tokens by its mean: `[B, P + H·W, C]` to `[B, P + H'·W', C]`."""
    check_tokens(x.shape, grid, num_prefix_tokens)
    prefix, tokens = _split(x, num_prefix_tokens)
    return _join(prefix, _pairs(tokens, grid, axis).mean(dim=3 if axis == "horizontal" else 2))


def merge_linear(
    x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int
) -> Tensor:
    """Replace each pair of neighbouring tokens by `weight @ [first; second] + bias`, weight `[C, 2C]`.

    The result has the dtype of `x`, under autocast too: it stays the residual stream it was.
    """
    check_tokens(x.shape, grid, num_prefix_tokens)
    prefix, tokens = _split(x, num_prefix_tokens)
    pairs = _pairs(tokens, grid, axis)
    if axis == "vertical":
        pairs = pairs.transpose(2, 3)
    # Horizontal neighbours lie side by side in memory, so this flatten is a view; vertical ones are copied once.
    return _join(prefix, _cast(F.linear(pairs.flatten(3), weight, bias), x.dtype))


def normalise(merged: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    """Apply LayerNorm over the channels, in the dtype of `merged`."""
    return _cast(F.layer_norm(merged, norm_weight.shape, norm_weight, norm_bias, eps), merged.dtype)


def unmerge(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Repeat every token along `axis`, cropped for an odd side: `[B, P + H'·W', C]` to `[B, P + H·W, C]`."""
    merged = merged_grid(grid, axis)
    check_tokens(x.shape, merged, num_prefix_tokens)
    prefix, tokens = _split(x, num_prefix_tokens)
    rows = tokens.unflatten(1, merged)
    # An expand is copied once, by the flatten, and exports without the index tensor of repeat_interleave.
    dim = 2 if axis == "horizontal" else 1
    sizes = [-1] * 5
    sizes[dim + 1] = 2
    repeated = rows.unsqueeze(dim + 1).expand(sizes).flatten(dim, dim + 1)
    return _join(prefix, repeated[:, : grid[0], : grid[1]])
