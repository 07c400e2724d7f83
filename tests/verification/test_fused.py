"""Whether every attention is fused can be known without a GPU, and a head of width 8 is not."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.exporting.attention import AttentionNode
from dcvit.exporting.targets import engine_target
from dcvit.exporting.tensorrt import no_kernel_for
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.runtimes import flavors
from dcvit.variant import Variant
from dcvit.verification import verify
from dcvit.verification.fused import check_fused_file

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
needs_rtx = pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")
HALF, BFLOAT = TensorProto.FLOAT16, TensorProto.BFLOAT16


@pytest.fixture(scope="module")
def narrow(
    make_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory, tiny_plan: CompressionPlan
) -> ModelFolder:
    plan = tiny_plan.replace(
        model_kwargs=tiny_plan.model_kwargs | {"depth": 2}, blocks=(BlockPlan(index=1, head_dim=8),)
    )
    folder = make_folder(tmp_path_factory.mktemp("narrow") / "model", plan)
    export(folder, 2, "fp16")
    return folder


def test_a_head_of_width_8_fails_by_its_block(narrow: ModelFolder) -> None:
    result = verify(narrow)
    assert [check.name for check in result.checks if not check.passed] == ["model.b2.fp16.onnx: fused attention"]
    (check,) = [check for check in result.checks if not check.passed]
    assert check.detail == "blocks.1.attn: its heads have 8 channels, and there are fused kernels from 16 on"


@pytest.mark.trt
@needs_rtx
def test_it_has_no_engine_but_in_pieces(narrow: ModelFolder) -> None:
    arguments = {"trt": True, "flavor": "tensorrt-rtx", "compute_capabilities": ("8.6",)}
    with pytest.raises(InputError, match=r"engine from .*: blocks\.1\.attn: its heads have 8 channels.*; --opset 22 "):
        export(narrow, 2, "fp16", **arguments)
    assert export(narrow, 2, "fp16", opset=22, **arguments).engine is not None


@pytest.mark.trt
@needs_rtx
def test_an_engine_has_each_attention_in_one_kernel(exported_copy: ModelFolder) -> None:
    export(exported_copy, 4, "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.6",))
    checks = {check.name: check for check in verify(exported_copy).checks}
    check = checks["model.b4.fp16.tensorrt-rtx.engine: fused attention"]
    assert check.passed
    assert check.detail.startswith("4 attentions, one operator and one kernel each for 8.6: tensorrt-rtx")


def node(
    width: int, *, values: int | None = None, mask: tuple[int, ...] | None = None, kind: int = HALF
) -> AttentionNode:
    queries = (2, 3, 17, width)
    return AttentionNode("blocks.3.attn", queries, queries, (*queries[:-1], values or width), mask, kind)


@pytest.mark.parametrize(
    ("attention", "capabilities", "reason"),
    [
        (node(8), (), "8 channels"),
        (node(32, values=16), (), "32 channels a head and v has 16"),
        (node(32, kind=TensorProto.FLOAT), (), "compute in fp16 and bf16"),
        (node(32, kind=BFLOAT), ("7.5", "8.6"), "7.5 has no fused kernel in bf16"),
    ],
)
def test_the_reason_is_known(attention: AttentionNode, capabilities: tuple[str, ...], reason: str) -> None:
    found = attention.cannot_fuse(capabilities)
    assert found is not None
    assert reason in found


@pytest.mark.trt
@needs_rtx
def test_what_is_known_of_the_kernels_is_what_tensorrt_builds() -> None:
    target = engine_target("tensorrt-rtx", ("8.0", "8.6", "12.0"))
    capabilities = target.compute_capabilities
    attentions = (
        node(16), node(24), node(64), node(32, mask=(1, 1, 17, 17)), node(32, mask=(1, 3, 17, 17)),
        node(32, kind=BFLOAT), node(8), node(32, kind=TensorProto.FLOAT), node(32, values=16),
    )  # fmt: skip
    for attention in attentions:
        known = attention.cannot_fuse(capabilities)
        built = no_kernel_for(attention, target)
        assert (known is None) == (built is None), attention
    older = engine_target("tensorrt-rtx", ("7.5",))
    assert no_kernel_for(node(32), older) is None
    assert no_kernel_for(node(32, kind=BFLOAT), older) is not None


def test_attention_written_in_pieces_where_one_operator_could_do_fails(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "model.b4.fp32.onnx")
    path = tmp_path / "pieces.onnx"
    for opset, passes in ((22, True), (23, False)):
        model.opset_import[0].version = opset  # as if the exporter had not used the operator
        onnx.save(model, path)
        (check,) = check_fused_file(path, Variant.of(4, "fp16"))
        assert check.passed == passes
    assert check.detail == "blocks.0.attn: one operator could do what is written in pieces (and 3 more)"
    assert check_fused_file(path, Variant.of(4)) == []
