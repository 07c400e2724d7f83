"""The search for a speed-up, against made-up latencies: how close, how many measurements, and what is refused."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcvit.bench import BenchRow
from dcvit.bench.statistics import Latency
from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.speedup import (
    MOST_MEASUREMENTS,
    TOLERANCE,
    Candidates,
    Goal,
    Measure,
    correct,
    find_share,
    measuring,
)
from dcvit.methods.target import Reach, Target
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.pricing.kept import read_table, write_table
from dcvit.pricing.probes import Style
from dcvit.pricing.table import LatencyTable
from dcvit.subject import Subject, open_shapes

BASE = CompressionPlan(model="vit_tiny_patch16_224")


def macs_share(plan: CompressionPlan) -> float:
    """MACs of a plan, as a share of its model's."""
    return macs(plan) / macs(plan.original())


def macs(plan: CompressionPlan) -> int:
    return _macs(plan.to_json())


@cache
def _macs(plan: str) -> int:
    parsed = CompressionPlan.from_json(plan)
    size = open_shapes(parsed.model, parsed.model_kwargs).architecture.input_size
    return count_macs(build(parsed, device="meta"), size).total


def row(speedup: float) -> BenchRow:
    latency, baseline = Latency(*[1.0] * 4), Latency(*[speedup] * 4)
    interval = (0.99 * speedup, 1.01 * speedup)
    return BenchRow("onnxruntime", 64, "fp32", "a made-up CPU", 2, latency, baseline, speedup, interval, 20, "interval")


class Bench:
    """Times plans that say in their one block how many thousandths of the MACs are left."""

    def __init__(self, latency: Callable[[float], float], steps: int = 1000, noise: float = 0.0) -> None:
        self.latency, self.steps, self.noise = latency, steps, noise
        self.measured: list[str] = []
        self.generator = np.random.default_rng(0)

    def plan(self, share: float) -> CompressionPlan:
        left = 1 + round((1 - share) * self.steps)
        return BASE.with_blocks(BlockPlan(index=1, removed="attention", mlp_hidden=left))

    def speedup(self, plan: CompressionPlan) -> float:
        left = (plan.blocks[0].mlp_hidden - 1) / self.steps if plan.blocks else 0.8
        return 1 / self.latency(left)

    def __call__(self, plan: CompressionPlan) -> BenchRow:
        self.measured.append(plan.digest)
        return row(self.speedup(plan) * (1 + self.generator.uniform(-self.noise, self.noise)))

    def candidates(
        self,
        base: CompressionPlan = BASE,
        least: float = 0.0,
        most: float = 0.8,
        make: Callable[[float | None], Any] = str,
        base_chosen: bool = False,
    ) -> Candidates[Any]:
        share = 0.0 if base.is_identity else 0.2
        return Candidates(base, share, self.plan, make, Reach(max(least, share), most), base_chosen)


LATENCIES = {
    "proportional": lambda left: left,
    "with a constant": lambda left: 0.25 + 0.75 * left,
    "mostly constant": lambda left: 0.5 + 0.5 * left,
    "better than MACs": lambda left: max(0.05, 1.25 * left - 0.25),
    "curved": lambda left: left**2,
    "a root": lambda left: left**0.5,
    "late": lambda left: 1.0 if left > 0.5 else 0.3 + 1.4 * left,
    "stairs": lambda left: 0.1 + 0.9 * np.ceil(left * 50) / 50,
}


@pytest.mark.parametrize("name", LATENCIES)
@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("wanted", [1.05, 1.2, 1.5, 1.66])
def test_it_ends_within_3_percent_after_few_measurements(name: str, noise: float, wanted: float) -> None:
    bench = Bench(LATENCIES[name], noise=noise)
    found = find_share(Goal(wanted), bench.candidates(), bench)
    # The interval of a measurement is ±1 %, so a fresh one may be 1 % off beside what the search ends with.
    true = bench.speedup(bench.plan(found.share))
    assert abs(true / wanted - 1) <= TOLERANCE
    assert found.measurements == len(bench.measured) <= MOST_MEASUREMENTS
    assert len(set(bench.measured)) == len(bench.measured)


def test_a_line_takes_three_measurements_at_most() -> None:
    for wanted in (1.1, 1.3, 1.5):
        bench = Bench(LATENCIES["with a constant"])
        assert find_share(Goal(wanted), bench.candidates(), bench).measurements <= 3


def test_plans_that_differ_by_noise_alone_are_not_timed_one_after_the_other() -> None:
    def latency(left: float) -> float:
        return (0.25 + 0.75 * left) * (1.04 if left > 0.5555 else 0.96)

    bench = Bench(latency)
    found = find_share(Goal(1.5), bench.candidates(), bench)
    assert found.reached > 1
    assert found.measurements <= 5


@pytest.mark.parametrize("bias", [1.0, 0.9, 1.15])
def test_blocks_that_cost_other_than_their_stand_ins_are_corrected_for(bias: float) -> None:
    bench = Bench(lambda left: left)
    made: list[float | None] = []

    def make(share: float | None) -> float:
        made.append(share)
        assert share is not None
        return 1 - bias * share  # its latency

    candidates = bench.candidates(make=make)
    found = find_share(Goal(1.5), candidates, bench)
    latency, measured = correct(found, Goal(1.5), candidates, lambda latency: row(1 / latency), corrections=2)
    assert abs(measured.speedup / 1.5 - 1) <= TOLERANCE
    assert measured.speedup == 1 / latency
    assert len(made) == (1 if bias == 1.0 else 2)


def test_the_nearest_is_kept_with_a_warning_where_corrections_do_not_help(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(lambda left: left)
    speeds = iter([1.2, 1.4, 1.7])
    candidates = bench.candidates(make=lambda _share: next(speeds))
    found = find_share(Goal(1.5), candidates, bench)
    with caplog.at_level(logging.WARNING, logger="dcvit"):
        made, _ = correct(found, Goal(1.5), candidates, row, corrections=2)
    assert made == 1.4
    assert "not within 3 %" in caplog.text


def test_out_of_reach_names_what_can_be_reached() -> None:
    bench = Bench(lambda left: 0.5 + 0.5 * left)  # at most 1 / 0.6
    with pytest.raises(InputError, match=r"--speedup 2 is out of reach in onnxruntime.*×1\.67; ask for ×1\.00 to that"):
        find_share(Goal(2.0), bench.candidates(), bench)
    assert len(bench.measured) <= MOST_MEASUREMENTS


def test_a_speedup_just_within_reach_is_found() -> None:
    bench = Bench(lambda left: 0.5 + 0.5 * left)
    found = find_share(Goal(1.66), bench.candidates(), bench)
    assert found.reached == pytest.approx(1, rel=TOLERANCE)


MERGED = BASE.replace(merges=(Merge(after=4, axis="horizontal"),))


def test_merges_alone_can_be_enough_or_too_much() -> None:
    bench = Bench(lambda left: left)  # the base plan leaves 0.8, so it is ×1.25
    assert find_share(Goal(1.25), bench.candidates(MERGED), bench).share is None
    assert find_share(Goal(1.1), bench.candidates(MERGED, base_chosen=True), bench).share is None
    with pytest.raises(InputError, match="nothing else can be cut"):
        find_share(Goal(1.5), bench.candidates(MERGED, most=0.2, base_chosen=True), bench)
    assert find_share(Goal(1.5), bench.candidates(MERGED), bench).share == pytest.approx(1 / 3, abs=0.02)
    with pytest.raises(InputError, match=r"merges alone are at ×1\.25 already; ask for ×1\.25 to ×5\.00"):
        find_share(Goal(1.1), bench.candidates(MERGED), bench)


def test_plans_too_coarse_give_the_next_faster_one_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(lambda left: left, steps=5)  # ×1, 1.25, 1.67, 2.5, 5
    with caplog.at_level(logging.WARNING, "dcvit"):
        found = find_share(Goal(1.45), bench.candidates(), bench)
    assert found.reached == pytest.approx(5 / 3 / 1.45)
    assert "no plan was measured within 3 %" in caplog.text


def test_a_gap_below_the_least_plan_gives_that_plan(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(lambda left: left)
    with caplog.at_level(logging.WARNING, "dcvit"):
        found = find_share(Goal(1.1), bench.candidates(least=0.3), bench)
    assert found.share == 0.3
    assert len(bench.measured) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speedup": 1.5, "macs_reduction": 0.3}, "exclude each other"),
        ({"latency": 5.0, "macs_reduction": 0.3}, "--macs-reduction and --latency exclude each other"),
        ({"runtime": "torch", "macs_reduction": 0.3}, "give --speedup or --latency too"),
        ({"batch": 8}, "--batch says where a latency is measured"),
    ],
)
def test_one_target_at_a_time(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target(**fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "swin_tiny_patch4_window7_224", "--speedup", "1.5"], "--speedup has to be measured for this model"),
        (["plan", "vit_tiny_patch16_224", "--method", "cait", "--latency", "9ms"],
         "--latency has to be measured"),
        (["compress", "vit_tiny_patch16_224", "-o", "out", "--latency", "fast"], "--latency: Input should be a valid"),
        (["compress", "vit_tiny_patch16_224", "-o", "out", "--speedup", "1.5", "--macs-reduction", "0.3"],
         "--macs-reduction and --speedup exclude each other"),
        (["compress", "vit_tiny_patch16_224", "-o", "out", "--speedup", "0.9"], "is not in the range x>1"),
        (["compress", "vit_tiny_patch16_224", "-o", "out", "--random-init", "--recover", "none", "--speedup", "1.5",
          "--runtime", "onnx"], "there is no runtime 'onnx'"),
    ],
)  # fmt: skip
def test_the_command_line_says_what_is_wrong_in_a_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(arguments)
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def by_macs(monkeypatch: pytest.MonkeyPatch, made_up: Any) -> list[CompressionPlan]:
    """Makes latency a + b·MACs of the real plans; lists those that were measured."""
    measured: list[CompressionPlan] = []

    @contextmanager
    def measuring_macs(original: CompressionPlan, *_: object) -> Iterator[Measure]:
        def measure(plan: CompressionPlan) -> BenchRow:
            measured.append(plan)
            return row(1 / (0.2 + 0.8 * macs_share(plan)))

        yield measure

    def table(subject: Subject, *_: object, **__: object) -> LatencyTable:
        style = _[3]
        assert isinstance(style, Style)
        return made_up.table(subject, style, lambda plan: 20 + 80 * macs(plan) / macs(subject.plan.original()))

    monkeypatch.setattr("dcvit.methods.run.measuring", measuring_macs)
    monkeypatch.setattr("dcvit.methods.milliseconds.table_for", table)
    return measured


@pytest.mark.parametrize("search", ["solver", "trials", "none"])
def test_compress_meets_a_speedup_and_trains_once(
    tmp_path: Path, tiny_plan: CompressionPlan, by_macs: list[CompressionPlan], search: str, monkeypatch: Any
) -> None:
    trained: list[str] = []
    from dcvit.methods.few_shot.job import Job

    original = Job.train
    monkeypatch.setattr(Job, "train", lambda self, *a, **k: trained.append("once") or original(self, *a, **k))
    torch.manual_seed(0)
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    data, recover = (None, "none") if search == "none" else ("digits", "mimic")
    result = compress(
        model, data, out=tmp_path / "out", speedup=1.3, recover=recover, samples=8,
        settings=SearchSettings(steps=1, search="trials" if search == "trials" else "solver"),
    )  # fmt: skip
    metrics = json.loads(json.dumps(ModelFolder(tmp_path / "out").manifest.metrics))
    assert metrics["speedup"]["speedup"] == pytest.approx(1.3, rel=TOLERANCE)
    assert {"speedup_ci95", "runtime", "batch", "precision", "device", "threads", "runs"} <= set(metrics["speedup"])
    assert metrics["speedup_measurements"] <= MOST_MEASUREMENTS
    assert by_macs[-1] == result.summary.plan  # what is recorded is what was written
    if search == "solver":
        assert trained == ["once"]
    assert any("×1." in line for line in result.lines() if isinstance(line, str))


def test_a_latency_in_milliseconds_is_met_as_a_speedup_is(
    tmp_path: Path, tiny_plan: CompressionPlan, by_macs: list[CompressionPlan]
) -> None:
    torch.manual_seed(0)
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    settings = SearchSettings(steps=0)
    # The made-up runtime takes 1 ms for what it times, whatever that is, and the speed-up says what the other takes.
    with pytest.raises(InputError, match=r"--latency 2ms: the .* at 1 ms already; ask for 1 ms"):
        compress(model, "digits", out=tmp_path / "out", latency=2.0, samples=8, settings=settings)


def test_times_of_another_machine_are_used_without_measuring(
    tmp_path: Path, tiny_plan: CompressionPlan, made_up: Any, monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    subject = open_shapes(tiny_plan.model, tiny_plan.model_kwargs)
    latency = made_up.additive(subject)
    write_table(made_up.table(subject, Style(), latency), tmp_path / "edge.json")

    def fails(*_: object, **__: object) -> Any:
        raise AssertionError("nothing is measured here")

    monkeypatch.setattr("dcvit.methods.speedup.benchmark", fails)
    wanted = 0.85 * latency(tiny_plan)
    result = compress(
        model, "digits", out=tmp_path / "out", latency=wanted, latency_table=tmp_path / "edge.json", samples=8,
        settings=SearchSettings(steps=0),
    )  # fmt: skip
    came_to = latency(result.summary.plan)
    assert 0.95 * wanted <= came_to <= wanted
    found = ModelFolder(tmp_path / "out").manifest.metrics["predicted_latency"]
    assert found["after_ms"] == pytest.approx(came_to, rel=0.03)  # between the widths that were timed
    assert found["machine"] == "a made-up CPU"
    assert read_table(tmp_path / "out" / "latency.json").setting == made_up.setting
    with pytest.raises(InputError, match=r"--speedup is out of reach: cutting all that can be cut comes to .* ms"):
        compress(
            model, "digits", out=tmp_path / "more", speedup=9, latency_table=tmp_path / "edge.json", samples=8,
            settings=SearchSettings(steps=0),
        )  # fmt: skip
    with pytest.raises(InputError, match="--latency 9999ms: the model takes .* already, as the table says"):
        compress(
            model, "digits", out=tmp_path / "more", latency=9999, latency_table=tmp_path / "edge.json", samples=8,
            settings=SearchSettings(steps=0),
        )  # fmt: skip


def test_a_plan_in_time_needs_no_images(
    tiny_plan: CompressionPlan, by_macs: list[CompressionPlan], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs)]
    cli(["plan", *arguments, "--speedup", "1.3", "--json"], standalone_mode=False)
    found = json.loads(capfd.readouterr().out)
    assert found["predicted_latency"]["speedup"] == pytest.approx(1.3, rel=TOLERANCE)
    assert found["macs_after"] / found["macs_before"] == pytest.approx((1 / 1.3 - 0.2) / 0.8, rel=0.05)
    assert by_macs == []


def test_a_real_measurement_says_what_it_was_made_with(tiny_plan: CompressionPlan, monkeypatch: Any) -> None:
    monkeypatch.setattr("dcvit.methods.speedup._MAX_SECONDS", 0.2)
    preprocessing = open_shapes(tiny_plan.model, tiny_plan.model_kwargs).preprocessing
    blocks = [BlockPlan(index=index, removed="attention", mlp_hidden=8) for index in (1, 2)]
    with measuring(tiny_plan, preprocessing) as measure:
        found = measure(tiny_plan.with_blocks(*blocks))
        assert measure(tiny_plan.with_blocks(*blocks)) is found
    assert (found.runtime, found.batch, found.precision) == ("onnxruntime", 64, "fp32")
    assert found.threads is not None
    assert found.speedup_ci95[0] <= found.speedup <= found.speedup_ci95[1]
