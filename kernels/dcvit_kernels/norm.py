"""LayerNorm kernels: the pair mean fused with the LayerNorm that follows, and the gradient of both."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import (
    channels_last,
    configs,
    merged_sides,
    neighbours,
    normalise,
    offset,
    on_device,
    resident_programs,
)

CONFIGS = configs(
    triton.Config({"BLOCK_ROWS": 4}),
    triton.Config({"BLOCK_ROWS": 1}, num_warps=4),
    triton.Config({"BLOCK_ROWS": 4}, num_warps=4),
    triton.Config({"BLOCK_ROWS": 8}, num_warps=8),
)


@triton.autotune(CONFIGS, key=["channels", "VERTICAL"])
@triton.jit
def mean_norm_kernel(
    x,
    norm_weight,
    norm_bias,
    merged,
    normed,
    mean,
    rstd,
    rows,
    tokens,
    channels,
    height,
    width,
    prefix,
    stride_batch,
    stride_token,
    eps,
    VERTICAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write the pair means and their LayerNorm, with the statistics that the gradient needs."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    batch = row // tokens
    first, second = neighbours(row % tokens, height, width, prefix, VERTICAL)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    alone = (first == second)[:, None]
    a = tl.load(x + offset(batch, first, stride_batch, stride_token)[:, None] + channel[None, :], mask, 0.0)
    b = tl.load(x + offset(batch, second, stride_batch, stride_token)[:, None] + channel[None, :], mask & ~alone, 0.0)
    a32 = a.to(tl.float32)
    # Rounded first: what is normalised is the token that the next block sees, as in the unfused pair.
    value = tl.where(alone, a32, (a32 + b.to(tl.float32)) * 0.5).to(merged.dtype.element_ty)
    scaled, row_mean, row_rstd = normalise(value.to(tl.float32), mask, channels, eps)
    weight = tl.load(norm_weight + channel, channel < channels, 0.0).to(tl.float32)
    bias = tl.load(norm_bias + channel, channel < channels, 0.0).to(tl.float32)
    where = row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(merged + where, value, mask)
    tl.store(normed + where, (scaled * weight[None, :] + bias[None, :]).to(normed.dtype.element_ty), mask)
    tl.store(mean + row, row_mean, row < rows)
    tl.store(rstd + row, row_rstd, row < rows)


@triton.autotune(CONFIGS, key=["channels", "TO_PAIRS"])
@triton.jit
def norm_backward_kernel(
    grad_merged,
    grad_normed,
    merged,
    mean,
    rstd,
    norm_weight,
    grad_input,
    partial_weight,
    partial_bias,
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

    Each program walks over many rows and sums the gradients of the LayerNorm's weight and bias in its own row of
    `partial_*`, which keeps the sum deterministic.
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
        row_mean = tl.load(mean + row, row < rows, 0.0)
        row_rstd = tl.load(rstd + row, row < rows, 0.0)
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
    partial = tl.program_id(0) * channels + channel
    tl.store(partial_weight + partial, tl.sum(sum_weight, axis=0), channel < channels)
    tl.store(partial_bias + partial, tl.sum(sum_bias, axis=0), channel < channels)


def mean_norm(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge by the mean and normalise: (merged, normalised, mean, reciprocal deviation), the statistics in fp32."""
    x = channels_last(x)
    merged_height, merged_width = merged_sides(height, width, vertical)
    merged = x.new_empty(x.shape[0], prefix + merged_height * merged_width, x.shape[2])
    batch, tokens, channels = merged.shape
    rows = batch * tokens
    normed = torch.empty_like(merged)
    mean, rstd = (torch.empty(batch, tokens, device=x.device, dtype=torch.float32) for _ in range(2))
    with on_device(x):
        mean_norm_kernel[lambda meta: (triton.cdiv(rows, meta["BLOCK_ROWS"]),)](
            x, norm_weight.contiguous(), norm_bias.contiguous(), merged, normed, mean, rstd,
            rows, tokens, channels, height, width, prefix, x.stride(0), x.stride(1), eps,
            VERTICAL=vertical, BLOCK_CHANNELS=triton.next_power_of_2(channels),
        )  # fmt: skip
    return merged, normed, mean, rstd


def norm_backward(
    grad_merged: Tensor,
    grad_normed: Tensor,
    merged: Tensor,
    mean: Tensor,
    rstd: Tensor,
    norm_weight: Tensor,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
    to_pairs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of (input, LayerNorm weight, LayerNorm bias).

    The input is the merged tokens or, with `to_pairs`, the tokens before the pair mean.
    """
    grad_merged, grad_normed = channels_last(grad_merged), channels_last(grad_normed)
    batch, tokens, channels = merged.shape
    rows = batch * tokens
    grad_input = merged.new_empty(batch, prefix + height * width if to_pairs else tokens, channels)
    programs = min(rows, resident_programs(merged))
    partial_weight, partial_bias = (
        torch.empty(programs, channels, device=merged.device, dtype=torch.float32) for _ in range(2)
    )
    with on_device(merged):
        norm_backward_kernel[(programs,)](
            grad_merged, grad_normed, merged, mean, rstd, norm_weight.contiguous(),
            grad_input, partial_weight, partial_bias,
            rows, tokens, channels, height, width, prefix,
            grad_merged.stride(0), grad_merged.stride(1), grad_normed.stride(0), grad_normed.stride(1),
            grad_input.stride(0),
            VERTICAL=vertical, TO_PAIRS=to_pairs, BLOCK_CHANNELS=triton.next_power_of_2(channels),
        )  # fmt: skip
    return grad_input, partial_weight.sum(0).to(norm_weight.dtype), partial_bias.sum(0).to(norm_weight.dtype)
