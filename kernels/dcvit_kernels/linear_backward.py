"""The gradients of the learned merge: of the tokens, written to both neighbours in place, and of the weights."""

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
    offset,
    on_device,
    resident_programs,
)
from dcvit_kernels.linear import CONFIGS, dot_settings, tile_rows

WEIGHT_CONFIGS = configs(
    triton.Config({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),
    triton.Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, num_warps=8, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
    triton.Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=4),
)


@triton.autotune(CONFIGS, key=["tuning_rows", "channels", "VERTICAL", "ODD"])
@triton.jit(do_not_specialize=["tuning_rows"])
def linear_grad_input_kernel(
    grad,
    weight,
    grad_input,
    tuning_rows,  # noqa: ARG001
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


@triton.autotune(WEIGHT_CONFIGS, key=["tuning_rows", "channels", "VERTICAL"])
@triton.jit(do_not_specialize=["tuning_rows"])
def linear_grad_weight_kernel(
    grad,
    x,
    partial,
    tuning_rows,  # noqa: ARG001
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
    """Sum one tile of `gradᵀ @ [first; second]` over this program's share of the pairs, into its slice of `partial`."""
    column_tiles = tl.cdiv(channels, BLOCK_N)
    row_tile = tl.program_id(0) // (2 * column_tiles)
    column_tile = tl.program_id(0) % (2 * column_tiles)
    side = (column_tile >= column_tiles).to(tl.int32)
    out_channel = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_channel = (column_tile - side * column_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
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
        total = tl.dot(upstream.to(OPERAND).to(DOT), tokens.to(OPERAND).to(DOT), total, input_precision=PRECISION)
    place = (tl.program_id(1) * channels + out_channel)[:, None].to(tl.int64) * (2 * channels)
    place += (side * channels + in_channel)[None, :]
    tl.store(partial + place, total, (out_channel < channels)[:, None] & (in_channel < channels)[None, :])


def linear_grad_input(grad: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    """Give the gradient of the tokens `[B, P + H·W, C]` from that of the merged tokens `[B, P + H'·W', C]`."""
    grad, weight = channels_last(grad), weight.contiguous()
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    batch, channels = grad.shape[0], grad.shape[2]
    grad_input = grad.new_empty(batch, prefix + height * width, channels)

    def grid(meta: dict[str, int]) -> tuple[int]:
        row_tiles = triton.cdiv(batch * patches, meta["BLOCK_M"]) + triton.cdiv(batch * prefix, meta["BLOCK_M"])
        return (row_tiles * 2 * triton.cdiv(channels, meta["BLOCK_N"]),)

    with on_device(grad):
        linear_grad_input_kernel[grid](
            grad, weight, grad_input, triton.next_power_of_2(batch * patches), batch, patches, channels,
            height, width, prefix, grad.stride(0), grad.stride(1), grad_input.stride(0),
            VERTICAL=vertical, ODD=bool((height if vertical else width) % 2), **dot_settings(weight),
        )  # fmt: skip
    return grad_input


def linear_grad_weight(
    grad: Tensor, x: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int
) -> tuple[Tensor, Tensor]:
    """Give the gradients of weight `[C, 2C]`, in its dtype, and bias `[C]`, in fp32, summed over all pairs.

    The pairs are split over enough programs to fill the GPU; their partial sums are fp32 and added in a fixed order.
    """
    grad, x = channels_last(grad), channels_last(x)
    merged_height, merged_width = merged_sides(height, width, vertical)
    patches = merged_height * merged_width
    batch, channels = x.shape[0], x.shape[2]
    rows = batch * patches
    tiles = 2 * triton.cdiv(channels, 64) ** 2
    splits = min(triton.cdiv(resident_programs(x), tiles), triton.cdiv(rows, 32), 32)
    partial = torch.empty(splits, channels, 2 * channels, device=x.device, dtype=torch.float32)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(channels, meta["BLOCK_M"]) * 2 * triton.cdiv(channels, meta["BLOCK_N"]), splits

    with on_device(x):
        linear_grad_weight_kernel[grid](
            grad, x, partial, triton.next_power_of_2(rows), rows, patches, channels, height, width, prefix,
            grad.stride(0), grad.stride(1), x.stride(0), x.stride(1),
            VERTICAL=vertical, **dot_settings(weight),
        )  # fmt: skip
    # The bias is a plain column sum, for which PyTorch's reduction already makes one pass at full bandwidth.
    return partial.sum(0).to(weight.dtype), grad[:, prefix:].sum((0, 1), dtype=torch.float32)
