"""--merge auto: merges that compete with every other cut, in MACs and in milliseconds."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.cuts.damage import PossibleCuts
from dcvit.methods.few_shot.search import DcVitCompressor, possible_cuts
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.methods.merges.search import axes_in_turn
from dcvit.model import create
from dcvit.plan import CompressionPlan
from dcvit.pricing.kept import write_table
from dcvit.pricing.probes import Style
from dcvit.subject import open_shapes, original_of
from dcvit.types import TimmModule

RUN: dict[str, Any] = {"samples": 8, "settings": SearchSettings(steps=0)}


@pytest.fixture
def model(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    return create(tiny_plan.model, tiny_plan.model_kwargs)


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The damage of each schedule and its cuts, by the number of merges, without the measuring."""
    damages: dict[str, float] = {}
    original = DcVitCompressor._damage_with

    def recorded(self: DcVitCompressor, merges: Any, *given: Any, **more: Any) -> float:
        damages[",".join(f"{merge.axis}@{merge.after}" for merge in merges)] = found = original(
            self, merges, *given, **more
        )
        return found

    monkeypatch.setattr(DcVitCompressor, "_damage_with", recorded)
    return damages


def test_the_schedule_with_the_least_damage_in_all_is_taken(
    tmp_path: Path, model: TimmModule, weighed: dict[str, float]
) -> None:
    result = compress(model, "digits", out=tmp_path / "out", macs_reduction=0.4, merge="auto", **RUN)
    assert "" in weighed  # no merge at all is weighed too
    assert len(weighed) > 3
    best = min(weighed, key=weighed.__getitem__)
    assert ",".join(f"{merge.axis}@{merge.after}" for merge in result.summary.plan.merges) == best
    assert math.isfinite(weighed[best])
    assert 0.4 <= result.summary.macs_reduction < 0.5
    assert result.summary.plan.size_aware_attention == bool(best)  # mimic trains nothing here, but might
    assert ModelFolder(tmp_path / "out").load()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_where_only_tokens_cost_time_tokens_merge(
    tmp_path: Path, model: TimmModule, made_up: Any, tiny_plan: CompressionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cut of a block saves anything, so the speed-up has to come of merges; one table knows every schedule."""
    subject = open_shapes(tiny_plan.model, tiny_plan.model_kwargs)

    def latency(plan: CompressionPlan) -> float:
        tokens = subject.family.tokens(original_of(plan), plan)
        return 1 + sum(
            count for index, count in enumerate(tokens[: plan.model_kwargs["depth"]]) if not plan.block(index).removed
        )

    style = Style(axes_in_turn(subject.architecture.grid), "mean", size_aware=True)
    write_table(made_up.table(subject, style, latency), tmp_path / "edge.json")
    only_widths = possible_cuts

    def cuts(*given: Any) -> PossibleCuts:
        return dataclasses.replace(only_widths(*given), gone=(), no_attention=())

    monkeypatch.setattr("dcvit.methods.few_shot.search.possible_cuts", cuts)
    found = compress(
        model, "digits", out=tmp_path / "out", speedup=1.3, merge="auto", latency_table=tmp_path / "edge.json",
        size_aware=True, **RUN,
    )  # fmt: skip
    assert found.summary.plan.merges
    assert latency(tiny_plan) / latency(found.summary.plan) >= 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"settings": SearchSettings(steps=0, search="trials"), "macs_reduction": 0.3},
            "--merge auto is for the solver",
        ),
        ({"settings": PractiseSettings(steps=0), "macs_reduction": 0.3}, "--merge auto is for the solver"),
        ({}, "--merge auto needs a target"),
    ],
)
def test_refusals(tmp_path: Path, model: TimmModule, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compress(model, "digits", out=tmp_path / "out", merge="auto", **{**RUN, **options})


def test_a_plan_says_that_images_choose(tiny_plan: CompressionPlan, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "plan",
        tiny_plan.model,
        "--model-kwargs",
        json.dumps(tiny_plan.model_kwargs),
        "--macs-reduction",
        "0.3",
    ]
    cli([*arguments, "--merge", "auto", "--json"], standalone_mode=False)
    assert "Your images choose the merges" in json.loads(capfd.readouterr().out)["note"]
    cli([*arguments, "--merge", "none", "--json"], standalone_mode=False)
    assert json.loads(capfd.readouterr().out)["plan"].get("merges", []) == []


@pytest.mark.parametrize(
    ("grid", "axes"),
    [
        ((14, 14), ("horizontal", "vertical", "horizontal")),
        ((1, 9), ("horizontal", "horizontal")),
        ((2, 2), ("horizontal", "vertical")),
        ((1, 1), ()),
    ],
)
def test_axes_in_turn(grid: tuple[int, int], axes: tuple[str, ...]) -> None:
    assert axes_in_turn(grid) == axes
