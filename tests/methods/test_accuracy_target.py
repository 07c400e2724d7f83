"""The smallest model that loses no more than is allowed, on images that nothing was fitted to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcvit.compression import compress
from dcvit.data import PartSource, open_source
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.errors import InputError, TargetError
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.methods.accuracy_target import TOLERANCE, Judge, Judged, Search, held_apart
from dcvit.methods.base import MethodSettings
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.methods.target import Reach, Target
from dcvit.plan import CompressionPlan
from dcvit.settings import RunSettings
from dcvit.subject import open_subject
from dcvit.training.recipe import TrainingRecipe

DEMO: dict[str, Any] = {"model_kwargs": MODEL_KWARGS, "checkpoint": WEIGHTS, "samples": 64}
QUICK = SearchSettings(steps=0)


def search(
    threshold: float, reach: Reach | None = None, asked: list[tuple[float, float | None]] | None = None
) -> Search[float]:
    """Models that are their share, and lose 1 beyond a threshold."""

    def make(share: float, best: float | None) -> float:
        if asked is not None:
            asked.append((share, best))
        if reach is not None and not reach.least <= share <= reach.most:
            raise reach.refusal(share, "this")
        return share

    def judge(made: float) -> Judged:
        return Judged(2.0 if made > threshold else 0.5, 0.1, 99.0, 90.0, 91.0)

    return Search(1.0, make, judge)


@pytest.mark.parametrize("threshold", [0.03, 0.3, 0.777, 0.98])
def test_the_smallest_that_is_allowed_is_found(threshold: float) -> None:
    asked: list[tuple[float, float | None]] = []
    share, made, judged = search(threshold, asked=asked).run()
    assert threshold - TOLERANCE <= share <= threshold
    assert (made, judged.drop) == (share, 0.5)
    assert len(asked) <= 7
    for tried, best in asked:  # each may go on from a larger one that was good enough
        assert best is None or best < tried
    assert any(best is not None for _, best in asked)


@pytest.mark.parametrize(("least", "most"), [(0.0, 0.6), (0.2, 0.6)])
def test_only_what_is_within_reach_is_made(least: float, most: float) -> None:
    share, _, _ = search(1.0, Reach(least, most)).run()
    assert most - TOLERANCE <= share <= most
    share, _, _ = search(0.2, Reach(0.199, most)).run()
    assert share == pytest.approx(0.199, abs=TOLERANCE)


def test_what_loses_too_much_at_once_is_refused() -> None:
    with pytest.raises(TargetError, match=r"--max-drop 1: even −0.8% MACs loses 2.00; allow more"):
        search(0.0).run()
    with pytest.raises(TargetError, match=r"even −30.0% MACs loses 2.00"):
        search(0.1, Reach(0.3, 0.6)).run()


class Fixed(nn.Module):
    """Always the same classes, whatever the images."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        self._classes = torch.tensor(classes)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 10)
        logits[torch.arange(len(images)), self._classes[: len(images)].clamp_min(0)] = 1
        logits[self._classes[: len(images)] < 0] = torch.nan
        return logits


def test_what_a_judge_counts() -> None:
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, weights="random")
    pixels, labels = np.zeros((10, 8, 8), np.uint8), [0] * 5 + [1] * 5
    original, student = Fixed([0] * 5 + [1] * 4 + [2]), Fixed([0] * 3 + [4, -1] + [1] * 5)
    found = Judge(open_source((pixels, labels), "test"), "ten", subject).judge(student, original)
    assert (found.original, found.top1) == (90.0, 80.0)
    assert found.drop == pytest.approx(10.0)  # two lost, one of them without any class, and one won
    assert found.agreement == 70.0
    assert found.error == pytest.approx(100 * np.sqrt(3 - 1 / 10) / 10)
    alike = Judge(open_source(pixels, "test"), "ten", subject).judge(student, original)
    assert (alike.drop, alike.top1) == (pytest.approx(30.0), None)
    assert alike.error == pytest.approx(100 * np.sqrt(0.7 * 0.3 / 10))


def test_images_to_judge_by_are_none_to_fit_on() -> None:
    source = open_source("digits", "train")
    rest, held = held_apart(source, None, 1.0, RunSettings())
    assert rest is not None
    assert held is not None
    out, words = held
    assert (len(rest), len(out), words) == (1038, 259, "259 images held out from digits")
    fitted, judged = ({part.filename(index) for index in range(len(part))} for part in (rest, out))
    assert not fitted & judged
    assert len(fitted | judged) == len(source)
    again = held_apart(source, None, 1.0, RunSettings())[1]
    assert again is not None
    assert {again[0].filename(index) for index in range(259)} == judged
    other = held_apart(source, None, 1.0, RunSettings(seed=1))[1]
    assert other is not None
    assert {other[0].filename(index) for index in range(259)} != judged
    same, others = held_apart(source, "digits", 0.5, RunSettings())
    assert same is source
    assert others is not None
    assert others[1] == "500 images of digits"


def test_too_few_and_too_many_words() -> None:
    few = PartSource(open_source("digits", "train"), range(150))
    for max_drop, validation, message in (
        (1.0, None, "--max-drop 1: digits has 150 images, and it takes 100 held out, and more to fit on"),
        (0.1, "digits", "--max-drop 0.1: digits has 500 images, and it takes 1000; give more with --validation"),
        (None, "digits", "give --max-drop too"),
    ):
        with pytest.raises(InputError, match=message):
            held_apart(few, validation, max_drop, RunSettings())
    with pytest.raises(InputError, match="give --validation, or --data"):
        held_apart(None, None, 1.0, RunSettings())
    with pytest.raises(InputError, match="--macs-reduction and --max-drop exclude each other"):
        Target(max_drop=1, macs_reduction=0.5)
    with pytest.raises(InputError, match="has to be measured"):
        compressor_of(Target(max_drop=1))


def compressor_of(target: Target) -> None:
    from dcvit.methods.few_shot.proposal import propose

    propose(open_subject(MODEL, model_kwargs=MODEL_KWARGS, weights="random"), target)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one test has measured of the model is not measured again by the other."""
    return tmp_path_factory.mktemp("cache")


def test_at_most_so_many_points_on_images_held_out(tmp_path: Path, cache: Path) -> None:
    asked: dict[str, Any] = {"settings": QUICK, "max_drop": 3, "cache": cache, **DEMO}
    result = compress(MODEL, "digits", out=tmp_path / "small", **asked)
    found = result.metrics["max_drop"]
    assert (found["measure"], found["images"], found["asked"]) == ("top-1", 259, 3.0)
    assert found["drop"] == pytest.approx(found["original"] - found["top1"])
    assert found["drop"] <= 3
    assert result.summary.macs_reduction >= found["macs_reduction"] > 0.2
    # What was found lies just below the smallest share that lost too much.
    too_much = [tried["macs_reduction"] for tried in found["tried"] if tried["drop"] > 3]
    assert min(too_much) - found["macs_reduction"] <= TOLERANCE
    assert any("on 259 images held out from digits; with 1% of the MACs less" in str(line) for line in result.lines())
    folder = ModelFolder(tmp_path / "small")
    assert folder.manifest.metrics["max_drop"] == found
    assert folder.manifest.data is not None

    # The figure is that of the model in the folder, on these very images.
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS)
    held = held_apart(open_source("digits", "train"), None, 3, RunSettings())[1]
    assert held is not None
    again = Judge(*held, subject).judge(folder.load(), subject.model)
    assert again.drop == pytest.approx(found["drop"])


def test_without_labels_the_classes_are_the_originals(tmp_path: Path) -> None:
    digits = open_source("digits", "test")
    (tmp_path / "flat").mkdir()
    for index in range(60):
        (tmp_path / "flat" / f"{index}.png").write_bytes(digits.read(index)[0])
    asked: dict[str, Any] = {"settings": QUICK, "max_drop": 20, "validation": tmp_path / "flat", **DEMO, "samples": 24}
    result = compress(MODEL, "digits", out=tmp_path / "small", **asked)
    found = result.metrics["max_drop"]
    assert (found["measure"], found["images"], found["top1"]) == ("agreement", 60, None)
    assert found["agreement"] >= 80
    assert any("of the classes are the original's on 60 images of" in str(line) for line in result.lines())


@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(search="trials", steps=1),
        PractiseSettings(steps=1),
        CaitSettings(widths="cdcp", trim=False, training=TrainingRecipe(epochs=0.2, batch_size=8)),
    ],
    ids=lambda settings: settings.method,
)
@pytest.mark.thorough
def test_every_method_goes_to_the_end_of_its_reach_where_that_is_allowed(
    settings: MethodSettings, tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    """Shares that a method cannot remove are no models that lose too much."""
    kwargs = {"model_kwargs": dict(tiny_plan.model_kwargs), "weights": "random", "samples": 16}
    data = open_source("digits", "train")
    asked: dict[str, Any] = {"settings": settings, "max_drop": 99, "validation": PartSource(data, range(8)), **kwargs}
    result = compress(tiny_plan.model, "digits", out=tmp_path / "small", **asked)
    found = result.metrics["max_drop"]
    assert found["at_the_end_of_reach"]
    assert any("nothing smaller can be made" in str(line) for line in result.lines())
    assert result.summary.macs_reduction > 0.3
    assert result.summary.macs_reduction - found["macs_reduction"] < 0.2


@pytest.mark.thorough
def test_a_frontier_of_drops(tmp_path: Path, cache: Path) -> None:
    asked: dict[str, Any] = {"settings": QUICK, "max_drops": (8, 2), "cache": cache, **DEMO}
    result = frontier(MODEL, "digits", out=tmp_path / "many", **asked)
    assert [point.folder for point in result.points] == ["d2", "d8"]
    strict, loose = result.points
    assert loose.macs <= strict.macs < result.original["macs"]
    kept = ModelFolder(tmp_path / "many" / "d2").manifest
    assert kept.settings["target"]["max_drop"] == 2
    assert kept.metrics["max_drop"]["drop"] <= 2
