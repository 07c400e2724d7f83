"""The public functions: each picks the Triton kernel or the plain reference by itself.

Kernels run on CUDA tensors in fp32, fp16 and bf16. Everything else is the reference's: other devices and dtypes, empty
batches, a missing Triton, kernels turned off, and every export, so that exported graphs hold plain operators only.

An eager call goes straight to its launch. Under `torch.compile` what only moves tokens is the reference's too: Inductor
fuses it with its neighbours, which an operator of ours would keep apart. Products stay operators, whose kernels spare
the copy that a library's product would need of its operands.
"""

import os
from functools import cache, lru_cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from dcvit_kernels import library, reference
from dcvit_kernels.reference import Axis, merged_grid

__all__ = ["merge_linear", "merge_linear_norm", "merge_mean", "merge_mean_norm", "unmerge", "use_kernels"]

_HAS_TRITON = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, torch.nn.Parameter)
_modes, _transforms, _is_tracing = (
    torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active, torch._C._is_tracing,
)  # fmt: skip
_enabled = os.environ.get("DCVIT_KERNELS", "1") != "0"


class use_kernels:  # noqa: N801 (a switch like torch.no_grad)
    """Turn the kernels on or off, at once, as `torch.set_grad_enabled` does; as a context manager, for its block only.

    With the environment variable DCVIT_KERNELS=0 they start turned off.
    """

    def __init__(self, enabled: bool) -> None:
        """Set the switch."""
        global _enabled
        self._before, _enabled = _enabled, enabled

    def __enter__(self) -> "use_kernels":
        """Enter the block; the switch is already set."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the switch back to where it was before this object was made."""
        global _enabled
        _enabled = self._before


def _takes_kernels(x: Tensor) -> bool:
    """Tell whether the device of `x` runs the kernels; the tests also let interpreted kernels on CPU through here."""
    return x.is_cuda


def _use_kernels(x: Tensor) -> bool:
    supported = _HAS_TRITON and x.dtype in _DTYPES and _takes_kernels(x) and x.numel() > 0
    return supported and _enabled and not (_is_tracing() or torch.compiler.is_exporting())


def _is_eager(*tensors: Tensor) -> bool:
    """Tell whether nothing has to see an operator: no compiler, no subclass of Tensor, no mode, no transform."""
    if torch.compiler.is_compiling() or _modes() or _transforms():
        return False
    # A loop: `all` over a generator takes a microsecond more.
    for tensor in tensors:  # noqa: SIM110
        if type(tensor) not in _PLAIN:
            return False
    return True


@cache
def _eager() -> ModuleType:
    """The module that launches; it imports Triton."""
    from dcvit_kernels import eager

    return eager


def _layout(shape: torch.Size, grid: tuple[int, int], axis: Axis, prefix: int) -> tuple[int, int, bool, int]:
    """Check the tokens before a merge, and give (height, width, vertical, prefix), which every operator takes."""
    merged_grid(grid, axis)  # an unknown axis is refused here too
    reference.check_tokens(shape, grid, prefix)
    return *grid, axis == "vertical", prefix


def _merged_layout(shape: torch.Size, grid: tuple[int, int], axis: Axis, prefix: int) -> tuple[int, int, bool, int]:
    """The same for tokens that are merged already; `grid` is the one before."""
    reference.check_tokens(shape, merged_grid(grid, axis), prefix)
    return *grid, axis == "vertical", prefix


# What has been checked once need not be again: eager calls come with the same shapes.
_known_layout = lru_cache(4096)(_layout)
_known_merged_layout = lru_cache(4096)(_merged_layout)


def _linear_operands(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor] | None:
    """Give weight and bias as the linear kernels want them, or None where the reference has to run (or to complain).

    Under autocast only the small weight is cast: the kernel rounds tokens as it reads them, so x needs no second copy.
    """
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(torch.get_autocast_dtype(x.device.type))
    elif weight.dtype != x.dtype:
        return None
    fits = weight.shape == (x.shape[2], 2 * x.shape[2]) and bias.shape == x.shape[2:]
    return (weight, bias) if fits and weight.dtype in _DTYPES else None


def merge_mean(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Merge neighbouring tokens by their mean.

    Args:
        x: tokens `[B, P + H·W, C]`: P prefix tokens, then the patch tokens row by row.
        grid: (H, W).
        axis: "horizontal" merges columns 2j and 2j+1 of a row, "vertical" rows 2i and 2i+1. The last row or column
            of an odd side merges with itself.
        num_prefix_tokens: P; prefix tokens are copied unchanged.

    Returns:
        `[B, P + H'·W', C]` with (H', W') = `merged_grid(grid, axis)`.

    Raises:
        ValueError: `x` does not have the shape the grid asks for, or the axis is unknown.

    Source: CAIT (arXiv 2309.15755), as in methods.md section 4.1.
    """
    if _use_kernels(x):
        if _is_eager(x):
            return _eager().merge_mean(x, _known_layout(x.shape, grid, axis, num_prefix_tokens))
        if not torch.compiler.is_compiling():
            return library.reduce_pairs(x, *_layout(x.shape, grid, axis, num_prefix_tokens), True)
    return reference.merge_mean(x, grid, axis, num_prefix_tokens)


def merge_linear(
    x: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int
) -> Tensor:
    """Merge neighbouring tokens by a learned projection: `weight @ [first; second] + bias`.

    `weight` is `[C, 2C]`, its first C columns for the left or upper token; `bias` is `[C]`.
    The rest is as in `merge_mean`.
    """
    if _use_kernels(x) and (operands := _linear_operands(x, weight, bias)):
        if _is_eager(x, *operands):
            return _eager().merge_linear(x, *operands, _known_layout(x.shape, grid, axis, num_prefix_tokens))
        return library.linear(x, *operands, *_layout(x.shape, grid, axis, num_prefix_tokens))
    return reference.merge_linear(x, weight, bias, grid, axis, num_prefix_tokens)


def merge_mean_norm(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    grid: tuple[int, int],
    axis: Axis,
    num_prefix_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Merge by the mean and normalise: (merged, LayerNorm(merged)), prefix tokens normalised too.

    `norm_weight` and `norm_bias` are `[C]`. The rest is as in `merge_mean`.
    """
    if _use_kernels(x):
        norm = (norm_weight, norm_bias)
        if _is_eager(x, *norm):
            layout = _known_layout(x.shape, grid, axis, num_prefix_tokens)
            return _eager().merge_mean_norm(x, *norm, eps, layout)
        if not torch.compiler.is_compiling():
            return library.mean_norm(x, *norm, eps, *_layout(x.shape, grid, axis, num_prefix_tokens))[:2]
    merged = reference.merge_mean(x, grid, axis, num_prefix_tokens)
    return merged, reference.normalise(merged, norm_weight, norm_bias, eps)


def merge_linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    grid: tuple[int, int],
    axis: Axis,
    num_prefix_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Merge as `merge_linear` and normalise as `merge_mean_norm`: (merged, LayerNorm(merged))."""
    if _use_kernels(x) and (operands := _linear_operands(x, weight, bias)):
        tensors = (x, *operands, norm_weight, norm_bias)
        if _is_eager(*tensors):
            layout = _known_layout(x.shape, grid, axis, num_prefix_tokens)
            return _eager().merge_linear_norm(*tensors, eps, layout)
        return library.linear_norm(*tensors, eps, *_layout(x.shape, grid, axis, num_prefix_tokens))[:2]
    merged = reference.merge_linear(x, weight, bias, grid, axis, num_prefix_tokens)
    return merged, reference.normalise(merged, norm_weight, norm_bias, eps)


def unmerge(x: Tensor, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int) -> Tensor:
    """Undo a merge by repeating tokens (`repeat_interleave` in 2-D), cropped for an odd side.

    Args:
        x: merged tokens `[B, P + H'·W', C]`.
        grid: (H, W) before the merge, which is to be restored.
        axis: the axis of that merge.
        num_prefix_tokens: P; prefix tokens are copied unchanged.

    Returns:
        `[B, P + H·W, C]`.

    Raises:
        ValueError: `x` does not have the shape the grid asks for, or the axis is unknown.

    Source: methods.md section 4.2.
    """
    if _use_kernels(x):
        if _is_eager(x):
            return _eager().unmerge(x, _known_merged_layout(x.shape, grid, axis, num_prefix_tokens))
        if not torch.compiler.is_compiling():
            return library.expand_pairs(x, *_merged_layout(x.shape, grid, axis, num_prefix_tokens), False)
    return reference.unmerge(x, grid, axis, num_prefix_tokens)
