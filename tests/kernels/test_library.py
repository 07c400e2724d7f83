"""The operators within PyTorch (opcheck, compile, export, autocast), and the choice of kernel or reference."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dcvit_kernels
from dcvit_kernels import library, merge, reference
from dcvit_kernels.launch import INTERPRETED, Launch

C, GRID, PREFIX = 4, (3, 2), 1
LAYOUT = (*GRID, True, PREFIX)


def random(device: str, *shape: int, grad: bool = True) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)
    return values.requires_grad_(grad)


def operator_arguments(device: str) -> dict[str, tuple[object, ...]]:
    def make(*shape: int, grad: bool = True) -> Tensor:
        return random(device, *shape, grad=grad)

    x, merged = (2, 7, C), (2, 5, C)
    norm = (make(C), make(C), 1e-6)
    statistics = make(2, 2, 5, grad=False).abs()
    return {
        "reduce_pairs": (make(*x), *LAYOUT, True),
        "expand_pairs": (make(*merged), *LAYOUT, False),
        "linear": (make(*x), make(C, 2 * C), make(C), *LAYOUT),
        "linear_grad_input": (make(*merged, grad=False), make(C, 2 * C, grad=False), *LAYOUT),
        "linear_grad_weight": (make(*merged, grad=False), make(*x, grad=False), make(C, 2 * C, grad=False), *LAYOUT),
        "mean_norm": (make(*x), *norm, *LAYOUT),
        "linear_norm": (make(*x), make(C, 2 * C), make(C), *norm, *LAYOUT),
        "norm_backward": (*[make(*merged, grad=False)] * 3, statistics, make(C, grad=False), *LAYOUT, True),
    }  # fmt: skip


@pytest.mark.parametrize("name", operator_arguments("cpu"))
def test_opcheck(device: str, name: str):
    torch.library.opcheck(getattr(library, name), operator_arguments(device)[name])


def test_every_operator_is_checked():
    registered = {
        name for name in vars(library) if isinstance(getattr(library, name), torch._library.custom_ops.CustomOpDef)
    }
    assert registered == set(operator_arguments("cpu"))


class Merging(torch.nn.Module):
    """Every public function once."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(2 * C, C)
        self.norm = torch.nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        norm = (self.norm.weight, self.norm.bias, 1e-6)
        projection = (self.projection.weight, self.projection.bias)
        x, y = dcvit_kernels.merge_linear_norm(x, *projection, *norm, (3, 4), "vertical", 1)
        x, z = dcvit_kernels.merge_mean_norm(x + y, *norm, (2, 4), "horizontal", 1)
        x = dcvit_kernels.unmerge(x + z, (2, 4), "horizontal", 1)
        x = dcvit_kernels.merge_linear(x, *projection, (2, 4), "horizontal", 1)
        return dcvit_kernels.merge_mean(x, (2, 2), "vertical", 1)


class AnyMode(TorchDispatchMode):
    """Something that wants to see every operator."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@contextmanager
def launches() -> Iterator[list[str]]:
    """Names of the kernels that are launched within."""
    names: list[str] = []
    whole = Launch.__call__

    def watched(launch: Launch, *tensors: Tensor) -> None:
        names.append(launch._kernel.__name__)
        whole(launch, *tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "__call__", watched)
        yield names


def loss_and_gradients(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    loss = model(x).square().sum()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_public_functions_agree_with_kernels_on_and_off(kernels_everywhere: str):
    torch.manual_seed(0)
    model, x = Merging().to(kernels_everywhere), random(kernels_everywhere, 2, 13, C, grad=False)
    with launches() as launched:
        fused = loss_and_gradients(model, x)
    # Straight to the launches: 1 of each forward but 2 of the linear one with its norm, 2 of each of the norm's and of
    # the weights' gradients (their sums), and 1 of each other gradient.
    names = Counter(launched)
    assert names == {
        "linear_kernel": 2, "norm_kernel": 2, "expand_pairs_kernel": 2, "reduce_pairs_kernel": 2,
        "norm_backward_kernel": 2, "linear_grad_input_kernel": 1, "linear_grad_weight_kernel": 2,
        "column_sums_kernel": 4,
    }  # fmt: skip
    with torch.profiler.profile() as profile:
        loss_and_gradients(model, x)
    assert not [event.key for event in profile.key_averages() if "dcvit_kernels::" in event.key]
    with AnyMode(), torch.profiler.profile() as profile:  # what watches operators sees them, and the same numbers
        watched = loss_and_gradients(model, x)
    seen = {event.key for event in profile.key_averages() if "dcvit_kernels::" in event.key}
    assert {f"dcvit_kernels::{name}" for name in operator_arguments("cpu")} <= seen
    torch.testing.assert_close(watched, fused, atol=0, rtol=0)
    with dcvit_kernels.use_kernels(False), launches() as launched:
        plain = loss_and_gradients(model, x)
    assert not launched
    # fp32 through two LayerNorms and back: 1e-4 of values near one is a thousand roundings.
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.gpu)])
def test_compile_is_one_graph_with_the_operators_in_it(kernels_everywhere: str, backend: str):
    if backend == "inductor" and kernels_everywhere != "cuda":
        pytest.skip("needs an NVIDIA GPU")
    torch.manual_seed(0)
    model, x = Merging().to(kernels_everywhere), random(kernels_everywhere, 2, 13, C, grad=False)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    # fp32 through two LayerNorms and back, partly by the reference, as below.
    torch.testing.assert_close(loss_and_gradients(compiled, x), loss_and_gradients(model, x), atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()
    graphs = []
    torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)(x)
    called = {str(node.target) for node in graphs[0].graph.nodes}
    # What only moves tokens is plain, for Inductor to fuse; the products are ours.
    assert {name.split(".")[1] for name in called if "dcvit_kernels" in name} == {"linear", "linear_norm"}
    torch._dynamo.reset()


def test_export_takes_the_reference_and_keeps_an_operator_that_is_called_itself(kernels_everywhere: str):
    x = random(kernels_everywhere, 2, 13, C, grad=False)
    program = torch.export.export(Merging().to(kernels_everywhere), (x,))
    assert "dcvit_kernels" not in str(program.graph)

    class Direct(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return library.reduce_pairs(x, 3, 4, True, 1, True)

    program = torch.export.export(Direct(), (x,))
    assert "dcvit_kernels.reduce_pairs" in str(program.graph)
    torch.testing.assert_close(program.module()(x), reference.merge_mean(x, (3, 4), "vertical", 1))


@pytest.mark.filterwarnings("ignore")
def test_tracing_takes_the_reference(kernels_everywhere: str):
    traced = torch.jit.trace(
        lambda x: dcvit_kernels.merge_mean(x, (3, 4), "vertical", 1), random(kernels_everywhere, 2, 13, C, grad=False)
    )
    assert "dcvit_kernels::" not in str(traced.graph)


def test_autocast_keeps_the_residual_and_the_gradients_in_fp32(kernels_everywhere: str):
    torch.manual_seed(0)
    model, x = Merging().to(kernels_everywhere), random(kernels_everywhere, 2, 13, C)
    with torch.autocast(kernels_everywhere, torch.bfloat16):
        out = model(x)
        with dcvit_kernels.use_kernels(False):
            plain = model(x)
    assert out.dtype == plain.dtype == torch.float32
    # Operands in bfloat16 (8 bits), through two LayerNorms that blow a small row up: both are that far from exact.
    torch.testing.assert_close(out, plain, atol=0.1, rtol=0.1)
    out.sum().backward()
    assert {value.grad.dtype for value in [x, *model.parameters()]} == {torch.float32}


def test_frozen_weights_get_no_gradient_kernel(kernels_everywhere: str):
    x, weight, bias = (
        random(kernels_everywhere, 2, 7, C),
        *(random(kernels_everywhere, *s, grad=False) for s in ((C, 2 * C), (C,))),
    )
    with launches() as launched:
        dcvit_kernels.merge_linear(x, weight, bias, GRID, "vertical", PREFIX).sum().backward()
    assert launched == ["linear_kernel", "linear_grad_input_kernel"]


def test_gradients_of_gradients(kernels_everywhere: str):
    x = random(kernels_everywhere, 2, 7, C)
    (first,) = torch.autograd.grad(
        dcvit_kernels.merge_mean(x, GRID, "vertical", PREFIX).pow(3).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(first.sum(), x)
    with dcvit_kernels.use_kernels(False):
        (plain,) = torch.autograd.grad(
            dcvit_kernels.merge_mean(x, GRID, "vertical", PREFIX).pow(3).sum(), x, create_graph=True
        )
        torch.testing.assert_close(second, torch.autograd.grad(plain.sum(), x)[0])


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing that could be kept")
def test_a_second_call_goes_past_tritons_launch(kernels_everywhere: str, monkeypatch: pytest.MonkeyPatch):
    x = random(kernels_everywhere, 2, 7, C, grad=False)
    first = dcvit_kernels.merge_mean(x, GRID, "vertical", PREFIX)
    monkeypatch.setattr(Launch, "_launch", lambda *_: pytest.fail("launched as Triton does"))
    assert torch.equal(dcvit_kernels.merge_mean(x, GRID, "vertical", PREFIX), first)


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 7, C, dtype=torch.float64), torch.randn(0, 7, C), torch.randn(2, 7, C, device="meta")],
    ids=["float64", "empty batch", "meta"],
)
def test_what_no_kernel_serves_is_the_references(x: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "_takes_kernels", lambda x: x.device.type != "meta")
    merged = dcvit_kernels.merge_mean(x, GRID, "vertical", PREFIX)
    assert (merged.shape, merged.dtype, merged.device) == ((len(x), 5, C), x.dtype, x.device)


def test_wrong_input_is_refused_before_a_launch(kernels_everywhere: str):
    x = random(kernels_everywhere, 2, 7, C)
    with pytest.raises(ValueError, match="3x3 grid need"):
        dcvit_kernels.merge_mean(x, (3, 3), "vertical", PREFIX)
    with pytest.raises(ValueError, match="'horizontal' or 'vertical'"):
        dcvit_kernels.merge_mean(x, GRID, "sideways", PREFIX)
    with pytest.raises(ValueError, match="need \\[B, 4, C\\]"):
        dcvit_kernels.unmerge(x, GRID, "horizontal", PREFIX)
    with pytest.raises(RuntimeError):  # the reference's own message
        dcvit_kernels.merge_linear(x, x.new_empty(C, C), x.new_empty(C), GRID, "vertical", PREFIX)
    with pytest.raises(RuntimeError):
        dcvit_kernels.merge_linear(x, x.new_empty(C, 2 * C).half(), x.new_empty(C).half(), GRID, "vertical", PREFIX)


def test_the_switch_acts_at_once_and_goes_back():
    assert merge._enabled
    with dcvit_kernels.use_kernels(False):
        assert not merge._enabled
        with dcvit_kernels.use_kernels(True):
            assert merge._enabled
        assert not merge._enabled
    assert merge._enabled
    dcvit_kernels.use_kernels(False)
    assert not merge._enabled
    dcvit_kernels.use_kernels(True)


def test_import_needs_no_triton_and_the_environment_turns_kernels_off():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, dcvit_kernels as k\n"
        "assert k.merge_mean(torch.randn(1, 5, 4), (2, 2), 'vertical', 1).shape == (1, 3, 4)\n"
        "assert not k.merge._HAS_TRITON and not k.merge._enabled"
    )
    environment = {"DCVIT_KERNELS": "0", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
