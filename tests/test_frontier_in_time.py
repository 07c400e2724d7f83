"""Frontiers whose sizes are speeds in a runtime: a curve for each, one examination for all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dcvit.bench import BenchRow
from dcvit.bench.statistics import Latency
from dcvit.cli.main import cli
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.frontiers.result import label_of
from dcvit.methods.few_shot import solver
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.speedup import Measure
from dcvit.methods.target import Target
from dcvit.model import create
from dcvit.plan import CompressionPlan
from dcvit.pricing.kept import write_table
from dcvit.pricing.table import LatencyTable
from dcvit.reporting import report
from dcvit.subject import Subject, open_shapes
from dcvit.types import TimmModule

RUN: dict[str, Any] = {"settings": SearchSettings(steps=0), "samples": 8}


@pytest.fixture
def model(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    return create(tiny_plan.model, tiny_plan.model_kwargs)


def in_attention(plan: CompressionPlan) -> float:
    """Where attention is all that takes time."""
    return 1 + sum(10 * (block.removed is None) * (block.head_dim or 16) / 16 for block in _blocks(plan))


def in_mlps(plan: CompressionPlan) -> float:
    """Where MLPs are all that takes time."""
    return 1 + sum(10 * (block.removed != "block") * (block.mlp_hidden or 128) / 128 for block in _blocks(plan))


def _blocks(plan: CompressionPlan) -> Iterator[Any]:
    return (plan.block(index) for index in range(plan.model_kwargs.get("depth", 4)))


@pytest.fixture
def two_runtimes(monkeypatch: pytest.MonkeyPatch, made_up: Any) -> None:
    """In `onnxruntime` attention takes the time, in `torch` the MLPs do."""

    def table(subject: Subject, runtime: str, *more: Any, **_: object) -> LatencyTable:
        return made_up.table(subject, more[2], in_attention if runtime == "onnxruntime" else in_mlps)

    monkeypatch.setattr("dcvit.methods.milliseconds.table_for", table)


@pytest.mark.usefixtures("two_runtimes")
def test_each_runtime_has_sizes_of_its_own_from_one_examination(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[int] = []
    examine = solver.examine
    monkeypatch.setattr(solver, "examine", lambda *given, **more: examined.append(1) or examine(*given, **more))
    found = frontier(
        model, "digits", out=tmp_path / "out", speedups=(1.4, 1.2), runtimes=("onnxruntime", "torch"),
        reductions=(0.3,), **RUN,
    )  # fmt: skip
    assert examined == [1]
    names = ["r0.3", "onnxruntime-x1.2", "onnxruntime-x1.4", "torch-x1.2", "torch-x1.4"]
    assert [point.folder for point in found.points] == names
    for point, latency in zip(found.points[1:], [in_attention] * 2 + [in_mlps] * 2, strict=True):
        folder = ModelFolder(tmp_path / "out" / point.folder)
        assert folder.load()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        wanted = float(point.folder.rpartition("x")[2])
        assert latency(folder.plan.original()) / latency(folder.plan) >= wanted * (1 - 1e-6)
        assert point.predicted_ms[point.curve] == pytest.approx(latency(folder.plan), rel=0.05)
        assert folder.manifest.metrics["predicted_latency"]["speedup"] >= wanted * (1 - 1e-6)
        assert (folder.path / "latency.json").is_file()
        # What is free of charge in one runtime is not cut for it.
        other = in_mlps if latency is in_attention else in_attention
        assert other(folder.plan) == pytest.approx(other(folder.plan.original()))
    assert found.original["predicted_ms"] == pytest.approx({"onnxruntime": 41, "torch": 41})
    assert {name: where["runtime"] for name, where in found.about["curves"].items()} == {
        "onnxruntime": "onnxruntime",
        "torch": "onnxruntime",  # that of the made-up table
    }
    assert all(point.pareto for point in found.points[:1])
    with Image.open(tmp_path / "out" / "frontier.png") as picture:
        assert picture.width > 2.5 * picture.height  # MACs and two runtimes


@pytest.mark.usefixtures("two_runtimes")
def test_the_command_and_the_page(
    tmp_path: Path, tiny_plan: CompressionPlan, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[tuple[Any, ...]] = []

    @contextmanager
    def measuring(_original: CompressionPlan, _preprocessing: object, *setting: Any) -> Iterator[Measure]:
        where.append(setting)
        times = Latency(*[5.0] * 4), Latency(*[10.0] * 4)
        name = setting[0] if setting else "onnxruntime"
        yield lambda _plan: BenchRow(name, 8, "fp32", "a made-up CPU", 1, *times, 2.0, (1.9, 2.1), 20, "interval")

    monkeypatch.setattr("dcvit.frontiers.measuring", measuring)
    monkeypatch.setattr("dcvit.frontiers.SPEEDUPS", (1.1, 1.5, 99))
    out = tmp_path / "out"
    cli(
        ["frontier", tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--random-init", "--data",
         "digits", "--bench", "--samples", "8", "--steps", "0", "--runtime", "onnxruntime", "--runtime", "torch",
         "--batch", "8", "--threads", "1", "-o", str(out), "--json"]
    )  # fmt: skip
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    reached = {point["folder"] for point in found["points"]}
    assert reached == {"onnxruntime-x1.1", "onnxruntime-x1.5", "torch-x1.1", "torch-x1.5"}
    assert "left out: ×99 in onnxruntime" in printed.err
    assert [(setting[0], setting[1].batch, setting[2]) for setting in where] == [("onnxruntime", 8, 1), ("torch", 8, 1)]
    report(out)
    assert "onnxruntime: predicted for onnxruntime fp32, batch 64, 2 threads, a made-up CPU" in printed.err
    page = (out / "report.html").read_text()
    assert "solved in ms of torch" in page
    assert "predicted latency in torch kept, %" in page
    assert "onnxruntime, predicted" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"speedups": (99.0,), "runtimes": ("torch",)},
            r"×99 in torch, as predicted: out of reach; .* takes ×1\.00 to ×",
        ),
        ({"runtimes": ("abacus",)}, "there is no runtime 'abacus'"),
        ({"batch": 8}, "--batch: name the runtimes that are timed so with --runtime"),
        ({"latency_tables": ("nowhere.json",)}, "nowhere.json cannot be read as a latency table"),
        ({"runtimes": ("torch",), "settings": SearchSettings(steps=0, search="trials")}, "are for the solver"),
        ({"target": Target(latency=5)}, "a frontier has many sizes"),
    ],
)
@pytest.mark.usefixtures("two_runtimes")
def test_bad_input_leaves_nothing(tmp_path: Path, model: TimmModule, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        frontier(model, **{"data": "digits", "out": tmp_path / "out"} | RUN | changes)
    assert not (tmp_path / "out" / "frontier.json").exists()


def test_a_table_of_another_machine_gives_a_curve(
    tmp_path: Path, model: TimmModule, tiny_plan: CompressionPlan, made_up: Any
) -> None:
    subject = open_shapes(tiny_plan.model, tiny_plan.model_kwargs)
    latency = made_up.additive(subject)
    write_table(made_up.table(subject, made_up.no_merges, latency), tmp_path / "edge.json")
    found = frontier(
        model, "digits", out=tmp_path / "out", speedups=(1.2,), latency_tables=(tmp_path / "edge.json",), bench=True,
        **RUN,
    )  # fmt: skip
    (point,) = found.points
    assert point.folder == "edge-x1.2"
    assert point.row is None  # that machine is not here
    plan = ModelFolder(tmp_path / "out" / point.folder).plan
    assert latency(tiny_plan) / latency(plan) == pytest.approx(1.2, rel=0.05)
    (tmp_path / "macs.json").write_bytes((tmp_path / "edge.json").read_bytes())
    with pytest.raises(InputError, match="two curves would be called 'macs'"):
        frontier(model, "digits", out=tmp_path / "more", latency_tables=(tmp_path / "macs.json",), **RUN)


def test_labels() -> None:
    assert label_of("macs", 0.166) == "−16.6 %"
    assert label_of("torch", 1 / 3) == "×1.5"
