"""Engines that must not run, and what engines tell of themselves; what needs no GPU."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.records import EngineRecord
from dcvit.runtimes import RUNTIMES, flavors
from dcvit.runtimes.inspector import Layer, read_layers
from dcvit.runtimes.tensorrt import EngineSession, mismatch, stale
from dcvit.variant import Variant

ONNX, ENGINE = "model.b4.fp16.onnx", "model.b4.fp16.tensorrt-rtx.engine"


def record_of(folder: ModelFolder, **changes: Any) -> EngineRecord:
    entry = {
        "batch": 4, "precision": "fp16", "onnx": ONNX, "onnx_sha256": folder.manifest.files[ONNX].sha256,
        "flavor": "tensorrt-rtx", "version": "1.7", "compute_capabilities": ["8.6", "8.9"], "tf32": False,
        "network": {"inputs": [], "outputs": [], "layers": {}},
    }  # fmt: skip
    return EngineRecord.model_validate(entry | changes)


def test_version_capability_and_origin_must_fit(exported: Path) -> None:
    folder = ModelFolder(exported)
    record = record_of(folder)
    assert mismatch(record, "1.7", "8.9") is None
    assert mismatch(record, "1.8", "8.9") == "it was built by tensorrt-rtx 1.7, and 1.8 is installed"
    assert mismatch(record, "1.7", "9.0") == "it is for compute capability 8.6, 8.9, and this GPU has 9.0"
    one = record_of(folder, flavor="tensorrt", compute_capabilities=None, compute_capability="8.9")
    assert mismatch(one, "1.7", "8.9") is None
    assert mismatch(one, "1.7", "8.6") == "it is for compute capability 8.9, and this GPU has 8.6"
    assert stale(folder, record) is None
    assert stale(folder, record_of(folder, onnx_sha256="0")) == f"{ONNX} is gone or has changed since"
    assert stale(folder, record_of(folder, onnx="gone.onnx")) == "gone.onnx is gone or has changed since"


def test_an_engine_takes_what_its_onnx_file_takes(exported: Path) -> None:
    folder = ModelFolder(exported)
    assert record_of(folder).variant == Variant.of(4, "fp16")
    pixels = Variant.of(4, "fp16", with_preprocessing=True)
    assert record_of(folder, onnx=pixels.onnx_name).variant == pixels


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.6"}, "it was built by tensorrt-rtx 1.6, and 1.7 is installed"),
        ({"compute_capabilities": ["12.0"]}, "it is for compute capability 12.0, and this GPU has 8.9"),
        ({"onnx_sha256": "0"}, f"{ONNX} is gone or has changed since"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_it_is_loaded(
    exported_copy: ModelFolder, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(flavors, "load", lambda flavor: SimpleNamespace(__version__="1.7"))
    entry = record_of(exported_copy, **changes).model_dump(mode="json")
    exported_copy.add(ENGINE, lambda path: path.write_bytes(b"engine") and None, entry)
    with pytest.raises(InputError) as caught:
        RUNTIMES["tensorrt-rtx"].open(exported_copy, Variant.of(4, "fp16"))
    command = f"dcvit-tool export {exported_copy.path} --batch 4 --precision fp16 --trt --flavor tensorrt-rtx"
    assert str(caught.value) == (
        f"{exported_copy.path / ENGINE} cannot be used: {reason}; "
        f"build it here with `{command} --compute-capability 8.9`"
    )


class FakeEngine:
    """What a session asks of an `ICudaEngine`; it computes nothing."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.cache = FakeCache()
        self.given: Any = None

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(create_runtime_cache=lambda: self.cache)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any = None) -> Any:
        self.given = config
        return SimpleNamespace(set_tensor_address=lambda *_: True, execute_async_v3=lambda _: True)

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"images": "input", "logits": "output"}[name]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"images": (4, 8, 8, 3), "logits": (4, 10)}[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"images": "UINT8", "logits": "FLOAT"}[name])


class FakeCache:
    """An `IRuntimeCache` that compiles two kernels."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content or b"two kernels"


@pytest.mark.parametrize("flavor", ["tensorrt_rtx", "tensorrt"])
def test_kernels_compiled_by_one_session_serve_the_next(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str
) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **more: zeros(*shape, **more))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=0, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "engine").write_bytes(b"engine")
    engines: list[FakeEngine] = []

    def open_session() -> EngineSession:
        engines.append(FakeEngine())
        trt = SimpleNamespace(
            __name__=flavor,
            Logger=lambda level: None,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engines[-1]),
            TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        )
        trt.Logger.ERROR = 0
        return EngineSession(tmp_path / "engine", trt, ModelFolder(exported).manifest.preprocessing)

    session = open_session()
    assert session.infer(torch.randn(6, 3, 8, 8)).shape == (6, 10)  # pixels are made of normalised images
    open_session()
    kept = list((tmp_path / "cache").rglob("*.kernels"))
    if flavor == "tensorrt":  # it compiles nothing when it runs
        assert [engine.given for engine in engines] == [None, None]
        assert kept == []
    else:
        assert [file.read_bytes() for file in kept] == [b"two kernels"]
        assert engines[1].given.cache.content == b"two kernels"


def test_the_inspectors_words_of_either_version() -> None:
    ten = {
        "Name": "a",
        "LayerType": "gemm",
        "Outputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
    }
    eleven = {"Name": "b", "LayerType": "kgen", "Outputs": [{"Name": "y", "DataType": "Half", "Format": "linear"}]}
    silent = {"Name": "c", "LayerType": "signal", "Outputs": []}
    assert read_layers(json.dumps({"Layers": [ten, eleven, silent, "d"]})) == [
        Layer("a", "gemm", "Row major linear FP16 format"),
        Layer("b", "kgen", "Half"),
        Layer("c", "signal", "unknown"),
        Layer("d", "unknown", "unknown"),
    ]
