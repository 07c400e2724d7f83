"""A backbone without a head is compressed by its features, from the search to the report."""

import json
from pathlib import Path

import pytest

from dcvit.cli.main import cli
from dcvit.data import open_source
from dcvit.frontiers import frontier
from dcvit.methods.few_shot.compressor import FewShotCompressor
from dcvit.methods.few_shot.practise import PractiseCompressor
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.model import create
from dcvit.plan import CompressionPlan
from dcvit.subject import open_subject
from dcvit.types import TimmModule


def compressor_of(plan: CompressionPlan, classes: int, settings: SearchSettings) -> DcVitCompressor:
    kwargs = plan.model_kwargs | {"num_classes": classes}
    subject = open_subject(plan.model, model_kwargs=kwargs, weights="random")
    return DcVitCompressor(Run(subject, open_source("digits", "train"), 8, recovery="mimic"), settings)


@pytest.mark.parametrize(("classes", "weight", "name"), [(0, 0.0, "feature_error"), (10, 0.3, "kl")])
def test_no_softmax_is_taken_of_features(tiny_plan: CompressionPlan, classes: int, weight: float, name: str) -> None:
    compressor = compressor_of(tiny_plan, classes, SearchSettings(steps=2))
    job, _ = compressor.job(Target(macs_reduction=0.3))
    assert job.recipe == job.settings.training.model_copy(update={"logit_weight": weight})
    made = compressor.compress(Target(macs_reduction=0.3))
    assert {"kl", "feature_error"} & set(made.metrics) == {name}
    assert made.metrics[name] > 0


@pytest.mark.parametrize("search", ["solver", "trials"])
def test_trials_and_predictions_are_of_features_too(tiny_plan: CompressionPlan, search: str) -> None:
    settings = SearchSettings.model_validate({"steps": 1, "search": search, "examination": "predicted"})
    made = compressor_of(tiny_plan, 0, settings).compress(Target(macs_reduction=0.3))
    assert made.summary.macs_reduction >= 0.3
    assert all("kl" not in trial and trial["feature_error"] > 0 for trial in made.metrics.get("trials", []))
    assert ("trials" in made.metrics) == (search == "trials")


def test_practise_trains_on_features(tiny_plan: CompressionPlan) -> None:
    subject = open_subject(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs | {"num_classes": 0}, weights="random")
    run = Run(subject, open_source("digits", "train"), 8, recovery="mimic")
    made: FewShotCompressor = PractiseCompressor(run, PractiseSettings(steps=1))
    assert "feature_error" in made.compress(Target(macs_reduction=0.3)).metrics


def test_a_frontier_and_its_report_tell_the_error_of_features(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    model: TimmModule = create(tiny_plan.model, tiny_plan.model_kwargs | {"num_classes": 0})
    out = tmp_path / "out"
    frontier(model, "digits", out=out, reductions=(0.2, 0.4), settings=SearchSettings(steps=0), samples=8)
    points = json.loads((out / "frontier.json").read_text())["points"]
    assert all("kl" not in point and point["feature_error"] > 0 for point in points)
    assert (out / "frontier.png").is_file()
    cli(["report", str(out / "r0.2")])
    text = (out / "r0.2" / "report.html").read_text()
    assert "feature error to the original" in text
    assert "error of the centred features" in text
    assert "nats" not in text
