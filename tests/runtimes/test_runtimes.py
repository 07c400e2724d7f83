"""All runtimes through the one interface."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper

from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.runtimes import RUNTIMES, available_cores, runtime_named
from dcvit.runtimes.onnx_file import OnnxFileRuntime
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.runtimes.pytorch import TorchSession
from dcvit.variant import Variant

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    # In units of the largest logit: rounding of u = 6e-8 (fp32), 5e-4 (fp16) and 4e-3 (bf16), some 50 times over 4
    # blocks.
    [
        ("torch", "fp32", 3e-6),
        ("torch", "fp16", 2e-2),
        ("torch", "bf16", 0.16),
        ("onnxruntime", "fp32", 3e-6),
        ("onnxruntime", "fp16", 2e-2),
        ("openvino", "fp32", 3e-6),
        ("openvino", "bf16", 0.16),
    ],
)
def test_every_runtime_computes_the_folders_model(exported: Path, name: str, precision: str, tolerance: float) -> None:
    if RUNTIMES[name].unavailable() or precision not in RUNTIMES[name].precisions:
        pytest.skip(f"{name} has no {precision} here")
    folder = ModelFolder(exported)
    images = torch.randn(10, 3, 32, 32)  # two full batches and half of one
    with torch.no_grad():
        expected = folder.load()(images)
    session = runtime_named(name).open(folder, Variant.of(4, precision))
    logits = session.infer(images)
    assert logits.shape == expected.shape
    assert logits.dtype == torch.float32
    error = ((logits - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance
    if precision != "fp32":  # 8 bits or 11 must show: were the error as small as that of fp32, it would be fp32
        assert error > 3e-5
    assert session.batch == 4


@no_gpu
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_the_steps_of_infer_can_be_taken_apart(exported: Path, name: str) -> None:
    if RUNTIMES[name].unavailable():
        pytest.skip(f"{name} is not installed")
    session = runtime_named(name).open(ModelFolder(exported), Variant.of(4))
    first, second = torch.randn(2, 4, 3, 32, 32)
    session.load(first)
    session.execute()
    once = session.logits().clone()
    session.execute()
    assert torch.equal(session.logits(), once)
    session.load(second)
    session.execute()
    assert not torch.equal(session.logits(), once)
    assert session.device == "CPU"
    assert session.threads == (torch.get_num_threads() if name == "torch" else available_cores())


def test_what_infer_returns_outlives_the_next_batch(exported: Path) -> None:
    session = OrtSession(exported / "model.b4.fp32.onnx")
    logits = session.infer(torch.randn(4, 3, 32, 32))
    kept = logits.clone()
    session.infer(torch.randn(4, 3, 32, 32))
    assert torch.equal(logits, kept)


def test_half_precision_is_half_precision(exported: Path) -> None:
    model = ModelFolder(exported).load()
    images = torch.randn(4, 3, 32, 32)
    half = TorchSession(model, 4, "fp16", device="cpu").infer(images)
    assert torch.equal(half, half.half().float())  # every logit is an fp16 number
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_an_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="no runtime 'trt'; choose one of torch, torch-compile, torch-graph, "):
        runtime_named("trt")


@no_gpu
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_runtime_says_why_it_cannot_run_here(name: str) -> None:
    with pytest.raises(InputError, match=f"runtime {name} cannot run here: .*(no NVIDIA GPU|not installed)"):
        runtime_named(name)


@pytest.mark.parametrize(
    ("name", "batch", "precision", "command"),
    [
        ("onnxruntime", 64, "fp32", "dcvit-tool export FOLDER"),
        ("onnxruntime", 8, "fp16", "dcvit-tool export FOLDER --batch 8 --precision fp16"),
        ("onnxruntime", 4, "int8", "dcvit-tool export FOLDER --batch 4 --precision int8 --data IMAGES"),
        ("openvino", 8, "bf16", "dcvit-tool export FOLDER --batch 8"),  # from the fp32 file
        ("tensorrt-rtx", 4, "fp16", "dcvit-tool export FOLDER --batch 4 --precision fp16 --trt --flavor tensorrt-rtx"),
    ],
)
def test_a_missing_file_comes_with_the_command_that_makes_it(
    exported: Path, name: str, batch: int, precision: str, command: str
) -> None:
    if precision not in RUNTIMES[name].precisions:
        pytest.skip(f"{name} has no {precision} here")
    with pytest.raises(InputError) as caught:
        RUNTIMES[name].file(ModelFolder(exported), Variant.of(batch, precision))
    assert f"`{command.replace('FOLDER', str(exported))}`" in str(caught.value)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="ONNX Runtime cannot load .*model.onnx") as caught:
        OrtSession(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.trt
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    "name",
    ["onnxruntime-cuda", "onnxruntime-cuda-graph", "torch-graph", "torch-compile-graph", "tensorrt", "tensorrt-rtx"],
)
def test_gpu_runtimes_compute_the_folders_model(exported_copy: ModelFolder, name: str) -> None:
    from dcvit.exporting import export

    if reason := RUNTIMES[name].unavailable():
        pytest.skip(reason)
    if RUNTIMES[name].artifact == "engine":
        here = "{}.{}".format(*torch.cuda.get_device_capability())
        try:
            capabilities = (here,) if name == "tensorrt-rtx" else None
            export(exported_copy, 4, "fp32", trt=True, flavor=name, compute_capabilities=capabilities)
        except InputError as error:
            pytest.skip(str(error))
    images = torch.randn(10, 3, 32, 32)
    with torch.no_grad():
        expected = exported_copy.load()(images)
    logits = RUNTIMES[name].open(exported_copy, Variant.of(4)).infer(images)
    # TF32 is off, so this is fp32: see the tolerance above.
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@no_gpu
def test_without_a_compiler_torch_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        runtime_named("torch-compile")


@pytest.mark.slow
def test_torch_compile_computes_the_folders_model(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    if reason := RUNTIMES["torch-compile"].unavailable():
        pytest.skip(reason)
    folder = make_folder(tmp_path / "model", tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"depth": 1}))
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        expected = folder.load()(images)
    session = RUNTIMES["torch-compile"].open(folder, Variant.of(4))
    assert isinstance(session._model, torch._dynamo.OptimizedModule)
    assert (session.infer(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch", "int8"), ("onnxruntime", "bf16"), ("onnxruntime-tensorrt", "fp32"), ("onnxruntime-cuda", "fp8")],
)
def test_a_precision_that_a_runtime_lacks(exported: Path, name: str, precision: str) -> None:
    with pytest.raises(InputError, match=f"--precision {precision}: runtime {name} has fp"):
        RUNTIMES[name].file(ModelFolder(exported), Variant.of(4, precision))


def graph(inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]) -> bytes:
    """A file that sums whatever it is given; the shapes are those that it claims."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items()]
        for ends in (inputs, outputs)
    ]
    nodes = [helper.make_node("ReduceMean", [next(iter(inputs))], [name], keepdims=0, axes=[2, 3]) for name in outputs]
    model = helper.make_model(helper.make_graph(nodes, "g", *values), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": [4, 3, 32, 32]}, {"y": [4, 3]}, None),
        ({"x": [4, 3, "h", 32]}, {"y": [4, 3]}, r"takes \d+×3×(h|None)×32 and gives \d+×3, not one batch of "),
        ({"x": [4, 3, 32, 32]}, {"y": [4, 3], "z": [4, 3]}, "gives 4×3 and 4×3, not one batch of images and a row "),
        ({"x": [4, 3, 32, 32], "u": [1]}, {"y": [4, 3]}, "takes 4×3×32×32 and 1 and gives 4×3, not one batch"),
        ({"x": [4, 3, 2**20, 2**10]}, {"y": [4, 3]}, "takes 4×3×1048576×1024 and gives 4×3; exp|cannot load"),
    ],
)
def test_a_file_of_another_interface_is_refused_before_it_runs(
    tmp_path: Path, name: str, inputs: Any, outputs: Any, message: str | None
) -> None:
    if RUNTIMES[name].unavailable():
        pytest.skip(f"{name} is not installed")
    if name == "openvino" and len(inputs) > 1:
        pytest.skip("OpenVINO 2025 takes an input out that nothing reads")
    (tmp_path / "a.onnx").write_bytes(graph(inputs, outputs))
    runtime = RUNTIMES[name]
    assert isinstance(runtime, OnnxFileRuntime)
    if message is not None:
        with pytest.raises(InputError, match=message):
            runtime.open_file(tmp_path / "a.onnx", "fp32")
        return
    session = runtime.open_file(tmp_path / "a.onnx", "fp32")
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(session.infer(images), images.mean((2, 3)))
    with pytest.raises(InputError, match=r"a\.onnx takes 4×3×32×32, and not 4×3×16×16; export it again"):
        session.infer(torch.randn(4, 3, 16, 16))
