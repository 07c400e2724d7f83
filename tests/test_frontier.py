"""frontier on small models: what is shared, what is written, and what is left behind when it cannot be."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dcvit.bench import BenchRow
from dcvit.bench.statistics import Latency
from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.frontiers.result import Point, mark_pareto
from dcvit.methods.few_shot import job as job_module
from dcvit.methods.few_shot import solver
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.speedup import Measure
from dcvit.methods.target import Target
from dcvit.model import create
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule

FIVE = (0.1, 0.3, 0.35, 0.4, 0.6)
RUN: dict[str, Any] = {"settings": SearchSettings(steps=1), "samples": 8}
TRIALS = len(SearchSettings().learning_rates)
"""Of learning rates, in front of the first training."""


@pytest.fixture
def model(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    return create(tiny_plan.model, tiny_plan.model_kwargs)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    calls: list[str] = []
    original = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return calls


def test_five_targets_share_one_examination_and_meet_each(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    examinations, trainings = counted(monkeypatch, solver, "examine"), counted(monkeypatch, job_module, "mimic")
    result = frontier(model, "digits", out=tmp_path / "out", reductions=FIVE, **RUN)
    assert len(examinations) == 1
    assert len(trainings) == TRIALS + len(FIVE)
    names = [f"r{share:g}" for share in FIVE]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*names, "frontier.json", "frontier.png"]
    )
    for name, share, point in zip(names, FIVE, result.points, strict=True):
        folder = ModelFolder(tmp_path / "out" / name)
        assert folder.load()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        assert folder.manifest.settings["target"]["macs_reduction"] == share
        assert share <= point.macs_reduction < share + 0.08  # widths are multiples of 8 of 128
        assert folder.plan.digest == point.plan_digest
    assert [point.macs for point in result.points] == sorted((point.macs for point in result.points), reverse=True)
    written = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert written == json.loads(json.dumps(result.to_json() | {"folder": "out"}))
    with Image.open(tmp_path / "out" / "frontier.png") as picture:
        assert picture.format == "PNG"


def test_the_first_point_is_the_model_that_compress_makes_and_the_next_is_cut_from_it(
    tmp_path: Path, model: TimmModule
) -> None:
    frontier(model, "digits", out=tmp_path / "many", reductions=(0.2, 0.4), **RUN)
    compress(model, "digits", out=tmp_path / "one", macs_reduction=0.2, **RUN)
    ours, alone = (ModelFolder(tmp_path / path).load().state_dict() for path in ("many/r0.2", "one"))
    assert all(torch.equal(ours[name], alone[name]) for name in alone)
    larger, smaller = (ModelFolder(tmp_path / "many" / name).plan for name in ("r0.2", "r0.4"))
    for block in larger.blocks:
        further = smaller.block(block.index)
        assert (further.mlp_hidden or 128) <= (block.mlp_hidden or 128)
        assert further.removed == "attention" or block.removed is None


def test_the_given_model_stays_as_it_is(tmp_path: Path, model: TimmModule) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frontier(model, "digits", out=tmp_path / "out", reductions=(0.2, 0.4), **RUN)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_trials_are_shared_too(tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SearchSettings(steps=1, search="trials")
    frontier(model, "digits", out=tmp_path / "out", reductions=(0.3, 0.4), settings=settings, samples=8)
    assert ModelFolder(tmp_path / "out" / "r0.4").manifest.metrics["trials"]


def test_a_cache_serves_other_targets_and_runs(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    examinations, trainings = counted(monkeypatch, solver, "examine"), counted(monkeypatch, job_module, "mimic")
    cache = tmp_path / "cache"
    compress(model, "digits", out=tmp_path / "a", macs_reduction=0.3, cache=cache, **RUN)
    frontier(model, "digits", out=tmp_path / "b", reductions=(0.3, 0.4), cache=cache, **RUN)
    assert (len(examinations), len(trainings)) == (1, TRIALS + 2)
    states = [ModelFolder(tmp_path / path).load().state_dict() for path in ("a", "b/r0.3")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # Another seed draws other images, other images give other results.
    compress(model, "digits", out=tmp_path / "c", macs_reduction=0.3, cache=cache, seed=1, **RUN)
    assert (len(examinations), len(trainings)) == (2, 2 * TRIALS + 3)
    assert not (tmp_path / "a" / "checkpoints").exists()


@pytest.mark.parametrize("where", ["out", "out/cache"])
def test_a_cache_in_the_output_is_refused(tmp_path: Path, model: TimmModule, where: str) -> None:
    with pytest.raises(InputError, match="--cache: .* is in the output folder"):
        compress(model, "digits", out=tmp_path / "out", macs_reduction=0.3, cache=tmp_path / where, **RUN)
    assert list(tmp_path.iterdir()) == []


def test_only_what_can_be_reached_is_taken_by_default(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcvit.frontiers.REDUCTIONS", (0.3, 0.6, 0.95))
    result = frontier(model, "digits", out=tmp_path / "out", **RUN)
    assert [point.target for point in result.points] == [0.3, 0.6]


def test_an_interrupted_frontier_goes_on_where_it_was(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = job_module.mimic, []

    def stops_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == TRIALS + 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(job_module, "mimic", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        frontier(model, "digits", out=tmp_path / "out", reductions=(0.2, 0.4), **RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoints"]
    with pytest.raises(InputError, match="--resume"):
        frontier(model, "digits", out=tmp_path / "out", reductions=(0.2, 0.4), **RUN)
    examinations = counted(monkeypatch, solver, "examine")
    frontier(model, "digits", out=tmp_path / "out", reductions=(0.2, 0.4), resume=True, **RUN)
    assert (len(calls), examinations) == (TRIALS + 3, [])
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_frontier_is_replaced_only_when_asked(tmp_path: Path, model: TimmModule) -> None:
    frontier(model, "digits", out=tmp_path / "out", reductions=(0.2, 0.4), **RUN)
    with pytest.raises(InputError, match="--overwrite"):
        frontier(model, "digits", out=tmp_path / "out", reductions=(0.3,), **RUN)
    frontier(model, "digits", out=tmp_path / "out", reductions=(0.3,), overwrite=True, **RUN)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frontier.json", "frontier.png", "r0.3"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="not a model folder"):
        frontier(model, "digits", out=tmp_path / "mine", reductions=(0.3,), overwrite=True, **RUN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reductions": (0.3, 0.95)}, "0.9500 is out of reach"),
        ({"data": "nowhere"}, "there is nothing at nowhere"),
        ({"evaluate": "nowhere"}, "there is nothing at nowhere"),
        ({"target": Target(speedup=1.5)}, "a frontier has many sizes"),
        ({"target": Target(merge="horizontal@9")}, "is at no block"),
    ],
)
def test_bad_input_leaves_nothing(
    tmp_path: Path, model: TimmModule, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = counted(monkeypatch, job_module, "mimic")
    with pytest.raises(InputError, match=message):
        frontier(model, **{"data": "digits", "out": tmp_path / "out"} | RUN | changes)
    assert trainings == []
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("out", "checkpoints")
            and not path.name.startswith("examined-")] == []  # fmt: skip


def a_row(speedup: float) -> BenchRow:
    times = Latency(*[10 / speedup] * 4), Latency(*[10.0] * 4)
    interval = (0.98 * speedup, 1.02 * speedup)
    return BenchRow("onnxruntime", 64, "fp32", "a made-up CPU", 2, *times, speedup, interval, 20, "interval")


@pytest.fixture
def made_up_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def measuring(*_: object) -> Iterator[Measure]:
        yield lambda plan: a_row(1 + 0.2 * len(plan.blocks))

    monkeypatch.setattr("dcvit.frontiers.measuring", measuring)


@pytest.mark.usefixtures("made_up_bench")
def test_the_command_with_latency_and_accuracy(
    tmp_path: Path, tiny_plan: CompressionPlan, capfd: pytest.CaptureFixture[str]
) -> None:
    cli(
        ["frontier", tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--random-init", "--data",
         "digits", "--evaluate", "digits", "--bench", "--samples", "8", "--steps", "0", "--macs-reduction", "0.4",
         "--macs-reduction", "0.2", "-o", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    printed = capfd.readouterr()
    report = json.loads(printed.out)
    assert [point["folder"] for point in report["points"]] == ["r0.2", "r0.4"]
    assert report["original"]["images"] == 500
    for point in report["points"]:
        assert 0 <= point["top1"] <= 100
        assert point["bench"]["batch"] == 64
        assert point["kl"] > 0
    assert report["machine"]["cores"] >= 1
    assert "onnxruntime fp32, batch 64, a made-up CPU, 2 threads" in printed.err
    with Image.open(tmp_path / "out" / "frontier.png") as picture:
        assert picture.width > 1.5 * picture.height  # two panels


def a_point(macs: int, kl: float, top1: float | None = None) -> Point:
    return Point(f"r{macs}", 0.5, 0.5, macs, 1, 1, kl, top1, None, 1.0, "")


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([a_point(3, 0.1), a_point(2, 0.2), a_point(1, 0.3)], [True, True, True]),
        ([a_point(3, 0.1), a_point(2, 0.4), a_point(1, 0.3)], [True, False, True]),
        ([a_point(2, 0.1), a_point(2, 0.1)], [True, True]),
        ([a_point(2, 0.1), a_point(2, 0.2)], [True, False]),
        ([a_point(2, 0.1, 90.0), a_point(1, 0.2, 91.0)], [False, True]),  # accuracy counts where it is known
    ],
)
def test_pareto(points: list[Point], best: list[bool]) -> None:
    assert [point.pareto for point in mark_pareto(points)] == best


def test_the_table_says_what_every_figure_is(tmp_path: Path, model: TimmModule, capsys: Callable) -> None:
    from rich.console import Console

    result = frontier(model, "digits", out=tmp_path / "out", reductions=(0.3,), **RUN)
    with Console(width=160, record=True, file=(tmp_path / "text").open("w")) as console:
        for line in result.lines():
            console.print(line)
    text = console.export_text()
    assert "MACs per image, full convention" in text
    assert "KL (nats)" in text
    assert "r0.3" in text
