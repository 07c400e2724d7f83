"""LayerNorm kernels: of the merged tokens, fused with the pair mean or behind a product, and the gradient of both."""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import cdiv, merged_sides, neighbours, normalise, offset, processors
from dcvit_kernels.launch import INTERPRETED, Launch, Plans, check_device
from dcvit_kernels.sums import column_sums, partial_sums

# Elements of a program: a row of DeiT-B alone, four of DeiT-T.
BLOCK_ELEMENTS = 1024
# Programs of the gradient for each multiprocessor; each walks over its share of the rows.
PROGRAMS = 4
FREE = ["rows", "tokens", "height", "width", "prefix"]


@triton.jit(do_not_specialize=FREE)
def norm_kernel(
    x,
    norm_weight,
    norm_bias,
    merged,
    normed,
    statistics,
    rows,
    tokens,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    eps,
    JOIN: tl.constexpr,
    KEEP: tl.constexpr,
    VERTICAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write the LayerNorm of the pair means, and the means; without JOIN, of the tokens in `merged` as they are.

    With KEEP `statistics` [2, rows] gets the mean and the reciprocal deviation of each row, which the gradient needs.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    where = row.to(tl.int64)[:, None] * channels + channel[None, :]
    if JOIN:
        batch = row // tokens
        first, second = neighbours(row % tokens, height, width, prefix, VERTICAL)
        alone = (first == second)[:, None]
        a = tl.load(x + offset(batch, first, stride_batch, stride_token)[:, None] + channel[None, :], mask, 0.0)
        second_at = offset(batch, second, stride_batch, stride_token)
        b = tl.load(x + second_at[:, None] + channel[None, :], mask & ~alone, 0.0)
        a32 = a.to(tl.float32)
        # Rounded first: what is normalised is the token that the next block sees, as in the unfused pair.
        value = tl.where(alone, a32, (a32 + b.to(tl.float32)) * 0.5).to(merged.dtype.element_ty)
        tl.store(merged + where, value, mask)
    else:
        value = tl.load(merged + where, mask, 0.0)
    scaled, row_mean, row_rstd = normalise(value.to(tl.float32), mask, channels, eps)
    weight = tl.load(norm_weight + channel, channel < channels, 0.0).to(tl.float32)
    bias = tl.load(norm_bias + channel, channel < channels, 0.0).to(tl.float32)
    tl.store(normed + where, (scaled * weight[None, :] + bias[None, :]).to(normed.dtype.element_ty), mask)
    if KEEP:
        tl.store(statistics + row, row_mean, row < rows)
        tl.store(statistics + rows + row, row_rstd, row < rows)


@triton.jit(do_not_specialize=FREE)
def norm_backward_kernel(
    grad_merged,
    grad_normed,
    merged,
    statistics,
    norm_weight,
    grad_input,
    partial,
    rows,
    tokens,
    channels,
    height,
    width,
    prefix,
    merged_stride_batch,
    merged_stride_token,
    normed_stride_batch,
    normed_stride_token,
    out_stride_batch,
    VERTICAL: tl.constexpr,
    TO_PAIRS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Add the gradient through LayerNorm to that of the residual, for the merged tokens or, halved, both neighbours.

    Each program walks over many rows and sums the gradients of the LayerNorm's weight and bias, one behind the other,
    in its own row of `partial`, which keeps the sum deterministic.
    """
    channel = tl.arange(0, BLOCK_CHANNELS)
    weight = tl.load(norm_weight + channel, channel < channels, 0.0).to(tl.float32)
    sum_weight = tl.full((BLOCK_ROWS, BLOCK_CHANNELS), 0.0, tl.float32)
    sum_bias = tl.full((BLOCK_ROWS, BLOCK_CHANNELS), 0.0, tl.float32)
    for start in range(tl.program_id(0) * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        batch = row // tokens
        token = row % tokens
        mask = (row < rows)[:, None] & (channel < channels)[None, :]
        place = row.to(tl.int64)[:, None] * channels + channel[None, :]
        normed_at = offset(batch, token, normed_stride_batch, normed_stride_token)[:, None] + channel[None, :]
        merged_at = offset(batch, token, merged_stride_batch, merged_stride_token)[:, None] + channel[None, :]
        upstream = tl.load(grad_normed + normed_at, mask, 0.0).to(tl.float32)
        residual = tl.load(grad_merged + merged_at, mask, 0.0).to(tl.float32)
        value = tl.load(merged + place, mask, 0.0).to(tl.float32)
        row_mean = tl.load(statistics + row, row < rows, 0.0)
        row_rstd = tl.load(statistics + rows + row, row < rows, 0.0)
        scaled = tl.where(mask, (value - row_mean[:, None]) * row_rstd[:, None], 0.0)
        weighted = upstream * weight[None, :]
        along = tl.sum(scaled * weighted, axis=1) / channels
        level = tl.sum(weighted, axis=1) / channels
        grad = residual + (weighted - scaled * along[:, None] - level[:, None]) * row_rstd[:, None]
        sum_weight += upstream * scaled
        sum_bias += upstream
        if TO_PAIRS:
            first, second = neighbours(token, height, width, prefix, VERTICAL)
            alone = (first == second)[:, None]
            grad = tl.where(alone, grad, grad * 0.5).to(grad_input.dtype.element_ty)
            tl.store(
                grad_input + offset(batch, first, out_stride_batch, channels)[:, None] + channel[None, :], grad, mask
            )
            tl.store(
                grad_input + offset(batch, second, out_stride_batch, channels)[:, None] + channel[None, :],
                grad,
                mask & ~alone,
            )
        else:
            tl.store(grad_input + place, grad.to(grad_input.dtype.element_ty), mask)
    own = partial + tl.program_id(0) * (2 * channels) + channel
    tl.store(own, tl.sum(sum_weight, axis=0), channel < channels)
    tl.store(own + channels, tl.sum(sum_bias, axis=0), channel < channels)


_PLANS = Plans()
Norm = tuple[Tensor, Tensor, float]


def _blocks(channels: int) -> dict[str, int]:
    block = 1 << (channels - 1).bit_length()
    return {"BLOCK_ROWS": 4 if INTERPRETED else max(1, BLOCK_ELEMENTS // block), "BLOCK_CHANNELS": block}


def norm_launch(
    x: Tensor, shape: tuple[int, int, int], eps: float, settings: tuple[int, int, bool, int], join: bool, keep: bool
) -> Launch:
    """The launch for merged tokens of `shape`; call it with (x, weight, bias, merged, normed, statistics)."""
    height, width, vertical, prefix = settings
    batch, tokens, channels = shape
    constants = {"JOIN": join, "KEEP": keep, "VERTICAL": vertical, **_blocks(channels)}
    numbers = (batch * tokens, tokens, channels, height, width, prefix, x.stride(0), x.stride(1), eps)
    grid = (cdiv(batch * tokens, constants["BLOCK_ROWS"]),)
    return Launch(norm_kernel, x.get_device(), grid, numbers, constants)


def _mean_norm_plan(
    x: Tensor, eps: float, settings: tuple[int, int, bool, int], keep: bool
) -> tuple[tuple[int, int, int], Launch]:
    check_device(x)
    height, width, vertical, prefix = settings
    merged_height, merged_width = merged_sides(height, width, vertical)
    shape = (x.shape[0], prefix + merged_height * merged_width, x.shape[2])
    return shape, norm_launch(x, shape, eps, settings, join=True, keep=keep)


def mean_norm(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge by the mean and normalise: (merged, normalised, statistics).

    The statistics, fp32 `[2, B, P + H'·W']`, are the mean and the reciprocal deviation of each token; what stands there
    without `keep`, when no gradient will be taken, has no meaning.
    """
    strides = x.stride()
    if strides[2] != 1:
        x = x.contiguous()
        strides = x.stride()
    if not (norm_weight.is_contiguous() and norm_bias.is_contiguous()):
        norm_weight, norm_bias = norm_weight.contiguous(), norm_bias.contiguous()
    settings = (height, width, vertical, prefix)
    key = (
        x.shape, strides, x.dtype, norm_weight.dtype, norm_bias.dtype, x.get_device(), x.data_ptr() & 15,
        norm_weight.data_ptr() & 15, norm_bias.data_ptr() & 15, settings, eps, keep,
    )  # fmt: skip
    shape, launch = _PLANS.get(key) or _PLANS.keep(key, _mean_norm_plan(x, eps, settings, keep))
    merged = x.new_empty(shape)
    normed = torch.empty_like(merged)
    statistics = torch.empty((2, *shape[:2]), dtype=torch.float32, device=x.device) if keep else merged
    launch(x, norm_weight, norm_bias, merged, normed, statistics)
    return merged, normed, statistics


def _backward_plan(
    merged: Tensor, grads: tuple[Tensor, Tensor], settings: tuple[int, int, bool, int], to_pairs: bool
) -> tuple[tuple[int, int, int], int, Launch, Launch]:
    """The shape of the gradient, the number of partial sums, and the two launches."""
    check_device(merged)
    height, width, vertical, prefix = settings
    batch, tokens, channels = merged.shape
    rows, device = batch * tokens, merged.get_device()
    shape = (batch, prefix + height * width if to_pairs else tokens, channels)
    programs = min(rows, PROGRAMS * processors(merged))
    numbers = (
        rows, tokens, channels, height, width, prefix, *grads[0].stride()[:2], *grads[1].stride()[:2],
        shape[1] * channels,
    )  # fmt: skip
    constants = {"VERTICAL": vertical, "TO_PAIRS": to_pairs, **_blocks(channels)}
    launch = Launch(norm_backward_kernel, device, (programs,), numbers, constants)
    return shape, programs, launch, column_sums(programs, channels, channels, device)


def norm_backward(
    grad_merged: Tensor,
    grad_normed: Tensor,
    merged: Tensor,
    statistics: Tensor,
    norm_weight: Tensor,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    to_pairs: bool,
    bias_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of (input, LayerNorm weight, LayerNorm bias), the last in `bias_dtype`, else the weight's.

    The input is the merged tokens or, with `to_pairs`, the tokens before the pair mean.
    """
    if grad_merged.stride(2) != 1:
        grad_merged = grad_merged.contiguous()
    if grad_normed.stride(2) != 1:
        grad_normed = grad_normed.contiguous()
    norm_weight, settings = norm_weight.contiguous(), (height, width, vertical, prefix)
    bias_dtype = bias_dtype or norm_weight.dtype
    key: tuple[Any, ...] = (
        merged.shape, merged.dtype, norm_weight.dtype, bias_dtype, merged.get_device(), settings, to_pairs,
        grad_merged.dtype, grad_merged.stride(), grad_merged.data_ptr() & 15,
        grad_normed.dtype, grad_normed.stride(), grad_normed.data_ptr() & 15, norm_weight.data_ptr() & 15,
    )  # fmt: skip
    shape, programs, launch, sums = _PLANS.get(key) or _PLANS.keep(
        key, _backward_plan(merged, (grad_merged, grad_normed), settings, to_pairs)
    )
    grad_input, partial = merged.new_empty(shape), partial_sums(merged, programs, 2 * shape[2])
    launch(grad_merged, grad_normed, merged, statistics, norm_weight, grad_input, partial)
    grad_weight = torch.empty_like(norm_weight)
    grad_bias = torch.empty_like(norm_weight, dtype=bias_dtype)
    sums(partial, grad_weight, grad_bias)
    return grad_input, grad_weight, grad_bias
