"""Pair kernels: one pass over memory that joins two neighbours into one token, or spreads one token onto both.

They are each other's gradient, so two kernels serve four jobs: mean and its gradient, unmerge and its gradient.
"""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import channels_last, configs, merged_sides, neighbours, offset, on_device

CONFIGS = configs(
    triton.Config({"BLOCK_ROWS": 8, "BLOCK_CHANNELS": 16}),
    triton.Config({"BLOCK_ROWS": 32, "BLOCK_CHANNELS": 64}, num_warps=4),
    triton.Config({"BLOCK_ROWS": 16, "BLOCK_CHANNELS": 128}, num_warps=4),
    triton.Config({"BLOCK_ROWS": 8, "BLOCK_CHANNELS": 256}, num_warps=4),
    triton.Config({"BLOCK_ROWS": 4, "BLOCK_CHANNELS": 1024}, num_warps=8),
)


@triton.autotune(CONFIGS, key=["channels", "VERTICAL"])
@triton.jit
def reduce_pairs_kernel(
    x,
    out,
    rows,
    tokens,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    VERTICAL: tl.constexpr,
    AVERAGE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write the mean or the sum of two tokens of `x` to each of the `rows` = B·(P + H'·W') tokens of `out`."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    batch = row // tokens
    first, second = neighbours(row % tokens, height, width, prefix, VERTICAL)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    alone = (first == second)[:, None]
    a = tl.load(x + offset(batch, first, stride_batch, stride_token)[:, None] + channel[None, :], mask)
    b = tl.load(x + offset(batch, second, stride_batch, stride_token)[:, None] + channel[None, :], mask & ~alone, 0.0)
    both = a.to(tl.float32) + b.to(tl.float32)
    if AVERAGE:
        both = both * 0.5
    value = tl.where(alone, a.to(tl.float32), both)
    tl.store(out + row.to(tl.int64)[:, None] * channels + channel[None, :], value.to(out.dtype.element_ty), mask)


@triton.autotune(CONFIGS, key=["channels", "VERTICAL"])
@triton.jit
def expand_pairs_kernel(
    x,
    out,
    rows,
    tokens,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    out_stride_batch,
    VERTICAL: tl.constexpr,
    AVERAGE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write each of the `rows` = B·(P + H'·W') tokens of `x`, or half of it, to its two places in `out`: read once."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    batch = row // tokens
    token = row % tokens
    first, second = neighbours(token, height, width, prefix, VERTICAL)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    alone = (first == second)[:, None]
    value = tl.load(x + offset(batch, token, stride_batch, stride_token)[:, None] + channel[None, :], mask)
    if AVERAGE:
        value = tl.where(alone, value.to(tl.float32), value.to(tl.float32) * 0.5).to(value.dtype)
    tl.store(out + offset(batch, first, out_stride_batch, channels)[:, None] + channel[None, :], value, mask)
    tl.store(out + offset(batch, second, out_stride_batch, channels)[:, None] + channel[None, :], value, mask & ~alone)


def reduce_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Join neighbours by mean or sum: `[B, P + H·W, C]` to `[B, P + H'·W', C]`; prefix tokens are copied."""
    x = channels_last(x)
    merged_height, merged_width = merged_sides(height, width, vertical)
    out = x.new_empty(x.shape[0], prefix + merged_height * merged_width, x.shape[2])
    batch, tokens, channels = out.shape
    rows = batch * tokens

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["BLOCK_ROWS"]), triton.cdiv(channels, meta["BLOCK_CHANNELS"])

    with on_device(x):
        reduce_pairs_kernel[grid](
            x, out, rows, tokens, channels, height, width, prefix, x.stride(0), x.stride(1),
            VERTICAL=vertical, AVERAGE=average,
        )  # fmt: skip
    return out


def expand_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Spread tokens, whole or halved, onto both neighbours: `[B, P + H'·W', C]` to `[B, P + H·W, C]`; prefix copied."""
    x = channels_last(x)
    batch, tokens, channels = x.shape
    out = x.new_empty(batch, prefix + height * width, channels)
    rows = batch * tokens

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["BLOCK_ROWS"]), triton.cdiv(channels, meta["BLOCK_CHANNELS"])

    with on_device(x):
        expand_pairs_kernel[grid](
            x, out, rows, tokens, channels, height, width, prefix, x.stride(0), x.stride(1), out.stride(0),
            VERTICAL=vertical, AVERAGE=average,
        )  # fmt: skip
    return out
