"""The gradients of the learned merge: of the tokens, written to both neighbours in place, and of the weights."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import cdiv, merged_sides, neighbours, offset, processors
from dcvit_kernels.launch import Launch, Plans, check_device
from dcvit_kernels.linear import dot_settings, precision, tile_for
from dcvit_kernels.sums import column_sums, partial_sums

# Programs of the weights' gradient for each multiprocessor, over which the pairs are split, and the most splits.
PROGRAMS = 2
MOST_SPLITS = 32


@triton.jit
def tile_rows(tile, patch_tiles, batch_size, patches, prefix, BLOCK_M: tl.constexpr):
    """Map a row tile to (batch, token, mask): first come the tiles of patches, then those of prefix tokens."""
    is_prefix = tile >= patch_tiles
    period = tl.where(is_prefix, prefix, patches)
    row = (tile - tl.where(is_prefix, patch_tiles, 0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    return row // period, tl.where(is_prefix, 0, prefix) + row % period, row < batch_size * period


@triton.jit(do_not_specialize=["batch_size", "patches", "height", "width", "prefix"])
def linear_grad_input_kernel(
    grad,
    weight,
    grad_input,
    batch_size,
    patches,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    out_stride_batch,
    VERTICAL: tl.constexpr,
    ODD: tl.constexpr,
    OPERAND: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write one tile of `grad @ weight` to the first or the second neighbours, or copy the gradient of prefix tokens.

    On an odd side the last token is both neighbours of its pair: the first one's tile then runs over both halves of
    the weight, the second half for those rows only, and the second one's tile leaves them out.
    """
    column_tiles = tl.cdiv(channels, BLOCK_N)
    patch_tiles = tl.cdiv(batch_size * patches, BLOCK_M)
    row_tile = tl.program_id(0) // (2 * column_tiles)
    column_tile = tl.program_id(0) % (2 * column_tiles)
    side = (column_tile >= column_tiles).to(tl.int32)
    column = (column_tile - side * column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_prefix = row_tile >= patch_tiles
    batch, token, row_mask = tile_rows(row_tile, patch_tiles, batch_size, patches, prefix, BLOCK_M)
    first, second = neighbours(token, height, width, prefix, VERTICAL)
    alone = (first == second).to(tl.int32)
    grad_at = offset(batch, token, stride_batch, stride_token)

    depth_tiles = tl.cdiv(channels, BLOCK_K)
    steps = depth_tiles
    if ODD:
        steps = depth_tiles * (2 - side)
    product = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for step in range(tl.where(is_prefix, 0, steps)):
        extra = (step >= depth_tiles).to(tl.int32)
        depth = (step - extra * depth_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
        wanted = row_mask & (alone >= extra)
        upstream = tl.load(grad + grad_at[:, None] + depth[None, :], wanted[:, None] & (depth < channels)[None, :], 0.0)
        weights = tl.load(
            weight + depth[:, None] * (2 * channels) + (side + extra) * channels + column[None, :],
            (depth < channels)[:, None] & (column < channels)[None, :],
            0.0,
        )
        upstream = upstream.to(OPERAND).to(DOT)
        product = tl.dot(upstream, weights.to(DOT), product, input_precision=PRECISION)

    mask = (row_mask & (alone + side < 2))[:, None] & (column < channels)[None, :]
    unprojected = (token < prefix)[:, None]
    copied = tl.load(grad + grad_at[:, None] + column[None, :], mask & unprojected, 0.0).to(tl.float32)
    value = tl.where(unprojected, copied, product).to(grad_input.dtype.element_ty)
    target = first + side * (second - first)
    tl.store(grad_input + offset(batch, target, out_stride_batch, channels)[:, None] + column[None, :], value, mask)


@triton.jit(do_not_specialize=["rows", "patches", "height", "width", "prefix"])
def linear_grad_weight_kernel(
    grad,
    x,
    partial,
    rows,
    patches,
    channels,
    height,
    width,
    prefix,
    grad_stride_batch,
    grad_stride_token,
    stride_batch,
    stride_token,
    VERTICAL: tl.constexpr,
    OPERAND: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum one tile of `gradᵀ @ [first; second]` over this program's share of the pairs, into its row of `partial`.

    A row is a weight and, behind it, a bias, whose gradient the first tiles' programs sum beside.
    """
    column_tiles = tl.cdiv(channels, BLOCK_N)
    row_tile = tl.program_id(0) // (2 * column_tiles)
    column_tile = tl.program_id(0) % (2 * column_tiles)
    side = (column_tile >= column_tiles).to(tl.int32)
    out_channel = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_channel = (column_tile - side * column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    bias = tl.full((BLOCK_M,), 0.0, tl.float32)
    for start in range(tl.program_id(1) * BLOCK_K, rows, tl.num_programs(1) * BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        batch = row // patches
        token = prefix + row % patches
        first, second = neighbours(token, height, width, prefix, VERTICAL)
        grad_at = offset(batch, token, grad_stride_batch, grad_stride_token)
        token_at = offset(batch, first + side * (second - first), stride_batch, stride_token)
        upstream = tl.load(
            grad + grad_at[None, :] + out_channel[:, None],
            (out_channel < channels)[:, None] & (row < rows)[None, :],
            0.0,
        )
        tokens = tl.load(
            x + token_at[:, None] + in_channel[None, :], (row < rows)[:, None] & (in_channel < channels)[None, :], 0.0
        )
        bias += tl.sum(upstream.to(tl.float32), axis=1)
        total = tl.dot(upstream.to(OPERAND).to(DOT), tokens.to(OPERAND).to(DOT), total, input_precision=PRECISION)
    own = partial + tl.program_id(1).to(tl.int64) * (2 * channels + 1) * channels
    place = out_channel[:, None] * (2 * channels) + (side * channels + in_channel)[None, :]
    tl.store(own + place, total, (out_channel < channels)[:, None] & (in_channel < channels)[None, :])
    summed_here = tl.where(column_tile == 0, channels, 0)
    tl.store(own + 2 * channels * channels + out_channel, bias, out_channel < summed_here)


_PLANS = Plans()
Settings = tuple[int, int, bool, int]


def _input_plan(grad: Tensor, weight: Tensor, settings: Settings) -> tuple[tuple[int, int, int], Launch]:
    check_device(grad)
    height, width, vertical, prefix = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    batch, channels = grad.shape[0], grad.shape[2]
    shape = (batch, prefix + height * width, channels)
    tile = tile_for(grad, weight, batch * patches, 2 * channels)
    row_tiles = cdiv(batch * patches, tile.rows) + cdiv(batch * prefix, tile.rows)
    numbers = (
        batch, patches, channels, height, width, prefix, grad.stride(0), grad.stride(1), shape[1] * channels,
    )  # fmt: skip
    odd = bool((height if vertical else width) % 2)
    constants = {"VERTICAL": vertical, "ODD": odd, **dot_settings(weight), **tile.constants}
    grid = (row_tiles * 2 * cdiv(channels, tile.columns),)
    return shape, Launch(linear_grad_input_kernel, grad.get_device(), grid, numbers, constants, tile.warps, tile.stages)


def linear_grad_input(grad: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    """Give the gradient of the tokens `[B, P + H·W, C]` from that of the merged tokens `[B, P + H'·W', C]`."""
    if grad.stride(2) != 1:
        grad = grad.contiguous()
    weight, settings = weight.contiguous(), (height, width, vertical, prefix)
    key = (
        grad.shape, grad.stride(), grad.dtype, weight.dtype, grad.get_device(), settings,
        grad.data_ptr() & 15, weight.data_ptr() & 15, precision(weight),
    )  # fmt: skip
    shape, launch = _PLANS.get(key) or _PLANS.keep(key, _input_plan(grad, weight, settings))
    grad_input = grad.new_empty(shape)
    launch(grad, weight, grad_input)
    return grad_input


def _weight_plan(grad: Tensor, x: Tensor, weight: Tensor, settings: Settings) -> tuple[int, Launch, Launch]:
    check_device(x)
    height, width, vertical, prefix = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    channels, rows, device = x.shape[2], x.shape[0] * patches, x.get_device()
    wide = 2 * cdiv(channels, 64) ** 2
    splits = max(1, min(cdiv(PROGRAMS * processors(x), wide), cdiv(rows, 32), MOST_SPLITS))
    tile = tile_for(x, weight, channels, 2 * channels, splits)
    tiles = cdiv(channels, tile.rows) * 2 * cdiv(channels, tile.columns)
    numbers = (
        rows, patches, channels, height, width, prefix, *grad.stride()[:2], *x.stride()[:2],
    )  # fmt: skip
    constants = {"VERTICAL": vertical, **dot_settings(weight), **tile.constants}
    launch = Launch(linear_grad_weight_kernel, device, (tiles, splits), numbers, constants, tile.warps, tile.stages)
    return splits, launch, column_sums(splits, 2 * channels * channels, channels, device)


def linear_grad_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    bias_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Give the gradients of weight `[C, 2C]`, in its dtype, and bias `[C]`, in `bias_dtype`, summed over all pairs.

    The pairs are split over enough programs to fill the GPU; their partial sums are fp32 and added in a fixed order.
    """
    if grad.stride(2) != 1:
        grad = grad.contiguous()
    if x.stride(2) != 1:
        x = x.contiguous()
    settings = (height, width, vertical, prefix)
    key = (
        grad.shape, grad.stride(), grad.dtype, x.stride(), x.dtype, weight.dtype, bias_dtype, x.get_device(), settings,
        grad.data_ptr() & 15, x.data_ptr() & 15, precision(weight),
    )  # fmt: skip
    splits, launch, sums = _PLANS.get(key) or _PLANS.keep(key, _weight_plan(grad, x, weight, settings))
    channels = x.shape[2]
    partial = partial_sums(x, splits, (2 * channels + 1) * channels)
    launch(grad, x, partial)
    grad_weight = torch.empty((channels, 2 * channels), dtype=weight.dtype, device=x.device)
    grad_bias = torch.empty(channels, dtype=bias_dtype, device=x.device)
    sums(partial, grad_weight, grad_bias)
    return grad_weight, grad_bias
