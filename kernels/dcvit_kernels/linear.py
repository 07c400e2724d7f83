"""The learned merge: a matrix product that reads both neighbours in place, optionally with the next LayerNorm."""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import cdiv, is_hopper, merged_sides, neighbours, offset, processors
from dcvit_kernels.launch import INTERPRETED, Launch, Plans, check_device
from dcvit_kernels.norm import Norm, norm_launch
from dcvit_kernels.tiles import INTERPRETED_TILE, SHARED_BYTES, SHARED_BYTES_HOPPER, Tile, choose

FREE = ["tiles", "batch_size", "patches", "height", "width", "prefix"]


@triton.jit(do_not_specialize=FREE)
def linear_kernel(
    x,
    weight,
    bias,
    merged,
    tiles,
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
    WHOLE: tl.constexpr,
    FLAT: tl.constexpr,
    OPERAND: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Walk over BLOCK_M x BLOCK_N tiles of the projected pairs, and copy this program's share of the prefix tokens.

    WHOLE: BLOCK_K divides the channels, so that no load has to look where they end.
    """
    column_tiles = tl.cdiv(channels, BLOCK_N)
    rows = batch_size * patches
    depth_tiles = tl.cdiv(channels, BLOCK_K)
    # Neighbouring programs share their rows of x; the weights, at most a few MB, stay in the L2 cache anyway.
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLAT):
        row = (tile // column_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        column = (tile % column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
        # Rows and columns past the end read the last one, and are not stored: no mask in the loop.
        inside = tl.minimum(row, rows - 1)
        batch = inside // patches
        token = prefix + inside % patches
        first, second = neighbours(token, height, width, prefix, VERTICAL)
        first_at = offset(batch, first, stride_batch, stride_token)
        to_second = offset(batch, second, stride_batch, stride_token) - first_at
        weight_at = tl.minimum(column, channels - 1) * (2 * channels)
        product = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
        # The depth runs over the first neighbour's channels, then over the second's.
        for step in tl.range(0, 2 * depth_tiles):
            side = (step >= depth_tiles).to(tl.int32)
            depth = (step - side * depth_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
            at = x + (first_at + side * to_second)[:, None] + depth[None, :]
            weights_at = weight + weight_at[None, :] + (side * channels + depth)[:, None]
            if WHOLE:
                tokens = tl.load(at)
                weights = tl.load(weights_at)
            else:
                tokens = tl.load(at, (depth < channels)[None, :], 0.0)
                weights = tl.load(weights_at, (depth < channels)[:, None], 0.0)
            tokens = tokens.to(OPERAND).to(DOT)
            product = tl.dot(tokens, weights.to(DOT), product, input_precision=PRECISION)
        product += tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
        out_at = merged + offset(batch, token, out_stride_batch, channels)[:, None] + column[None, :]
        mask = (row < rows)[:, None] & (column < channels)[None, :]
        tl.store(out_at, product.to(merged.dtype.element_ty), mask)

    copied = batch_size * prefix
    for start in tl.range(tl.program_id(0) * 8, copied, tl.num_programs(0) * 8):
        row = start + tl.arange(0, 8)
        batch = row // tl.maximum(prefix, 1)
        token = row % tl.maximum(prefix, 1)
        from_at = offset(batch, token, stride_batch, stride_token)
        to_at = offset(batch, token, out_stride_batch, channels)
        for begin in tl.range(0, channels, BLOCK_N):
            column = begin + tl.arange(0, BLOCK_N)
            mask = (row < copied)[:, None] & (column < channels)[None, :]
            value = tl.load(x + from_at[:, None] + column[None, :], mask)
            tl.store(merged + to_at[:, None] + column[None, :], value, mask)


_OPERANDS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_PLANS = Plans()


def precision(weight: Tensor) -> str:
    """How fp32 weights are multiplied, as PyTorch is told to; of no meaning for others."""
    tf32 = weight.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


def dot_settings(weight: Tensor) -> dict[str, object]:
    """Give the dtype that operands are rounded to (that of `weight`), the one multiplied in, and the precision of fp32.

    The two dtypes differ in the interpreter only, which would multiply the bit patterns of bfloat16: widening is exact.
    """
    operand = _OPERANDS[weight.dtype]
    return {"OPERAND": operand, "DOT": tl.float32 if INTERPRETED else operand, "PRECISION": precision(weight)}


def tile_for(x: Tensor, weight: Tensor, rows: int, columns: int, splits: int = 1, hopper: bool = False) -> Tile:
    """The tile for a product of rows x columns whose operands have the dtypes of `x` and `weight`.

    `hopper` lets it be one for compute capability 9.0 alone, where the kernel's registers allow it.
    """
    if INTERPRETED:
        return INTERPRETED_TILE
    sizes = (x.element_size(), weight.element_size())
    return choose(rows, columns, *sizes, processors(x), hopper, splits)


def linear_launch(x: Tensor, weight: Tensor, settings: tuple[int, int, bool, int], tile: Tile | None = None) -> Launch:
    """The launch; call it with (x, weight, bias, merged). `tile` is chosen from the shape unless it is given."""
    height, width, vertical, prefix = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    batch, channels = x.shape[0], x.shape[2]
    rows = batch * patches
    tile = tile or tile_for(x, weight, rows, channels, hopper=is_hopper(x))
    tiles = cdiv(rows, tile.rows) * cdiv(channels, tile.columns)
    shared = SHARED_BYTES_HOPPER if is_hopper(x) else SHARED_BYTES
    resident = 2 if 2 * tile.shared_bytes(x.element_size(), weight.element_size()) <= shared else 1
    numbers = (
        tiles, batch, patches, channels, height, width, prefix, x.stride(0), x.stride(1),
        (prefix + patches) * channels,
    )  # fmt: skip
    constants = {
        "VERTICAL": vertical, "WHOLE": channels % tile.depth == 0, "FLAT": tile.flat,
        **dot_settings(weight), **tile.constants,
    }  # fmt: skip
    grid = (min(tiles, resident * processors(x)),)
    return Launch(linear_kernel, x.get_device(), grid, numbers, constants, tile.warps, tile.stages)


def _plan(
    x: Tensor, weight: Tensor, settings: tuple[int, int, bool, int], eps: float | None, keep: bool = False
) -> tuple[tuple[int, int, int], Launch, Launch | None]:
    check_device(x)
    height, width, vertical, prefix = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    shape = (x.shape[0], prefix + merged_height * merged_width, x.shape[2])
    norm = None if eps is None else norm_launch(x, shape, eps, settings, join=False, keep=keep)
    return shape, linear_launch(x, weight, settings), norm


def _key(x: Tensor, weight: Tensor, bias: Tensor, settings: tuple[int, int, bool, int]) -> tuple[Any, ...]:
    return (
        x.shape, x.stride(), x.dtype, weight.dtype, bias.dtype, x.get_device(), settings,
        x.data_ptr() & 15, weight.data_ptr() & 15, bias.data_ptr() & 15, precision(weight),
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    """Merge by the projection. Products are in the dtype of `weight`, sums in fp32."""
    if x.stride(2) != 1:
        x = x.contiguous()
    if not (weight.is_contiguous() and bias.is_contiguous()):
        weight, bias = weight.contiguous(), bias.contiguous()
    settings = (height, width, vertical, prefix)
    key = _key(x, weight, bias, settings)
    shape, launch, _ = _PLANS.get(key) or _PLANS.keep(key, _plan(x, weight, settings, None))
    merged = x.new_empty(shape)
    launch(x, weight, bias, merged)
    return merged


def linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge by the projection and normalise: (merged, normalised, statistics), as `norm.mean_norm` gives them.

    `norm` is (weight, bias, eps) of the LayerNorm. It is a launch of its own: what it reads is still in the L2 cache,
    and counters by which the last program of some rows could go on with them would have to be cleared by a launch, too.
    """
    if x.stride(2) != 1:
        x = x.contiguous()
    if not (weight.is_contiguous() and bias.is_contiguous()):
        weight, bias = weight.contiguous(), bias.contiguous()
    settings = (height, width, vertical, prefix)
    norm_weight, norm_bias, eps = norm
    if not (norm_weight.is_contiguous() and norm_bias.is_contiguous()):
        norm_weight, norm_bias = norm_weight.contiguous(), norm_bias.contiguous()
    aligned = (norm_weight.data_ptr() & 15, norm_bias.data_ptr() & 15, norm_weight.dtype, norm_bias.dtype, eps, keep)
    key = (*_key(x, weight, bias, settings), *aligned)
    shape, launch, normalise = _PLANS.get(key) or _PLANS.keep(key, _plan(x, weight, settings, eps, keep))
    merged = x.new_empty(shape)
    normed = torch.empty_like(merged)
    statistics = torch.empty((2, *shape[:2]), dtype=torch.float32, device=x.device) if keep else merged
    launch(x, weight, bias, merged)
    normalise(x, norm_weight, norm_bias, merged, normed, statistics)
    return merged, normed, statistics
