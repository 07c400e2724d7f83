"""`dcvit-tool bench`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dcvit.bench.baseline import Baseline
from dcvit.bench.check import update
from dcvit.bench.gate import Judgement
from dcvit.bench.pair import Setting
from dcvit.bench.warm_up import warm_up
from dcvit.folder.model_folder import ModelFolder
from dcvit.variant import Variant

Tool = Callable[..., Any]


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcvit.bench.rounds.warm_up", partial(warm_up, window_seconds=0.02, max_seconds=0.1))


def test_json_has_the_keys_that_scripts_read(tool: Tool, exported_copy: ModelFolder) -> None:
    ended = tool("bench", exported_copy.path, "--batch", 4, "--runs", 6, "--threads", 1, "--no-memory", "--json")
    assert ended.status == 0
    (row,) = ended.json["results"]
    assert (row["runtime"], row["batch"], row["precision"], row["runs"]) == ("onnxruntime", 4, "fp32", 6)
    assert row["threads"] == 1
    assert {"median_ms", "baseline_median_ms", "speedup", "speedup_ci95", "macs", "baseline_macs", "verdict"} <= set(
        row
    )
    kept = json.loads((exported_copy.path / "bench.json").read_text())
    assert kept == ended.json | {"folder": exported_copy.path.name}  # but for where it lies
    assert "speed-up [95 %]" in ended.stderr


def test_two_runtimes_against_another_folder(tool: Tool, exported_copy: ModelFolder, exported: Path) -> None:
    ended = tool(
        "bench", exported_copy.path, "--against", exported, "--runtime", "torch", "--runtime", "onnxruntime",
        "--batch", 4, "--max-seconds", 0.2, "--threads", 1, "--no-memory",
    )  # fmt: skip
    assert ended.status == 0
    assert f"against {exported}" in " ".join(ended.stdout.split())
    assert "torch" in ended.stdout
    assert "onnxruntime" in ended.stdout


def test_the_file_that_is_there_is_timed(tool: Tool, exported_copy: ModelFolder) -> None:
    exported_copy.remove(["model.b4.fp32.onnx"])
    ended = tool("bench", exported_copy.path, "--runs", 5, "--no-memory", "--json")
    assert ended.status == 0
    (row,) = ended.json["results"]
    assert (row["batch"], row["precision"], row["file"]) == (4, "fp16", "model.b4.fp16.onnx")
    assert "taking model.b4.fp16.onnx" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4", "--threads", "1000"], "--threads 1000: this process may use"),
        (["--update"], "--update goes with --check"),
        (["--undecided", "pass"], "--undecided goes with --check"),
        (["--check", "b.json", "--batch", "4"], "--batch with --check is what the baseline says"),
        (["--check", "b.json", "--update", "--runs", "9"], "--runs has no effect on a baseline"),
        (["--check", "b.json"], "there is no baseline b.json"),
        (["--batch", "4", "--check", "b.json", "--update", "--tolerance", "1"], "--tolerance 1.0: give a share"),
        (["--runs", "2"], "--runs 2: an interval needs at least 5 runs"),
        (["--max-seconds", "-1"], "--max-seconds -1.0: give a time above 0"),
        (["--batch", "0"], "at least one image"),
        (["--batch", "3"], "no model.b3.fp32.onnx; make it with"),
        (["--runtime", "caffe"], "there is no runtime 'caffe'"),
        (["--batch", "4", "--against", "nowhere"], "'nowhere' is neither a model folder nor a timm model"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tool: Tool, exported: Path, arguments: list[str], message: str) -> None:
    ended = tool("bench", exported, *arguments)
    assert ended.status == 2
    assert message in ended.error


@pytest.mark.parametrize(
    ("outcome", "flags", "status", "said"),
    [
        ("passed", [], 0, "passed"),
        ("failed", [], 1, "slower than allowed: small"),
        ("failed", ["--undecided", "pass"], 1, "slower than allowed: small"),
        ("undecided", [], 1, "counts as fail"),
        ("undecided", ["--undecided", "pass"], 0, "counts as pass"),
    ],
)
def test_the_gate_ends_with_the_status_of_its_outcome(
    tool: Tool, exported_copy: ModelFolder, baseline: Path, outcome: Any, flags: list[str], status: int, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[float] = []

    def judged(_: object, threshold: float, *__: object) -> Judgement:
        asked.append(threshold)
        return Judgement(outcome, 1.5, ("above", None, "below"), 99, 3.0, 3.0, 2.0)

    monkeypatch.setattr("dcvit.bench.check.judge", judged)
    ended = tool("bench", exported_copy.path, "--check", baseline, *flags, "--json")
    assert (ended.status, ended.json["passed"]) == (status, status == 0)
    (row,) = ended.json["checks"]
    assert (row["name"], row["outcome"], row["speedup"]) == ("small", outcome, 1.5)
    entry = next(iter(Baseline.read(baseline).machines.values()))
    assert asked == [pytest.approx(0.9 * entry.speedup)]
    assert said in ended.stderr
    assert "✓?✗, 99 runs" in ended.stderr


def test_a_baseline_is_written_and_judges(tool: Tool, exported_copy: ModelFolder, baseline: Path) -> None:
    written = Baseline.read(baseline)
    assert (written.setting, written.tolerance) == (Setting.of("onnxruntime", Variant.of(4), threads=1), 0.1)
    assert written.model_copy(update={"with_preprocessing": True}).setting.variant.with_preprocessing
    (entry,) = written.machines.values()
    assert entry.sha256 == exported_copy.manifest.files["model.b4.fp32.onnx"].sha256
    assert entry.plan_digest == exported_copy.plan.digest
    assert entry.interval[0] <= entry.speedup <= entry.interval[1]
    # The real measurement, against a speed-up that no machine reaches, and one that every machine does.
    for factor, status in ((20.0, 1), (0.05, 0)):
        moved = entry.model_copy(update={"speedup": factor * entry.speedup})
        written.model_copy(update={"machines": dict.fromkeys(written.machines, moved)}).write(baseline)
        assert tool("bench", exported_copy.path, "--check", baseline).status == status
    assert not (exported_copy.path / "bench.json").exists()


def test_another_kind_of_machine_gets_a_note_and_more_tolerance(
    tool: Tool, exported_copy: ModelFolder, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Judgement("passed", 1.5, ("above", "above"), 99, 3.0, 3.0, 2.0)
    monkeypatch.setattr("dcvit.bench.check.judge", lambda *_: found)
    written = Baseline.read(baseline)
    (entry,) = written.machines.values()
    faster = entry.model_copy(update={"speedup": 2 * entry.speedup})
    written.model_copy(update={"machines": {"a CPU": entry, "another": faster}}).write(baseline)
    (row,) = tool("bench", exported_copy.path, "--check", baseline, "--json").json["checks"]
    assert row["threshold"] == pytest.approx(0.7 * entry.speedup)
    (note,) = row["notes"]
    assert "measured on a CPU and another, and this is another kind of machine" in note


def test_a_baseline_of_another_model_is_refused_and_of_another_plan_noted(
    tool: Tool, exported_copy: ModelFolder, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Judgement("passed", 1.5, ("above", "above"), 99, 3.0, 3.0, 2.0)
    monkeypatch.setattr("dcvit.bench.check.judge", lambda *_: found)
    text = baseline.read_text()
    baseline.write_text(text.replace(exported_copy.plan.digest, 64 * "0"))
    (row,) = tool("bench", exported_copy.path, "--check", baseline, "--json").json["checks"]
    assert row["notes"] == ["the folder's plan is not the one that the baseline was measured with"]
    baseline.write_text(text.replace(exported_copy.plan.model, "vit_base_patch16_224"))
    ended = tool("bench", exported_copy.path, "--check", baseline)
    assert ended.status == 2
    assert "is of vit_base_patch16_224, but" in ended.error


@pytest.fixture(scope="module")
def written(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a baseline that was measured for real, if over few sessions: the folder against itself."""
    file = tmp_path_factory.mktemp("baseline") / "small.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcvit.bench.gate._SESSIONS", 2)
        setting = Setting.of("onnxruntime", Variant.of(4), threads=1)
        update(exported, file, setting, str(exported), tolerance=0.1, max_seconds=0.1)
    return file.read_text()


@pytest.fixture
def baseline(written: str, tmp_path: Path) -> Path:
    """The same, to be changed."""
    file = tmp_path / "baselines" / "small.json"
    file.parent.mkdir()
    file.write_text(written)
    return file
