"""The kernels as an eager call takes them: straight to the launch, and through `autograd.Function` where gradients go.

An operator of `torch.library` (see `library.py`) costs ten times as much before its kernel starts. It serves whatever
has to see operators: compilers, dispatch modes, function transforms, and gradients of gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dcvit_kernels import library, linear_backward
from dcvit_kernels import linear as linear_kernels
from dcvit_kernels import norm as norm_kernels
from dcvit_kernels.pairs import expand_pairs, reduce_pairs

Layout = tuple[int, int, bool, int]


class _ReducePairs(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.settings = settings
        return reduce_pairs(x, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        expand = library.expand_pairs if torch.is_grad_enabled() else expand_pairs
        return expand(grad, *ctx.settings), None


class _ExpandPairs(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: tuple[Any, ...]) -> Tensor:
        ctx.settings = settings
        return expand_pairs(x, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        reduce = library.reduce_pairs if torch.is_grad_enabled() else reduce_pairs
        return reduce(grad, *ctx.settings), None


def _linear_gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of (x, weight, bias), each only where it is asked for."""
    needs = ctx.needs_input_grad
    layout: Layout = ctx.layout
    if torch.is_grad_enabled():  # operators refuse what has no gradient of its own, as kernels would not
        return library.linear_gradients(ctx, grad, x, weight, layout)
    grad_x = linear_backward.linear_grad_input(grad, weight, *layout) if needs[0] else None
    if not (needs[1] or needs[2]):
        return grad_x, None, None
    return grad_x, *linear_backward.linear_grad_weight(grad, x, weight, *layout, ctx.bias_dtype)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layout, ctx.bias_dtype = layout, bias.dtype
        return linear_kernels.linear(x, weight, bias, *layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *_linear_gradients(ctx, grad, *ctx.saved_tensors), None


def _norm_gradients(
    ctx: Any, grads: tuple[Tensor, ...], merged: Tensor, statistics: Tensor, weight: Tensor, to_pairs: bool
) -> tuple[Tensor, ...]:
    layout: Layout = ctx.layout
    upstream, of_normed = grads
    if torch.is_grad_enabled():
        grad, grad_weight, grad_bias = library.norm_backward(
            upstream, of_normed, merged, statistics, weight, *layout, to_pairs
        )
        return grad, grad_weight, grad_bias.to(ctx.norm_dtype)
    return norm_kernels.norm_backward(
        upstream, of_normed, merged, statistics, weight, *layout, to_pairs, ctx.norm_dtype
    )


class _MeanNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, layout: Layout) -> Any:
        merged, normed, statistics = norm_kernels.mean_norm(x, weight, bias, eps, *layout)
        ctx.save_for_backward(merged, statistics, weight)
        ctx.layout, ctx.norm_dtype = layout, bias.dtype
        return merged, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        merged, statistics, weight = ctx.saved_tensors
        return *_norm_gradients(ctx, grads, merged, statistics, weight, True), None, None


class _LinearNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,
        layout: Layout,
    ) -> Any:  # fmt: skip
        merged, normed, statistics = linear_kernels.linear_norm(x, weight, bias, (norm_weight, norm_bias, eps), *layout)
        ctx.save_for_backward(x, weight, merged, statistics, norm_weight)
        ctx.layout, ctx.bias_dtype, ctx.norm_dtype = layout, bias.dtype, norm_bias.dtype
        return merged, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, merged, statistics, norm_weight = ctx.saved_tensors
        grad, *norm_grads = _norm_gradients(ctx, grads, merged, statistics, norm_weight, False)
        return *_linear_gradients(ctx, grad, x, weight), *norm_grads, None, None


def _wants_gradient(tensors: tuple[Tensor, ...]) -> bool:
    for tensor in tensors:  # noqa: SIM110 (a loop: `any` over a generator takes a microsecond more)
        if tensor.requires_grad:
            return True
    return False


def merge_mean(x: Tensor, layout: Layout) -> Tensor:
    """Join neighbours by their mean."""
    if x.requires_grad and torch.is_grad_enabled():
        return _ReducePairs.apply(x, (*layout, True))
    return reduce_pairs(x, *layout, True)


def unmerge(x: Tensor, layout: Layout) -> Tensor:
    """Spread each token onto both of its pair."""
    if x.requires_grad and torch.is_grad_enabled():
        return _ExpandPairs.apply(x, (*layout, False))
    return expand_pairs(x, *layout, False)


def merge_linear(x: Tensor, weight: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """Join neighbours by a learned projection."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _Linear.apply(x, weight, bias, layout)
    return linear_kernels.linear(x, weight, bias, *layout)


def merge_mean_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, layout: Layout) -> tuple[Tensor, Tensor]:
    """Join by the mean and normalise: (merged, normalised)."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _MeanNorm.apply(x, weight, bias, eps, layout)
    return norm_kernels.mean_norm(x, weight, bias, eps, *layout, keep=False)[:2]


def merge_linear_norm(
    x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Join by a learned projection and normalise: (merged, normalised)."""
    tensors = (x, weight, bias, norm_weight, norm_bias)
    if torch.is_grad_enabled() and _wants_gradient(tensors):
        return _LinearNorm.apply(*tensors, eps, layout)
    return linear_kernels.linear_norm(x, weight, bias, (norm_weight, norm_bias, eps), *layout, keep=False)[:2]
