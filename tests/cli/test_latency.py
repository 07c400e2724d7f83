"""`dcvit-tool latency` from the shell's side."""

import json
from pathlib import Path
from typing import Any

import pytest

from dcvit.cli.main import cli
from dcvit.plan import CompressionPlan
from dcvit.pricing import measure, timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timing, "MOST_ROUNDS", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_it_measures_once_and_keeps_the_table(
    quick: None, tiny_plan: CompressionPlan, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    arguments = ["latency", tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--runtime", "torch",
                 "--batch", "2", "--threads", "1"]  # fmt: skip
    cli([*arguments, "-o", str(tmp_path / "here.json"), "--json"], standalone_mode=False)
    document = json.loads(capfd.readouterr().out)
    assert document["measured_ms"] > 0
    assert document["predicted_ms"] > 0
    assert {"block", "cut", "width", "tokens", "ms"} <= set(document["rows"][0])
    assert document["setting"]["runtime"] == "torch"
    assert (tmp_path / "here.json").is_file()
    assert (tmp_path / "here.png").is_file()

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("it was kept")

    monkeypatch.setattr(measure, "time_in_turn", fails)
    cli(arguments, standalone_mode=False)
    assert "ms of one block" in capfd.readouterr().out
    with pytest.raises(AssertionError, match="it was kept"):
        cli([*arguments, "--again", "--debug"], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latency", "no_such_model"], "no_such_model"),
        (["latency", "resnet18", "--merge", "horizontal@1"], "merge"),
        (["latency", "vit_tiny_patch16_224", "--runtime", "abacus"], "there is no runtime 'abacus'"),
        (["latency", "vit_tiny_patch16_224", "--precision", "bf16"], "runtime onnxruntime has fp32, fp16, int8"),
        (["latency", "vit_tiny_patch16_224", "--threads", "999"], "--threads 999"),
        (["latency", "vit_tiny_patch16_224", "--times", "gone.json"], "gone.json"),
    ],
)
def test_bad_input_ends_with_one_line(
    quick: None, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli(arguments)
    assert ended.value.code == 2
    assert message in capfd.readouterr().err.splitlines()[-1]
