"""`benchmarks/presets.py`: the smallest share that is fast enough, and what the command line finds afterwards."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dcvit.methods.cait.proposal import propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.milliseconds import predicted
from dcvit.methods.presets import Preset
from dcvit.methods.target import Target
from dcvit.pricing.kept import read_table
from dcvit.pricing.table import style_of
from dcvit.pricing.timing import Ratio, Timed
from dcvit.subject import open_shapes

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import presets


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, made_up: Any) -> dict[str, Any]:
    """What `measure` makes of a made-up runtime."""

    def table_for(subject: Any, runtime: str, variant: Any, style: Any) -> Any:
        table = made_up.table(subject, style, made_up.additive(subject))
        where = {"runtime": runtime, "precision": variant.precision, "batch": variant.batch}
        return table.model_copy(update={"setting": table.setting.model_copy(update=where)})

    monkeypatch.setattr(presets, "table_for", table_for)
    monkeypatch.setattr(presets, "time_plans", lambda *_: Timed(10.0, (Ratio(0.5, 0.4, 0.6, 9),)))
    return presets.measure("cait-tiny", "torch-graph", "fp16", 8)


def test_a_preset_is_the_smallest_share_that_is_fast_enough(made: dict[str, Any]) -> None:
    preset = Preset.model_validate(made["preset"])
    goal = presets.MODELS["cait-tiny"][1]
    assert preset.made_for.preset == "cait-tiny-torch-graph-fp16"
    assert (preset.made_for.runtime, preset.made_for.precision, preset.made_for.batch) == ("torch-graph", "fp16", 8)
    assert preset.made_for.speedup >= goal
    subject, settings, asked = open_shapes(preset.model), CaitSettings(), Target(merge=presets.MERGE)
    proposal = propose_jointly(subject, asked, settings, stand_in_merges(subject, asked, settings), trained=True)
    table = presets.table_for(subject, "torch-graph", presets.Variant.of(8, "fp16"), style_of(proposal.base))
    smaller = proposal.removing(preset.macs_reduction - presets.STEP).uniform()
    assert predicted(subject, smaller, table)["speedup"] < goal
    assert (made["speedup"], made["ci95"]) == (2.0, [1 / 0.6, 1 / 0.4])


def test_what_a_gpu_measured_is_kept_beside_the_others(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "ASSETS", tmp_path / "presets")
    monkeypatch.setattr(presets, "RESULTS", tmp_path / "results.json")
    (tmp_path / "gpu.json").write_text(
        json.dumps({"rows": {"training step": {}, "preset: cait-tiny, torch-graph": made}})
    )
    presets.keep(
        Preset.model_validate(made["preset"]).model_copy(update={"macs_reduction": 0.1}), _table(made), 1.0, [0.9, 1.1]
    )
    other = Preset.model_validate(made["preset"])
    renamed = other.model_copy(update={"made_for": other.made_for.model_copy(update={"preset": "another"})})
    presets.keep(renamed, _table(made), 1.5, [1.4, 1.6])
    ended = CliRunner().invoke(presets.main, ["--from", str(tmp_path / "gpu.json")])
    assert ended.exit_code == 0, ended.output
    assert "cait-tiny-torch-graph-fp16: −" in ended.output
    assert "×2.000 [1.667, 2.500] measured" in ended.output
    index = json.loads((tmp_path / "presets" / "presets.json").read_text())
    assert list(index) == ["another", "cait-tiny-torch-graph-fp16"]
    assert index["cait-tiny-torch-graph-fp16"] == made["preset"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["speedup"] for row in results.values()] == [1.5, 2.0]
    assert read_table(tmp_path / "presets" / "cait-tiny-torch-graph-fp16.json") == _table(made)


def _table(made: dict[str, Any]) -> Any:
    return presets.LatencyTable.model_validate(made["table"])
