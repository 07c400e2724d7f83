"""CUDA graphs without a GPU: what is recorded, what is replayed, and that images stay where a graph reads them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dcvit.bench.best_runtime
from dcvit.bench.best_runtime import fastest
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import RUNTIMES, onnx_runtime
from dcvit.runtimes.base import Runtime, Session
from dcvit.runtimes.cuda_graph import WARM_UP, GraphedPass, record_if_possible
from dcvit.runtimes.onnx_runtime import CUDA, OrtSession
from dcvit.runtimes.pytorch import TorchSession
from dcvit.variant import Variant

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="puts stand-ins in the place of a GPU")


class FakeCuda:
    """Records what runs inside `torch.cuda.graph`, and runs that again at a replay, into the same memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[Any] = []
        self.replays = 0
        stream = SimpleNamespace(synchronize=lambda: None, wait_stream=lambda _: None, cuda_stream=7)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self.replay))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        self.again: Callable[[], None] = lambda: None

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.recorded.append((graph, stream))
        yield

    def replay(self) -> None:
        self.replays += 1
        self.again()


@no_gpu
def test_a_pass_is_warmed_up_recorded_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, calls = FakeCuda(monkeypatch), []
    graphed = GraphedPass(lambda: calls.append(len(calls)) or len(calls))
    assert calls == []  # not before there are images
    outputs = [graphed() for _ in range(3)]
    assert len(calls) == WARM_UP + 1
    assert outputs == [WARM_UP + 1] * 3  # what the recorded pass returned, written anew by each replay
    assert len(cuda.recorded) == 1
    assert cuda.replays == 3


@no_gpu
def test_new_images_go_where_the_graph_reads(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, folder = FakeCuda(monkeypatch), ModelFolder(exported)
    session = TorchSession(folder.load(), 4, device="cpu", graph=True)
    first, second = torch.randn(2, 4, 3, 32, 32)
    session.load(first.clone())  # the fake GPU is the CPU, where the images themselves would be the buffer
    place = session._images.data_ptr()

    def again() -> None:  # a real graph computes from the memory of the images into that of the logits
        if session._graphed.output is not None:
            with torch.inference_mode():
                session._graphed.output.copy_(session._forward())

    cuda.again = again
    session.execute()
    before = session.logits().clone()
    session.load(second)
    session.execute()
    assert session._images.data_ptr() == place
    assert cuda.replays == 2
    plain = TorchSession(folder.load(), 4, device="cpu")
    assert torch.equal(before, plain.infer(first))
    assert (session.logits() - plain.infer(second)).abs().max() < 1e-5


@no_gpu
def test_what_cannot_be_recorded_still_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    FakeCuda(monkeypatch)

    def refuse(_stream: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    assert record_if_possible(refuse, None, "the engine e") is None
    assert caplog.messages == [
        "the engine e runs without a CUDA graph: operation not permitted when stream is capturing"
    ]
    streams: list[Any] = []
    assert record_if_possible(streams.append, "a stream", "the engine e") is not None
    assert streams == ["a stream"]


@pytest.mark.parametrize("graph", [False, True])
def test_onnx_runtime_is_asked_for_a_graph(exported: Path, monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    import onnxruntime

    asked: list[Any] = []

    def refuse(_path: str, _options: Any, providers: Any) -> None:
        asked.extend(providers)
        raise RuntimeError("seen enough")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    runtime = onnx_runtime.OnnxRuntime("onnxruntime-cuda-graph" if graph else "onnxruntime-cuda", CUDA, graph=graph)
    with pytest.raises(InputError, match="seen enough"):
        runtime.open(ModelFolder(exported), Variant.of(4))
    ((provider, settings),) = asked
    assert provider == CUDA
    assert settings == {"use_tf32": "0"} | ({"enable_cuda_graph": "1"} if graph else {})
    assert runtime.fixed_batch is graph
    assert OrtSession  # the session is made by the runtime


@no_gpu
@pytest.mark.parametrize("name", ["torch-graph", "torch-compile-graph", "torch-max-autotune", "onnxruntime-cuda-graph"])
def test_graphs_need_a_gpu(name: str) -> None:
    assert "no NVIDIA GPU" in RUNTIMES[name].unavailable()


class Timed(Runtime):
    """A runtime whose pass takes a time of its own on a clock that the test moves."""

    artifact = "weights"
    precisions = ("fp32",)

    def __init__(self, name: str, seconds: float | None, clock: list[float], reason: str | None = None) -> None:
        self.name, self._seconds, self._clock, self._reason = name, seconds, clock, reason

    def unavailable(self) -> str | None:
        return self._reason

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        raise NotImplementedError

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        if self._seconds is None:
            raise InputError(f"{self.name} has no file")
        seconds, clock = self._seconds, self._clock

        class Passes(Session):
            def load(self, images: torch.Tensor) -> None: ...

            def execute(self) -> None:
                clock[0] += seconds

            def logits(self) -> torch.Tensor:
                raise NotImplementedError

        return Passes(variant.batch, "GPU", None)


def test_the_fastest_runtime_is_found_and_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    runtimes = [
        Timed("onnxruntime", 0.0001, clock),  # of the CPU: not looked at
        Timed("torch", 0.004, clock),
        Timed("torch-graph", 0.001, clock),
        Timed("torch-max-autotune", 0.0001, clock),  # compiles for minutes: not looked at either
        Timed("tensorrt", None, clock),
        Timed("tensorrt-rtx", 0.0005, clock, "it is not installed"),
    ]
    monkeypatch.setattr(dcvit.bench.best_runtime, "RUNTIMES", {each.name: each for each in runtimes})
    wall_timer = dcvit.bench.best_runtime.wall_timer
    monkeypatch.setattr(dcvit.bench.best_runtime, "wall_timer", lambda: wall_timer(lambda: clock[0]))
    found = fastest(ModelFolder(exported), Variant.of(4))
    assert found.runtime == "torch-graph"
    assert found.median_ms == pytest.approx({"torch": 4, "torch-graph": 1})
    assert found.skipped == {"tensorrt": "tensorrt has no file", "tensorrt-rtx": "it is not installed"}
    assert str(found) == "the fastest runtime at batch 4 is torch-graph (torch-graph 1.00 ms, torch 4.00 ms)"
    assert found.to_json()["batch"] == 4
