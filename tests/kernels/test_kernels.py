"""The kernels, forward and backward, against the float64 reference, over shapes, dtypes and memory layouts.

Every buffer that a kernel has to fill holds NaN beforehand (PyTorch does that in deterministic mode), so an element
that is not written is an error of size NaN.

The allowed error is the classic bound, element by element. A sum of n products in fp32 is off by at most about
n·2^-24·Σ|a·b|, and Σ|a·b| is what the same function gives for the absolute values of its inputs; storing rounds once
more, by half a unit of the output's dtype. Nothing is tuned.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcvit_kernels import library, reference
from dcvit_kernels.geometry import offset
from dcvit_kernels.launch import INTERPRETED

# The interpreter cuts bfloat16 off where a GPU rounds, so there the last unit counts whole.
HALF_UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8}
SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    batch: int
    grid: tuple[int, int]
    axis: str
    prefix: int
    channels: int
    dtype: torch.dtype
    layout: str

    @property
    def settings(self) -> tuple[int, int, bool, int]:
        return *self.grid, self.axis == "vertical", self.prefix

    @property
    def reference(self) -> tuple[tuple[int, int], str, int]:
        return self.grid, self.axis, self.prefix

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def merged_tokens(self) -> int:
        height, width = reference.merged_grid(self.grid, self.axis)
        return self.prefix + height * width


cases = st.builds(
    Case,
    batch=st.integers(1, 2),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    axis=st.sampled_from(["horizontal", "vertical"]),
    prefix=st.sampled_from([0, 1, 2, 5]),
    channels=st.integers(1, 24),
    dtype=st.sampled_from(list(HALF_UNIT)),
    layout=st.sampled_from(["contiguous", "tokens cut out", "channels cut out", "channels first"]),
)


def check_over(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        # On a GPU each dtype and layout of an example is compiled anew, which is what takes the time there.
        count = examples if INTERPRETED else 6
        return settings(derandomize=True, deadline=None, max_examples=count)(given(case=cases)(test))

    return decorate


class Inputs:
    """Random tensors of a case, the same in every run."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(self.device, self.case.dtype)

    def tokens(self, count: int) -> Tensor:
        """Tokens `[B, count, C]` in the memory layout of the case."""
        batch, channels = self.case.batch, self.case.channels
        if self.case.layout == "tokens cut out":
            return self(batch, count + 3, channels)[:, 2:-1]
        if self.case.layout == "channels cut out":
            return self(batch, count, channels + 5)[:, :, 3:-2]
        if self.case.layout == "channels first":
            return self(batch, channels, count).transpose(1, 2)
        return self(batch, count, channels)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def exact(tensor: Tensor, grad: bool = False) -> Tensor:
    return tensor.detach().double().cpu().requires_grad_(grad)


def compare(actual: Tensor, expected: Tensor, bound: Tensor, terms: int, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    allowed = 1.01 * HALF_UNIT[dtype] * expected.abs() + (terms + 2) * 2.0**-24 * bound + SMALLEST[dtype]
    error = (actual.detach().double().cpu() - expected).abs()
    # Written so that a NaN, which an unwritten element holds, fails.
    assert (error <= allowed).all(), f"error {error.max():.3g}, {(error / allowed).max():.3g} times what is allowed"


def check_multilinear(
    kernel: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: list[Tensor],
    upstream: Tensor,
    terms: tuple[int, ...],
) -> None:
    """Compare a function that is linear in each input, and its gradients; `terms`: lengths of the sums behind each."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    with poisoned_memory():
        out = kernel(*leaves)
        grads = torch.autograd.grad(out, leaves, upstream)

    def run(prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
        exact_leaves = [prepare(exact(value)).requires_grad_() for value in inputs]
        result = definition(*exact_leaves)
        return [result.detach(), *torch.autograd.grad(result, exact_leaves, prepare(exact(upstream)))]

    for actual, expected, bound, length in zip(
        [out, *grads], run(lambda value: value), run(torch.abs), terms, strict=True
    ):
        compare(actual, expected, bound, length, inputs[0].dtype)


@check_over(30)
def test_mean(device: str, case: Case):
    make = Inputs(case, device)
    check_multilinear(
        lambda x: library.reduce_pairs(x, *case.settings, True),
        lambda x: reference.merge_mean(x, *case.reference),
        [make.tokens(case.tokens)],
        make.tokens(case.merged_tokens),
        terms=(2, 1),
    )


@check_over(30)
def test_unmerge(device: str, case: Case):
    make = Inputs(case, device)
    check_multilinear(
        lambda x: library.expand_pairs(x, *case.settings, False),
        lambda x: reference.unmerge(x, *case.reference),
        [make.tokens(case.merged_tokens)],
        make.tokens(case.tokens),
        terms=(1, 2),
    )


@check_over(14)
def test_linear(device: str, case: Case):
    make, channels = Inputs(case, device), case.channels
    rows = case.batch * case.merged_tokens
    check_multilinear(
        lambda *a: library.linear(*a, *case.settings),
        lambda *a: reference.merge_linear(*a, *case.reference),
        [make.tokens(case.tokens), make(channels, 2 * channels, scale=channels**-0.5), make(channels)],
        make.tokens(case.merged_tokens),
        terms=(2 * channels + 1, 2 * channels, rows, rows),
    )


def check_norm(
    case: Case, merge_inputs: list[Tensor], kernel, merge, upstreams: list[Tensor], norm: list[Tensor]
) -> None:
    """Compare merge and LayerNorm, and the gradients of both.

    LayerNorm is taken, in float64, of the merged tokens that the kernel wrote: their own error is bounded on its own
    and would only blur the rest.
    """
    channels, rows, unit = case.channels, case.batch * case.merged_tokens, HALF_UNIT[case.dtype]
    leaves = [value.detach().requires_grad_() for value in [*merge_inputs, *norm]]
    with poisoned_memory():
        merged, normed, *_ = kernel(*leaves)
        grads = torch.autograd.grad([merged, normed], leaves, upstreams, retain_graph=True)
        only_normed = torch.autograd.grad(normed, leaves, upstreams[1])
    merge_terms = 2 * channels + 1 if len(merge_inputs) > 1 else 2
    compare(
        merged,
        merge(*map(exact, merge_inputs)),
        merge(*[exact(a).abs() for a in merge_inputs]),
        merge_terms,
        case.dtype,
    )

    at = exact(merged, grad=True)
    weight, bias = (exact(value, grad=True) for value in norm)
    expected = reference.normalise(at, weight, bias, EPS)
    rstd = (at.var(-1, keepdim=True, correction=0) + EPS).rsqrt().detach()
    # LayerNorm subtracts a mean that is off by C roundings of the largest value, and scales that by rstd.
    largest = at.detach().abs().amax(-1, keepdim=True)
    blur = 1 + largest * rstd
    compare(normed, expected.detach(), blur * weight.detach().abs() + bias.detach().abs(), 2 * channels + 8, case.dtype)

    for got, residual in ((grads, exact(upstreams[0])), (only_normed, torch.zeros_like(at))):
        towards_merged, *towards_norm = torch.autograd.grad(
            (expected * exact(upstreams[1])).sum() + (at * residual).sum(), [at, weight, bias], retain_graph=True
        )
        # The same chain in absolute values, times the blur of the normalised value for each of its two uses.
        slope = (weight.detach() * exact(upstreams[1])).abs()
        size = residual.abs() + rstd * blur**2 * (slope + slope.mean(-1, keepdim=True)) * 2
        terms = 2 * channels + 8
        exact_inputs = [exact(value, grad=True) for value in merge_inputs]
        wanted = torch.autograd.grad(merge(*exact_inputs), exact_inputs, towards_merged)
        sizes = [exact(value).abs().requires_grad_() for value in merge_inputs]
        bounds = torch.autograd.grad(merge(*sizes), sizes, size)
        # With a projection the gradient of the merged tokens is stored on the way: one more rounding.
        rounded = torch.autograd.grad(merge(*sizes), sizes, towards_merged.abs() * unit / 2.0**-24)
        lengths = [terms + 2 * channels, *[terms + rows] * (len(merge_inputs) - 1)]
        for actual, value, bound, extra, length in zip(got, wanted, bounds, rounded, lengths, strict=False):
            compare(actual, value, bound + (extra if len(merge_inputs) > 1 else 0), length, case.dtype)
        incoming = exact(upstreams[1]).abs()
        compare(got[-2], towards_norm[0], (incoming * blur).sum((0, 1)), rows + 2 * channels + 8, case.dtype)
        compare(got[-1], towards_norm[1], incoming.sum((0, 1)), rows, case.dtype)


@check_over(16)
def test_mean_norm(device: str, case: Case):
    make, channels = Inputs(case, device), case.channels
    check_norm(
        case,
        [make.tokens(case.tokens)],
        lambda x, *norm: library.mean_norm(x, *norm, EPS, *case.settings),
        lambda x: reference.merge_mean(x, *case.reference),
        [make.tokens(case.merged_tokens), make.tokens(case.merged_tokens)],
        [make(channels), make(channels)],
    )


@check_over(8)
def test_linear_norm(device: str, case: Case):
    make, channels = Inputs(case, device), case.channels
    check_norm(
        case,
        [make.tokens(case.tokens), make(channels, 2 * channels, scale=channels**-0.5), make(channels)],
        lambda x, weight, bias, *norm: library.linear_norm(x, weight, bias, *norm, EPS, *case.settings),
        lambda *a: reference.merge_linear(*a, *case.reference),
        [make.tokens(case.merged_tokens), make.tokens(case.merged_tokens)],
        [make(channels), make(channels)],
    )


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_tokens_that_merge_with_none_are_copied_bit_for_bit(device: str, axis: str):
    case = Case(2, (3, 3), axis, 2, 7, torch.float32, "contiguous")
    x = Inputs(case, device).tokens(case.tokens)
    edge = slice(-1, None)
    merged = library.reduce_pairs(x, *case.settings, True)
    assert torch.equal(merged[:, :2], x[:, :2])
    height, width = reference.merged_grid(case.grid, axis)
    rows, before = merged[:, 2:].unflatten(1, (height, width)), x[:, 2:].unflatten(1, case.grid)
    if axis == "horizontal":
        assert torch.equal(rows[:, :, edge], before[:, :, edge])
    else:
        assert torch.equal(rows[:, edge], before[:, edge])


def test_several_channel_blocks_and_split_sums(device: str):
    # Beyond what the property tests draw: three tiles of channels, and 48 pairs, whose sums two programs share.
    check = test_linear_norm.hypothesis.inner_test
    check(device, Case(3, (4, 7), "horizontal", 1, 40, torch.float32, "contiguous"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fp32_tokens_with_16_bit_weights(device: str, dtype: torch.dtype):
    """What autocast asks for: the residual stream stays fp32, only the operands of the product are rounded."""
    case = Case(2, (4, 4), "horizontal", 1, 24, torch.float32, "contiguous")
    make = Inputs(case, device)
    x, bias = make.tokens(case.tokens), make(24)
    if dtype == torch.bfloat16:
        x[:, 1:] = x[:, 1:].to(dtype)  # exact values, because the interpreter cuts where it should round
    weight = make(24, 48, scale=0.2).to(dtype).requires_grad_()
    x.requires_grad_()
    merged = library.linear(x, weight, bias, *case.settings)
    grad_x, grad_weight = torch.autograd.grad(merged, [x, weight], torch.ones_like(merged))
    rounded = x.detach().to(dtype)
    expected = reference.merge_linear(exact(rounded), exact(weight), exact(bias), *case.reference)
    expected[:, :1] = exact(x)[:, :1]
    sizes = reference.merge_linear(exact(rounded).abs(), exact(weight).abs(), exact(bias).abs(), *case.reference)
    compare(merged, expected, sizes, 49, torch.float32)
    assert (grad_x.dtype, grad_weight.dtype) == (torch.float32, dtype)
    token_sums = exact(rounded)[:, 1:].unflatten(1, (8, 2)).sum((0, 1))
    compare(grad_weight, token_sums.flatten().expand(24, -1), token_sums.new_full((24, 48), 40.0), 16, dtype)


def offset_kernel(out, batch, token, stride_batch, stride_token):
    row = tl.arange(0, 1)
    tl.store(out + row, offset(batch + row, token + row, stride_batch, stride_token))


def test_offsets_are_64_bit(device: str):
    out = torch.zeros(1, dtype=torch.int64, device=device)
    for batch, token, stride_batch, stride_token in ((3000, 5, 1024 * 1024, 768), (5, 3000, 768, 1024 * 1024)):
        triton.jit(offset_kernel)[(1,)](out, batch, token, stride_batch, stride_token)
        assert out.item() == batch * stride_batch + token * stride_token > 2**31


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_more_than_two_billion_elements():
    x = torch.zeros(2900, 1 + 32 * 32, 768, dtype=torch.float16, device="cuda")
    assert x.numel() > 2**31
    x[-1] = torch.randn_like(x[-1])
    merged = library.reduce_pairs(x, 32, 32, False, 1, True)
    assert torch.equal(merged[-1:], reference.merge_mean(x[-1:], (32, 32), "horizontal", 1))
    del x
    assert torch.equal(
        library.expand_pairs(merged, 32, 32, False, 1, False)[-1:],
        reference.unmerge(merged[-1:], (32, 32), "horizontal", 1),
    )
