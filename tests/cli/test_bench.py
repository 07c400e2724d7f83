"""`dcvit-tool bench`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcvit.folder import ModelFolder

Tool = Callable[..., Any]


def test_json_has_the_keys_that_scripts_read(tool: Tool, exported_copy: ModelFolder) -> None:
    ended = tool("bench", exported_copy.path, "--batch", 4, "--runs", 6, "--threads", 1, "--no-memory", "--json")
    assert ended.status == 0
    (row,) = ended.json["results"]
    assert (row["runtime"], row["batch"], row["precision"], row["runs"]) == ("onnxruntime", 4, "fp32", 6)
    assert row["threads"] == 1
    assert {"median_ms", "baseline_median_ms", "speedup", "speedup_ci95", "macs", "baseline_macs", "verdict"} <= set(
        row
    )
    assert json.loads((exported_copy.path / "bench.json").read_text()) == ended.json
    assert "speed-up [95 %]" in ended.stderr


def test_two_runtimes_against_another_folder(tool: Tool, exported_copy: ModelFolder, exported: Path) -> None:
    ended = tool(
        "bench", exported_copy.path, "--against", exported, "--runtime", "torch", "--runtime", "onnxruntime",
        "--batch", 4, "--max-seconds", 0.2, "--no-memory",
    )  # fmt: skip
    assert ended.status == 0
    assert f"against {exported}" in " ".join(ended.stdout.split())
    assert "torch" in ended.stdout
    assert "onnxruntime" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "1000"], "--threads 1000: this process may use"),
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
