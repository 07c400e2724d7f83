"""Engines, built by TensorRT-RTX without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.exporting.engine_file import BuilderToFile
from dcvit.exporting.targets import EngineTarget, engine_target
from dcvit.exporting.tensorrt import _cause, build_engine, header_faults
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import engine_records
from dcvit.runtimes import flavors

needs_rtx = pytest.mark.skipif(not flavors.installed("tensorrt-rtx"), reason="tensorrt_rtx is not installed")


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(flavors, "find_spec", lambda name: None if name in packages else find(name))


@pytest.mark.trt
@needs_rtx
def test_the_types_of_the_graph_are_those_of_the_engine(
    exported_copy: ModelFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp32", "fp16"):
        export(exported_copy, 4, precision, trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.6", "12.0"))
    assert capfd.readouterr() == ("", "")  # stdout is for JSON, and polygraphy and TensorRT are talkative
    records = engine_records(ModelFolder(exported_copy.path))
    assert list(records) == ["model.b4.fp16.tensorrt-rtx.engine", "model.b4.fp32.tensorrt-rtx.engine"]
    for name, record in records.items():
        dtype = "HALF" if record.precision == "fp16" else "FLOAT"
        assert set(record.network.layers["MATRIX_MULTIPLY"]) == {dtype}
        assert set(record.network.layers["NORMALIZATION"]) == {"FLOAT"}
        assert [tensor.dtype for tensor in (*record.network.inputs, *record.network.outputs)] == ["FLOAT", "FLOAT"]
        assert record.network.inputs[0].shape == (4, 3, 32, 32)
        assert record.compute_capabilities == ("8.6", "12.0")
        assert record.onnx_sha256 == exported_copy.manifest.files[record.onnx].sha256
        assert header_faults(exported_copy.path / name, "tensorrt-rtx") == []
        assert record.builder.optimization_level == 3
        assert record.builder.workspace_bytes > 0
        assert record.builder.flags == ()  # above all not TF32
        assert record.builder.profiling_verbosity == "DETAILED"
        assert not record.builder.timing_cache


@pytest.mark.trt
@needs_rtx
def test_the_code_for_tensorrt_builds_and_uses_earlier_timings(exported: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("tensorrt_by_rtx.py")
    ended = subprocess.run(
        [sys.executable, script, exported / "model.b4.fp16.onnx", tmp_path / "engine"],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    built = json.loads(ended.stdout)
    assert built["target"] == {
        "flavor": "tensorrt", "version": "11.0.0", "compute_capabilities": None, "compute_capability": "8.9",
    }  # fmt: skip
    assert built["bytes"] > 10_000
    assert set(built["products"]) == {"HALF"}
    assert built["timing_cache"] == [False, True]  # the second build has the timings of the first
    (timings,) = (tmp_path / "cache" / "dcvit-tool" / "tensorrt").glob("*.timings")
    assert timings.name == "11.0.0-Some-GPU.timings"
    assert timings.stat().st_size > 0


@pytest.mark.trt
@needs_rtx
def test_a_file_that_is_no_engine_shows_in_its_header(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"not an engine" * 100)
    assert header_faults(tmp_path / "engine", "tensorrt-rtx") == ["its header says MALFORMED_ENGINE"]


@pytest.mark.trt
@needs_rtx
def test_what_tensorrt_refuses_is_one_sentence(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=1, reduction="add")
    graph = helper.make_graph(
        [node],
        "scatter",
        [value("x", TensorProto.FLOAT, [2, 4]), value("i", TensorProto.INT64, [2, 2]), value("u", 1, [2, 2])],
        [value("y", TensorProto.FLOAT, [2, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "scatter.onnx")
    with pytest.raises(InputError, match=r"engine from scatter.onnx: In node .*: Unsupported reduction type$"):
        build_engine(tmp_path / "scatter.onnx", tmp_path / "engine", engine_target("tensorrt-rtx", ("8.9",)))


@pytest.mark.parametrize(
    ("printed", "cause"),
    [
        ("", "Could not parse ONNX correctly"),
        (
            "[W] 'colored' module is not installed\n"
            '[E] ModelImporter.cpp:140: While parsing node number 1 [Foo -> "y"]:\n'
            "[E] ModelImporter.cpp:142: --- Begin node ---\n    Node name: foo\n"
            "[E] In node 1 with name: foo and operator: Foo (check): INVALID_NODE: Plugin not found\n"
            "[!] Could not parse ONNX correctly",
            "In node 1 with name: foo and operator: Foo (check): INVALID_NODE: Plugin not found",
        ),
        (
            "[E] ITensor::getDimensions: Error Code 4: (mm: must have same input types)\n"
            "[E] [checkMacros.cpp::catchCudaError::250] Error Code 1: no driver\n"
            "[E] In node 0 with name: mm (parseNode): INVALID_NODE: Invalid Node - mm\n"
            "    ITensor::getDimensions: Error Code 4: (mm: must have same input types)\n"
            "    [checkMacros.cpp::catchCudaError::250] Error Code 1: no driver\n"
            "[E] In node 3 with name: other: INVALID_NODE: too\n",
            "In node 0 with name: mm (parseNode): INVALID_NODE: Invalid Node - mm ITensor::getDimensions: "
            "Error Code 4: (mm: must have same input types) (and 1 more)",
        ),
        ("[E] IBuilder: (ITopKLayer topk: K exceeds 3840)\n" * 2, "IBuilder: (ITopKLayer topk: K exceeds 3840)"),
        ("[E] [checkMacros.cpp::catchCudaError::250] no driver\n", "[checkMacros.cpp::catchCudaError::250] no driver"),
    ],
    ids=["nothing", "parser", "types", "builder", "driver"],
)
def test_the_cause_is_what_the_log_says_of_the_node(printed: str, cause: str) -> None:
    assert _cause(printed, RuntimeError("Could not parse ONNX correctly")) == cause


@pytest.mark.trt
@needs_rtx
def test_targets_are_checked_first() -> None:
    assert engine_target("tensorrt-rtx", None).compute_capabilities == ("8.6", "8.9", "12.0")
    with pytest.raises(InputError, match=r"--compute-capability 9\.9: TensorRT-RTX .* builds for 7\.5, 8\.0"):
        engine_target("tensorrt-rtx", ("8.6", "9.9"))
    with pytest.raises(InputError, match="--compute-capability 86"):
        engine_target("tensorrt-rtx", ("86",))


@pytest.mark.trt
@needs_rtx
def test_one_process_builds_with_one_flavor(exported: Path, tmp_path: Path) -> None:
    onnx_path, path = exported / "model.b4.fp32.onnx", tmp_path / "engine"
    build_engine(onnx_path, path, engine_target("tensorrt-rtx", ("8.9",)))
    with pytest.raises(InputError, match="a process of its own"):
        build_engine(onnx_path, path, EngineTarget(flavor="tensorrt", version="", compute_capabilities=None))


@pytest.mark.trt
@needs_rtx
def test_an_engine_goes_to_its_file_part_by_part(exported: Path, tmp_path: Path) -> None:
    onnx_path, target = exported / "model.b4.fp32.onnx", engine_target("tensorrt-rtx", ("8.9",))
    build_engine(onnx_path, tmp_path / "engine", target)
    assert header_faults(tmp_path / "engine", "tensorrt-rtx") == []
    with pytest.raises(OSError, match="No space left"):
        build_engine(onnx_path, Path("/dev/full"), target)


class _Builder:
    """One of the first TensorRT 10, which gives the engine alone; or none, where it cannot build."""

    def __init__(self, engine: bytes | None) -> None:
        self.engine = engine

    def build_serialized_network(self, network: object, config: object) -> bytes | None:
        return self.engine


def test_a_builder_that_has_no_stream_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    assert BuilderToFile(_Builder(b"engine"), "tensorrt", path).build_serialized_network(None, None) == path
    assert path.read_bytes() == b"engine"
    assert BuilderToFile(_Builder(None), "tensorrt", path).build_serialized_network(None, None) is None


def test_without_tensorrt_one_sentence_says_what_to_install(
    exported_copy: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "tensorrt", "tensorrt_rtx")
    before = sorted(exported_copy.path.iterdir())
    with pytest.raises(InputError, match=r"neither .* is installed; `pip install 'dcvit-tool\[tensorrt-rtx\]'`"):
        export(exported_copy, 2, trt=True)
    with pytest.raises(InputError, match=r"tensorrt is not installed; `pip install 'dcvit-tool\[tensorrt\]'`"):
        export(exported_copy, 2, trt=True, flavor="tensorrt")
    assert sorted(exported_copy.path.iterdir()) == before
