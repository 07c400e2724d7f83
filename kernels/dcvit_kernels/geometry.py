"""What the kernels share: where the two neighbours of a merged token lie, LayerNorm of a row, and launching."""

# Inside a kernel an argument is a pointer or a block, outside it a tensor or a number: no type says both.
# mypy: disable-error-code="no-untyped-def"

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton reads TRITON_INTERPRET when it decorates a kernel, so the mode is settled once, at import.
INTERPRETED: bool = triton.knobs.runtime.interpret


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


def configs(interpreted: triton.Config, *native: triton.Config) -> list[triton.Config]:
    """Give the configurations to tune over; the interpreter gets small blocks, so that small tensors span several."""
    return [interpreted] if INTERPRETED else list(native)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of `x` the current one, which is where Triton launches."""
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if INTERPRETED:
        return nullcontext()
    raise RuntimeError(
        f"x is on {x.device}; the kernels need a CUDA tensor (or TRITON_INTERPRET=1 before the first import)"
    )


def resident_programs(x: Tensor) -> int:
    """Give the number of programs that fill the GPU about four times over, for kernels that loop over their work."""
    return 4 * torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 8


def channels_last(x: Tensor) -> Tensor:
    """Return `x` itself if neighbouring channels are neighbours in memory (any other stride will do), else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def merged_sides(height: int, width: int, vertical: bool) -> tuple[int, int]:
    """Give the grid after the merge."""
    return ((height + 1) // 2, width) if vertical else (height, (width + 1) // 2)
