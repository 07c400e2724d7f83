"""Pair kernels: one pass over memory that joins two neighbours into one token, or spreads one token onto both.

They are each other's gradient, so two kernels serve four jobs: mean and its gradient, unmerge and its gradient.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import cdiv, merged_sides, neighbours, offset
from dcvit_kernels.launch import INTERPRETED, Launch, Plans, check_device
from dcvit_kernels.tiles import channel_block

# Two loads of 16 bytes a thread in fp16.
BLOCK_ELEMENTS = 2048
# Numbers that differ from call to call and need no program of their own.
FREE = ["rows", "tokens", "height", "width", "prefix"]


@triton.jit(do_not_specialize=FREE)
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


@triton.jit(do_not_specialize=FREE)
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


_PLANS = Plans()


def _blocks(channels: int) -> dict[str, int]:
    block = 16 if INTERPRETED else channel_block(channels)
    return {"BLOCK_ROWS": 8 if INTERPRETED else BLOCK_ELEMENTS // block, "BLOCK_CHANNELS": block}


def _plan(x: Tensor, settings: tuple[Any, ...], reduce: bool) -> tuple[tuple[int, ...], Launch]:
    """The shape of the result, and the launch."""
    check_device(x)
    height, width, vertical, prefix, average = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    batch, channels = x.shape[0], x.shape[2]
    merged, whole = prefix + merged_height * merged_width, prefix + height * width
    numbers = (batch * merged, merged, channels, height, width, prefix, x.stride(0), x.stride(1))
    constants = {"VERTICAL": vertical, "AVERAGE": average, **_blocks(channels)}
    grid = (cdiv(batch * merged, constants["BLOCK_ROWS"]), cdiv(channels, constants["BLOCK_CHANNELS"]))
    if reduce:
        return (batch, merged, channels), Launch(reduce_pairs_kernel, x.get_device(), grid, numbers, constants)
    return (batch, whole, channels), Launch(
        expand_pairs_kernel, x.get_device(), grid, (*numbers, whole * channels), constants
    )


def _run(x: Tensor, settings: tuple[Any, ...], reduce: bool) -> Tensor:
    strides = x.stride()
    if strides[2] != 1:
        x = x.contiguous()
        strides = x.stride()
    key = (x.shape, strides, x.dtype, x.get_device(), x.data_ptr() & 15, settings, reduce)
    shape, launch = _PLANS.get(key) or _PLANS.keep(key, _plan(x, settings, reduce))
    out = x.new_empty(shape)
    launch(x, out)
    return out


def reduce_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Join neighbours by mean or sum: `[B, P + H·W, C]` to `[B, P + H'·W', C]`; prefix tokens are copied."""
    return _run(x, (height, width, vertical, prefix, average), True)


def expand_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Spread tokens, whole or halved, onto both neighbours: `[B, P + H'·W', C]` to `[B, P + H·W, C]`; prefix copied."""
    return _run(x, (height, width, vertical, prefix, average), False)
