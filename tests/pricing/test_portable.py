"""Probes for a device without the tool: files, a script that stands alone, and the table of its times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcvit.errors import InputError
from dcvit.plan import CompressionPlan
from dcvit.pricing import latency
from dcvit.pricing.kept import read_table
from dcvit.pricing.portable import PROBES, SCRIPT


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory, tiny_plan: CompressionPlan) -> Path:
    folder = tmp_path_factory.mktemp("device") / "probes"
    latency(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, batch=2, probes=folder)
    return folder


def test_the_script_times_every_file_and_the_table_comes_of_it(
    probes: Path, tiny_plan: CompressionPlan, tmp_path: Path
) -> None:
    command = [sys.executable, "-I", str(probes / SCRIPT), "-o", str(tmp_path / "times.json"), "--seconds", "0.1"]
    subprocess.run([*command, "--threads", "1"], check=True, capture_output=True)
    table = latency(
        tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, times=tmp_path / "times.json", out=tmp_path / "edge.json"
    )
    assert read_table(tmp_path / "edge.json") == table
    assert (table.setting.runtime, table.setting.batch, table.setting.threads) == ("onnxruntime", 2, 1)
    assert table.whole[0].measured.ms > 0
    assert {row["cut"] for row in table.rows()} == {"none", "attention", "heads", "mlp"}
    assert (tmp_path / "edge.png").stat().st_size > 10_000


def test_the_script_imports_nothing_of_the_tool(probes: Path) -> None:
    blocked = "import sys; sys.modules['dcvit'] = None; sys.argv = ['x', '--help']; import runpy; runpy.run_path({!r})"
    ended = subprocess.run(
        [sys.executable, "-I", "-c", blocked.format(str(probes / SCRIPT))], check=True, capture_output=True, text=True
    )
    assert "dcvit" not in json.dumps([line for line in ended.stderr.splitlines() if "Error" in line])


def test_times_of_other_probes_are_refused(probes: Path, tiny_plan: CompressionPlan, tmp_path: Path) -> None:
    about: dict[str, Any] = json.loads((probes / PROBES).read_text())
    times = {"design": about["design"], "batch": 2, "precision": "fp32", "runtime": "onnxruntime", "threads": None,
             "machine": "m", "parts": []}  # fmt: skip
    (tmp_path / "times.json").write_text(json.dumps(times))
    with pytest.raises(InputError, match="times of some probes are missing"):
        latency(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, times=tmp_path / "times.json")
    with pytest.raises(InputError, match="these are times of"):
        latency("deit_tiny_patch16_224", times=tmp_path / "times.json")
    (tmp_path / "times.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as times"):
        latency("deit_tiny_patch16_224", times=tmp_path / "times.json")
