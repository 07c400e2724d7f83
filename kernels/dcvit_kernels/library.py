"""The kernels as PyTorch operators, with shapes for tracing (fake) and gradients (autograd).

For compilers, dispatch modes and function transforms; plain eager calls go past them (`eager.py`). `custom_op`, not
`triton_op`: it needs no Triton at import, its body is opaque to tracing (so the host code that sizes a launch runs as
written), and it runs interpreted kernels, which `wrap_triton` refuses. Each body imports its kernels when it is first
called.
"""

# A fake and a setup take the whole signature of their operator, needed or not.
# ruff: noqa: ARG001

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

Grads = tuple[Tensor | None, ...]


def _merged_like(x: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    patches = (height + 1) // 2 * width if vertical else height * ((width + 1) // 2)
    return x.new_empty(x.shape[0], prefix + patches, x.shape[2])


def _unmerged_like(x: Tensor, height: int, width: int, prefix: int) -> Tensor:
    return x.new_empty(x.shape[0], prefix + height * width, x.shape[2])


def _with_statistics(merged: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return merged, torch.empty_like(merged), merged.new_empty(2, *merged.shape[:2], dtype=torch.float32)


@custom_op("dcvit_kernels::reduce_pairs", mutates_args=())
def reduce_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Join neighbouring tokens by their mean or, without `average`, their sum."""
    from dcvit_kernels import pairs

    return pairs.reduce_pairs(x, height, width, vertical, prefix, average)


@custom_op("dcvit_kernels::expand_pairs", mutates_args=())
def expand_pairs(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    """Spread each token, or with `average` half of it, onto both tokens of its pair: the gradient of `reduce_pairs`."""
    from dcvit_kernels import pairs

    return pairs.expand_pairs(x, height, width, vertical, prefix, average)


@reduce_pairs.register_fake
def _(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    return _merged_like(x, height, width, vertical, prefix)


@expand_pairs.register_fake
def _(x: Tensor, height: int, width: int, vertical: bool, prefix: int, average: bool) -> Tensor:
    return _unmerged_like(x, height, width, prefix)


def _keep_settings(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[1:]


def _reduce_backward(ctx: Any, grad: Tensor) -> Grads:
    return expand_pairs(grad, *ctx.settings), None, None, None, None, None


def _expand_backward(ctx: Any, grad: Tensor) -> Grads:
    return reduce_pairs(grad, *ctx.settings), None, None, None, None, None


reduce_pairs.register_autograd(_reduce_backward, setup_context=_keep_settings)
expand_pairs.register_autograd(_expand_backward, setup_context=_keep_settings)


@custom_op("dcvit_kernels::linear_grad_input", mutates_args=())
def linear_grad_input(grad: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    """Give the gradient of the tokens that a learned merge read."""
    from dcvit_kernels import linear_backward

    return linear_backward.linear_grad_input(grad, weight, height, width, vertical, prefix)


@custom_op("dcvit_kernels::linear_grad_weight", mutates_args=())
def linear_grad_weight(
    grad: Tensor, x: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int
) -> tuple[Tensor, Tensor]:
    """Give the gradients of a learned merge's weight and bias, the latter in fp32."""
    from dcvit_kernels import linear_backward

    return linear_backward.linear_grad_weight(grad, x, weight, height, width, vertical, prefix)


@custom_op("dcvit_kernels::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    """Join neighbouring tokens by a learned projection."""
    from dcvit_kernels import linear as kernels

    return kernels.linear(x, weight, bias, height, width, vertical, prefix)


@linear_grad_input.register_fake
def _(grad: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    return _unmerged_like(grad, height, width, prefix)


@linear_grad_weight.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, height: int, width: int, vertical: bool, prefix: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(weight.shape[0], dtype=torch.float32)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, vertical: bool, prefix: int) -> Tensor:
    return _merged_like(x, height, width, vertical, prefix)


def linear_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Grads:
    """Give the gradients of (x, weight, bias), each only where it is asked for."""
    grad_x = linear_grad_input(grad, weight, *settings) if ctx.needs_input_grad[0] else None
    if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        return grad_x, None, None
    grad_weight, grad_bias = linear_grad_weight(grad, x, weight, *settings)
    return grad_x, grad_weight, grad_bias.to(ctx.bias_dtype)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *settings = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = bias.dtype
    ctx.settings = tuple(settings)


def _linear_backward(ctx: Any, grad: Tensor) -> Grads:
    x, weight = ctx.saved_tensors
    return *linear_gradients(ctx, grad, x, weight, ctx.settings), None, None, None, None


linear.register_autograd(_linear_backward, setup_context=_linear_setup)


@custom_op("dcvit_kernels::mean_norm", mutates_args=())
def mean_norm(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Join by the mean and normalise: (merged, normalised, statistics), the last fp32 `[2, B, N]`."""
    from dcvit_kernels import norm

    return norm.mean_norm(x, norm_weight, norm_bias, eps, height, width, vertical, prefix)


@custom_op("dcvit_kernels::linear_norm", mutates_args=())
def linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    height: int,
    width: int,
    vertical: bool,
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Join by a learned projection and normalise: (merged, normalised, statistics)."""
    from dcvit_kernels import linear as kernels

    return kernels.linear_norm(x, weight, bias, (norm_weight, norm_bias, eps), height, width, vertical, prefix)


@custom_op("dcvit_kernels::norm_backward", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of (merged tokens or, with `to_pairs`, the tokens before the mean; norm weight; norm bias)."""
    from dcvit_kernels import norm

    return norm.norm_backward(
        grad_merged, grad_normed, merged, statistics, norm_weight, height, width, vertical, prefix, to_pairs
    )


@mean_norm.register_fake
def _(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, *grid: Any) -> Any:
    return _with_statistics(_merged_like(x, *grid))


@linear_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, *grid: Any) -> Any:
    return _with_statistics(_merged_like(x, *grid))


@norm_backward.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor]:
    grad_input = _unmerged_like(merged, height, width, prefix) if to_pairs else torch.empty_like(merged)
    return grad_input, torch.empty_like(norm_weight), torch.empty_like(norm_weight)


def _mean_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    merged, _, statistics = output
    ctx.save_for_backward(merged, statistics, inputs[1])
    ctx.settings = inputs[4:]


def _mean_norm_backward(ctx: Any, grad_merged: Tensor, grad_normed: Tensor, _: Tensor | None) -> Grads:
    grads = norm_backward(grad_merged, grad_normed, *ctx.saved_tensors, *ctx.settings, True)
    return *grads, None, None, None, None, None


def _linear_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, norm_weight, _, _, *settings = inputs
    merged, _, statistics = output
    ctx.save_for_backward(x, weight, merged, statistics, norm_weight)
    ctx.bias_dtype = bias.dtype
    ctx.settings = tuple(settings)


def _linear_norm_backward(ctx: Any, grad_merged: Tensor, grad_normed: Tensor, _: Tensor | None) -> Grads:
    x, weight, *saved = ctx.saved_tensors
    grad, *norm_grads = norm_backward(grad_merged, grad_normed, *saved, *ctx.settings, False)
    return *linear_gradients(ctx, grad, x, weight, ctx.settings), *norm_grads, None, None, None, None, None


mean_norm.register_autograd(_mean_norm_backward, setup_context=_mean_norm_setup)
linear_norm.register_autograd(_linear_norm_backward, setup_context=_linear_norm_setup)
