"""The reference against the definition written out token by token, its gradients, and what an export of it holds."""

import io
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dcvit_kernels
from dcvit_kernels import reference

AXES = ("horizontal", "vertical")
cases = st.tuples(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(AXES),
    st.sampled_from([0, 1, 2, 5]),
    st.integers(1, 6),
)


def pair_of(i: int, j: int, grid: tuple[int, int], axis: str) -> list[tuple[int, int]]:
    """The two tokens that merge into (i, j); twice the same one at the edge of an odd side."""
    if axis == "horizontal":
        return [(i, 2 * j), (i, min(2 * j + 1, grid[1] - 1))]
    return [(2 * i, j), (min(2 * i + 1, grid[0] - 1), j)]


def by_token(x: Tensor, grid: tuple[int, int], axis: str, prefix: int, join) -> Tensor:
    rows = {(i, j): x[:, prefix + i * grid[1] + j] for i, j in product(range(grid[0]), range(grid[1]))}
    merged = [x[:, token] for token in range(prefix)]
    for i, j in product(*map(range, dcvit_kernels.merged_grid(grid, axis))):
        merged.append(join(*(rows[place] for place in pair_of(i, j, grid, axis))))
    return torch.stack(merged, dim=1)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(cases)
def test_merges_and_unmerge_are_as_defined(case):
    grid, axis, prefix, channels = case
    x = random(2, prefix + grid[0] * grid[1], channels)
    weight, bias = random(channels, 2 * channels), random(channels)

    mean = dcvit_kernels.merge_mean(x, grid, axis, prefix)
    torch.testing.assert_close(mean, by_token(x, grid, axis, prefix, lambda a, b: (a + b) / 2))

    linear = dcvit_kernels.merge_linear(x, weight, bias, grid, axis, prefix)
    # The order of a sum of at most 13 float64 terms is all that may differ: assert_close's 1e-7 is ample.
    torch.testing.assert_close(
        linear, by_token(x, grid, axis, prefix, lambda a, b: torch.cat([a, b], -1) @ weight.T + bias)
    )

    merged = dcvit_kernels.merged_grid(grid, axis)
    restored = dcvit_kernels.unmerge(mean, grid, axis, prefix)
    rows = mean[:, prefix:].unflatten(1, merged).repeat_interleave(2, dim=2 if axis == "horizontal" else 1)
    assert torch.equal(restored, torch.cat([mean[:, :prefix], rows[:, : grid[0], : grid[1]].flatten(1, 2)], dim=1))


def test_deit_schedule_gives_the_published_token_counts():
    x = torch.randn(1, 197, 8)
    x = dcvit_kernels.merge_mean(x, (14, 14), "horizontal", 1)
    assert (x.shape[1], dcvit_kernels.merged_grid((14, 14), "horizontal")) == (99, (14, 7))
    assert dcvit_kernels.merge_mean(x, (14, 7), "vertical", 1).shape[1] == 50


def test_half_half_weight_is_the_mean():
    x, eye = random(2, 2 + 5 * 6, 4), torch.eye(4, dtype=torch.float64)
    weight, bias = torch.cat([eye / 2, eye / 2], dim=1), torch.zeros(4, dtype=torch.float64)
    for axis in AXES:
        torch.testing.assert_close(
            dcvit_kernels.merge_linear(x, weight, bias, (5, 6), axis, 2), dcvit_kernels.merge_mean(x, (5, 6), axis, 2)
        )


def test_fused_norm_is_the_merge_and_its_layer_norm():
    x, weight, bias = random(2, 1 + 3 * 5, 6), random(6, 12), random(6)
    norm = torch.nn.LayerNorm(6, eps=1e-6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    for axis in AXES:
        merged, normed = dcvit_kernels.merge_mean_norm(x, norm.weight, norm.bias, 1e-6, (3, 5), axis, 1)
        assert torch.equal(merged, dcvit_kernels.merge_mean(x, (3, 5), axis, 1))
        torch.testing.assert_close(normed, norm(merged))
        merged, normed = dcvit_kernels.merge_linear_norm(x, weight, bias, norm.weight, norm.bias, 1e-6, (3, 5), axis, 1)
        assert torch.equal(merged, dcvit_kernels.merge_linear(x, weight, bias, (3, 5), axis, 1))
        torch.testing.assert_close(normed, norm(merged))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("grid", [(2, 4), (3, 3)])
@pytest.mark.parametrize("prefix", [0, 2])
def test_gradients(axis, grid, prefix):
    def inputs(*shapes):
        return tuple(random(*shape).requires_grad_() for shape in shapes)

    x = (1, prefix + grid[0] * grid[1], 2)
    merged_height, merged_width = dcvit_kernels.merged_grid(grid, axis)
    layout = (grid, axis, prefix)
    assert torch.autograd.gradcheck(lambda x: reference.merge_mean(x, *layout), inputs(x))
    assert torch.autograd.gradcheck(lambda *a: reference.merge_linear(*a, *layout), inputs(x, (2, 4), (2,)))
    merged = (1, prefix + merged_height * merged_width, 2)
    assert torch.autograd.gradcheck(lambda x: reference.unmerge(x, *layout), inputs(merged))
    assert torch.autograd.gradcheck(lambda *a: reference.normalise(*a, 1e-6), inputs(merged, (2,), (2,)))


def test_wrong_input_is_refused():
    x = torch.randn(2, 17, 4)
    with pytest.raises(ValueError, match=r"4x4 grid need \[B, 18, C\]"):
        dcvit_kernels.merge_mean(x, (4, 4), "horizontal", 2)
    with pytest.raises(ValueError, match="'horizontal' or 'vertical'"):
        dcvit_kernels.merge_mean(x, (4, 4), "diagonal", 1)
    with pytest.raises(ValueError, match=r"need \[B, 9, C\]"):
        dcvit_kernels.unmerge(x, (4, 4), "vertical", 1)


def test_autocast_keeps_the_dtype_of_the_residual_stream():
    x, weight, bias = torch.randn(2, 17, 4), torch.randn(4, 8), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        merged, normed = dcvit_kernels.merge_linear_norm(
            x, weight, bias, torch.ones(4), torch.zeros(4), 1e-6, (4, 4), "vertical", 1
        )
    assert merged.dtype == normed.dtype == torch.float32
    assert torch.equal(merged[:, :1], x[:, :1])


class Merging(torch.nn.Module):
    """Every public function once, on an odd and an even side."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(16, 8)
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        norm = (self.norm.weight, self.norm.bias, 1e-6)
        projection = (self.projection.weight, self.projection.bias)
        x, y = dcvit_kernels.merge_linear_norm(x, *projection, *norm, (5, 4), "vertical", 1)
        x, z = dcvit_kernels.merge_mean_norm(x + y, *norm, (3, 4), "horizontal", 1)
        x = dcvit_kernels.unmerge(x + z, (3, 4), "horizontal", 1)
        x = dcvit_kernels.merge_linear(x, *projection, (3, 4), "horizontal", 1)
        return dcvit_kernels.merge_mean(x, (3, 2), "vertical", 1)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_graph_holds_plain_operators_only(strict):
    model, x = Merging().eval(), torch.randn(2, 21, 8)
    program = torch.export.export(model, (x,), strict=strict)
    assert not [node for node in program.graph.nodes if "dcvit" in str(node.target)]
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore")
def test_onnx_is_static_and_of_core_operators():
    import onnxruntime

    model, x = Merging().eval(), torch.randn(2, 21, 8)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert {node.op_type for node in program.model.graph} <= {
        "Add", "Concat", "Expand", "LayerNormalization", "MatMul", "ReduceMean", "Reshape", "Slice", "Split",
        "Transpose", "Unsqueeze",
    }  # fmt: skip
    shapes = [value.shape for node in program.model.graph for value in node.outputs]
    assert all(isinstance(side, int) for shape in shapes for side in shape)
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # fp32 through two LayerNorms: 1e-5 is a hundred roundings of values near one.
    torch.testing.assert_close(torch.from_numpy(result), model(x), atol=1e-5, rtol=1e-5)
