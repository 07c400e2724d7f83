"""The learned merge: a matrix product that reads both neighbours in place, optionally with the next LayerNorm."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import (
    INTERPRETED,
    channels_last,
    configs,
    merged_sides,
    neighbours,
    normalise,
    offset,
    on_device,
)

CONFIGS = configs(
    triton.Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),
    triton.Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, num_warps=4, num_stages=4),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=4),
)
SMALLEST_BLOCK_M = min(config.kwargs["BLOCK_M"] for config in CONFIGS)


@triton.jit
def tile_rows(tile, patch_tiles, batch_size, patches, prefix, BLOCK_M: tl.constexpr):
    """Map a row tile to (batch, token, mask): first come the tiles of patches, then those of prefix tokens."""
    is_prefix = tile >= patch_tiles
    period = tl.where(is_prefix, prefix, patches)
    row = (tile - tl.where(is_prefix, patch_tiles, 0)) * BLOCK_M + tl.arange(0, BLOCK_M)
    return row // period, tl.where(is_prefix, 0, prefix) + row % period, row < batch_size * period


@triton.autotune(CONFIGS, key=["tuning_rows", "channels", "VERTICAL", "NORM"])
@triton.jit(do_not_specialize=["tuning_rows"])
def linear_kernel(
    x,
    weight,
    bias,
    norm_weight,
    norm_bias,
    merged,
    normed,
    mean,
    rstd,
    finished,
    tuning_rows,  # noqa: ARG001 (for the tuner: a coarse count, so that a smaller last batch is not tuned again)
    batch_size,
    patches,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    out_stride_batch,
    eps,
    VERTICAL: tl.constexpr,
    NORM: tl.constexpr,
    OPERAND: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    NORM_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write one BLOCK_M x BLOCK_N tile of the projected pairs, or copy one of prefix tokens.

    With NORM the program that finishes the last tile of some rows normalises them, while they are in the L2 cache.
    """
    column_tiles = tl.cdiv(channels, BLOCK_N)
    patch_tiles = tl.cdiv(batch_size * patches, BLOCK_M)
    # Neighbouring programs share their rows of x; the weights, at most a few MB, stay in the L2 cache anyway.
    row_tile = tl.program_id(0) // column_tiles
    column = (tl.program_id(0) % column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_prefix = row_tile >= patch_tiles
    batch, token, row_mask = tile_rows(row_tile, patch_tiles, batch_size, patches, prefix, BLOCK_M)
    first, second = neighbours(token, height, width, prefix, VERTICAL)
    first_at = offset(batch, first, stride_batch, stride_token)
    to_second = offset(batch, second, stride_batch, stride_token) - first_at

    depth_tiles = tl.cdiv(channels, BLOCK_K)
    product = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    # The depth runs over the first neighbour's channels, then over the second's. Prefix tokens have no product.
    for step in range(tl.where(is_prefix, 0, 2 * depth_tiles)):
        side = (step >= depth_tiles).to(tl.int32)
        depth = (step - side * depth_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
        source = first_at + side * to_second
        tokens = tl.load(x + source[:, None] + depth[None, :], row_mask[:, None] & (depth < channels)[None, :], 0.0)
        weights = tl.load(
            weight + column[None, :] * (2 * channels) + side * channels + depth[:, None],
            (column < channels)[None, :] & (depth < channels)[:, None],
            0.0,
        )
        tokens = tokens.to(OPERAND).to(DOT)
        product = tl.dot(tokens, weights.to(DOT), product, input_precision=PRECISION)

    mask = row_mask[:, None] & (column < channels)[None, :]
    unprojected = (token < prefix)[:, None]
    copied = tl.load(x + first_at[:, None] + column[None, :], mask & unprojected, 0.0).to(tl.float32)
    projected = product + tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    value = tl.where(unprojected, copied, projected).to(merged.dtype.element_ty)
    tl.store(merged + offset(batch, token, out_stride_batch, channels)[:, None] + column[None, :], value, mask)

    if NORM:
        # All stores of this program come before its count, and every other program's before what is loaded below.
        tl.debug_barrier()
        before = tl.atomic_add(finished + row_tile, 1, sem="acq_rel", scope="gpu")
        if before == column_tiles - 1:
            channel = tl.arange(0, BLOCK_CHANNELS)
            scale = tl.load(norm_weight + channel, channel < channels, 0.0).to(tl.float32)
            shift = tl.load(norm_bias + channel, channel < channels, 0.0).to(tl.float32)
            slices: tl.constexpr = BLOCK_M // NORM_ROWS
            for piece in range(row_tile * slices, (row_tile + 1) * slices):
                batches, places, valid = tile_rows(piece, patch_tiles * slices, batch_size, patches, prefix, NORM_ROWS)
                within = valid[:, None] & (channel < channels)[None, :]
                at = offset(batches, places, out_stride_batch, channels)[:, None] + channel[None, :]
                # Past the L1 cache, which other programs' stores do not reach.
                rows = tl.load(merged + at, within, 0.0, cache_modifier=".cg").to(tl.float32)
                scaled, row_mean, row_rstd = normalise(rows, within, channels, eps)
                result = scaled * scale[None, :] + shift[None, :]
                tl.store(normed + at, result.to(normed.dtype.element_ty), within)
                statistic = batches * (prefix + patches) + places
                tl.store(mean + statistic, row_mean, valid)
                tl.store(rstd + statistic, row_rstd, valid)
            # Ready for the next launch on the same counters: the tuner launches many times.
            tl.store(finished + row_tile, 0)


def dot_settings(weight: Tensor) -> dict[str, object]:
    """Give the dtype that operands are rounded to (that of `weight`), the one multiplied in, and the precision of fp32.

    The two dtypes differ in the interpreter only, which would multiply the bit patterns of bfloat16: widening is exact.
    """
    operand = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[weight.dtype]
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {"OPERAND": operand, "DOT": tl.float32 if INTERPRETED else operand, "PRECISION": "tf32" if tf32 else "ieee"}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    norm: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge by the projection: (merged, normalised, mean, reciprocal deviation), the last three empty without `norm`.

    `norm` is (weight, bias, eps) of the LayerNorm that follows. Products are in the dtype of `weight`, sums in fp32.
    """
    x, weight, bias = channels_last(x), weight.contiguous(), bias.contiguous()
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    batch, channels = x.shape[0], x.shape[2]
    merged = x.new_empty(batch, prefix + patches, channels)
    normed = torch.empty_like(merged) if norm else x.new_empty(0)
    stats_shape = merged.shape[:2] if norm else (0,)
    mean, rstd = (torch.empty(stats_shape, device=x.device, dtype=torch.float32) for _ in range(2))
    most_row_tiles = triton.cdiv(batch * patches, SMALLEST_BLOCK_M) + triton.cdiv(batch * prefix, SMALLEST_BLOCK_M)
    finished = torch.zeros(most_row_tiles if norm else 0, device=x.device, dtype=torch.int32)
    norm_weight, norm_bias, eps = norm or (bias, bias, 0.0)
    block_channels = triton.next_power_of_2(channels)

    def grid(meta: dict[str, int]) -> tuple[int]:
        row_tiles = triton.cdiv(batch * patches, meta["BLOCK_M"]) + triton.cdiv(batch * prefix, meta["BLOCK_M"])
        return (row_tiles * triton.cdiv(channels, meta["BLOCK_N"]),)

    with on_device(x):
        linear_kernel[grid](
            x, weight, bias, norm_weight.contiguous(), norm_bias.contiguous(), merged, normed, mean, rstd, finished,
            triton.next_power_of_2(batch * patches), batch, patches, channels, height, width, prefix,
            x.stride(0), x.stride(1), merged.stride(0), eps,
            VERTICAL=vertical, NORM=norm is not None, **dot_settings(weight),
            NORM_ROWS=min(16, max(1, 8192 // block_channels)), BLOCK_CHANNELS=block_channels,
        )  # fmt: skip
    return merged, normed, mean, rstd
