"""What the kernels share: where the two neighbours of a merged token lie, LayerNorm of a row, and the device."""

# Inside a kernel an argument is a pointer or a block, outside it a tensor or a number: no type says both.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def neighbours(token, height, width, prefix, VERTICAL: tl.constexpr):
    """Map tokens of the merged sequence to their (first, second) tokens in the unmerged one.

    Prefix tokens, and the last row or column of an odd side, are their own second neighbour: `first == second`.
    """
    patch = tl.maximum(token - prefix, 0)
    if VERTICAL:
        row = patch // width
        column = patch % width
        first = 2 * row * width + column
        second = tl.minimum(2 * row + 1, height - 1) * width + column
    else:
        merged_width = (width + 1) // 2
        row = patch // merged_width
        column = 2 * (patch % merged_width)
        first = row * width + column
        second = row * width + tl.minimum(column + 1, width - 1)
    is_prefix = token < prefix
    return tl.where(is_prefix, token, prefix + first), tl.where(is_prefix, token, prefix + second)


@triton.jit
def offset(batch, token, stride_batch, stride_token):
    """Give the element offset of tokens, in 64 bits: a large batch at 512 px passes 2^31 elements."""
    return batch.to(tl.int64) * stride_batch + token.to(tl.int64) * stride_token


@triton.jit
def normalise(values, mask, channels, eps):
    """Normalise rows `[R, C]` (zero where masked): (normalised, mean, reciprocal deviation)."""
    mean = tl.sum(values, axis=1) / channels
    centred = tl.where(mask, values - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    return centred * rstd[:, None], mean, rstd


def processors(x: Tensor) -> int:
    """Give the number of multiprocessors of the GPU of `x`; 2 in the interpreter."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2


def is_hopper(x: Tensor) -> bool:
    """Tell whether `x` is on a GPU of compute capability 9.0."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9


def merged_sides(height: int, width: int, vertical: bool) -> tuple[int, int]:
    """Give the grid after the merge."""
    return ((height + 1) // 2, width) if vertical else (height, (width + 1) // 2)


def cdiv(a: int, b: int) -> int:
    """Give a ÷ b, rounded up (Triton's own is a traced function, and costs ten times as much)."""
    return -(-a // b)
