"""From a classifier to a segmentation model, and from that to a smaller one."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.compression import compress
from dcvit.dense import SegmentationVit
from dcvit.errors import InputError
from dcvit.evaluation import evaluate
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cuts.measured import MeasuredModel
from dcvit.methods.cuts.scores import divergence, score_of
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.plan import CompressionPlan, HeadPlan
from dcvit.subject import open_subject
from dcvit.training.recipe import TrainingRecipe

SETTINGS = CaitSettings(training=TrainingRecipe(epochs=60, batch_size=8, lr=5e-3, augmentation="none"))


@pytest.fixture
def start(odd_plan: CompressionPlan) -> dict[str, Any]:
    """A classifier of 40×56 pixels, untrained."""
    kwargs = {key: value for key, value in odd_plan.model_kwargs.items() if key != "num_classes"}
    return {"model": odd_plan.model, "model_kwargs": kwargs, "weights": "random"}


def test_a_head_is_trained_along_and_the_result_compressed(
    start: dict[str, Any], telling_pairs: Path, tmp_path: Path
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    compress(**start, data=telling_pairs, out=large, task="segmentation", head="multi-level", settings=SETTINGS)
    plan = ModelFolder(large).plan
    assert plan.head == HeadPlan(kind="multi-level", num_classes=5, unmerge="residual")  # as many as the masks hold
    assert plan.is_identity
    assert ModelFolder(large).manifest.preprocessing.crop_mode == "squash"
    untrained = tmp_path / "untrained"
    compress(**start, out=untrained, head=plan.head, merge="horizontal@1", settings=CaitSettings(), recover="none")
    assert evaluate(untrained, telling_pairs).figures["pixel_accuracy"] < 40
    assert evaluate(large, telling_pairs).figures["pixel_accuracy"] > 60
    made = compress(large, telling_pairs, out=small, settings=SETTINGS, macs_reduction=0.4, merge="horizontal@1")
    assert made.summary.macs_reduction >= 0.4
    folder = ModelFolder(small)
    assert folder.plan.merges
    assert folder.plan.head == plan.head
    assert isinstance(folder.load(), SegmentationVit)
    scores = folder.load()(torch.randn(1, 3, 40, 56))
    assert scores.shape == (1, 5, 40, 56)
    assert evaluate(small, telling_pairs).figures["pixel_accuracy"] > 50


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "segmentation", "settings": PractiseSettings()}, "is for classification; give --method"),
        ({"task": "segmentation", "settings": SearchSettings()}, "a new head learns from labels, and --method dcvit"),
        ({"task": "segmentation", "settings": SETTINGS.model_copy(update={"widths": "refit"})}, "needs a trained head"),
        ({"task": "segmentation", "data": None, "recover": "none"}, "give --data with masks, or num_classes"),
        ({"task": "segmentation", "data": "digits"}, "digits has no masks"),
        ({"task": "classification", "head": "linear"}, "--head is for --task segmentation"),
        ({"unmerge": "repeat"}, "--unmerge is for segmentation"),
        ({"task": "segmentation", "model": "resnet18", "model_kwargs": {"num_classes": 4}}, "needs a Vision Transf"),
        ({"task": "segmentation", "settings": SETTINGS.model_copy(update={"labels": False})}, "--no-labels: the head"),
    ],
)
def test_what_cannot_be_is_refused(
    start: dict[str, Any], pair_folder: Path, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    arguments = start | {"data": pair_folder, "settings": SETTINGS, "merge": "horizontal@1"} | asked
    with pytest.raises(InputError, match=message):
        compress(**arguments, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_widths_are_found_without_labels(segmentation_folder: ModelFolder, pair_folder: Path, tmp_path: Path) -> None:
    """Also behind merges that are undone, and for a head that reads blocks in front of the cut."""
    subject = open_subject(segmentation_folder.path)
    images = torch.randn(3, 3, 40, 56)
    measured = MeasuredModel(subject.model, subject.family, 4, score_of(subject.plan), images)
    for index in range(4):
        same, worse = copy.deepcopy(subject.model), copy.deepcopy(subject.model)
        assert measured.measure(same, index) == pytest.approx(0, abs=1e-6)
        worse.blocks[index].mlp.fc2.weight.data.mul_(0.5)
        wanted = divergence(worse(images), subject.model(images))
        assert measured.measure(worse, index) == pytest.approx(wanted, rel=1e-3)
        assert wanted > 1e-4
        measured.advance(index)
    shutil.rmtree(pair_folder / "masks")
    out, asked = tmp_path / "out", {"macs_reduction": 0.25, "samples": 6}
    made = compress(
        segmentation_folder.path, pair_folder / "images", out=out, settings=SearchSettings(steps=2), **asked
    )
    assert made.summary.macs_reduction >= 0.25
    plain = tmp_path / "plain"
    compress(segmentation_folder.path, out=plain, recover="none", macs_reduction=0.25)
    lost = [divergence(ModelFolder(each).load()(images), subject.model(images)) for each in (out, plain)]
    assert lost[0] < 0.5 * lost[1]


def test_a_frontier_of_segmentation_models(segmentation_folder: ModelFolder, pair_folder: Path, tmp_path: Path) -> None:
    found = frontier(
        segmentation_folder.path, pair_folder, out=tmp_path / "out", samples=2, reductions=(0.1, 0.2),
        settings=SearchSettings(steps=0),
    )  # fmt: skip
    assert [point.kl is not None and point.kl >= 0 for point in found.points] == [True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SearchSettings(metric="synthetic"), "--metric synthetic draws images of a classifier's classes"),
        (SearchSettings(examination="predicted"), "--examination predicted is for models with one output an image"),
    ],
)
def test_what_needs_one_output_an_image_is_refused(
    segmentation_folder: ModelFolder, pair_folder: Path, tmp_path: Path, settings: SearchSettings, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compress(
            segmentation_folder.path, pair_folder, out=tmp_path / "out", settings=settings, macs_reduction=0.2,
            samples=4,
        )  # fmt: skip


def test_a_segmentation_model_keeps_its_head(segmentation_folder: ModelFolder, tmp_path: Path) -> None:
    for asked in ({"task": "classification", "macs_reduction": 0.3}, {"head": "linear", "macs_reduction": 0.3}):
        with pytest.raises(InputError, match="is a segmentation model already"):
            compress(segmentation_folder.path, out=tmp_path / "out", recover="none", **asked)  # type: ignore[arg-type]


def test_merges_are_undone_as_asked_or_as_they_were(start: dict[str, Any], tmp_path: Path) -> None:
    """Heads of folders from before there was a choice say nothing: where nothing merges yet they may have the best."""

    def made(model: dict[str, Any], **asked: Any) -> Path:
        out = tmp_path / str(len([*tmp_path.iterdir()]))
        return compress(**model, out=out, settings=CaitSettings(), recover="none", **asked).folder

    def way(folder: Path) -> str:
        head = ModelFolder(folder).plan.head
        assert head is not None
        assert ModelFolder(folder).load().head.plan == head
        return head.unmerge

    fresh = start | {"head": HeadPlan(num_classes=3)}
    assert way(made(fresh, merge="horizontal@1")) == "residual"
    old = made(start | {"head": HeadPlan(num_classes=3, unmerge="repeat")}, merge="horizontal@1")
    assert way(old) == "repeat"
    assert way(made({"model": old}, macs_reduction=0.3)) == "repeat"  # it was trained so
    assert way(made({"model": old}, macs_reduction=0.3, unmerge="bilinear")) == "bilinear"
    silent_run = made(start | {"head": HeadPlan(num_classes=3)}, merge="horizontal@1")
    again = compress(from_manifest=silent_run / "manifest.json", out=tmp_path / "again")
    assert ModelFolder(again.folder).plan == ModelFolder(silent_run).plan
    silent = HeadPlan.model_validate_json(HeadPlan(num_classes=3).model_dump_json(exclude_defaults=True))
    assert way(made(start | {"head": silent}, merge="horizontal@1")) == "residual"


def test_a_new_head_depends_on_the_seed_alone(start: dict[str, Any], tmp_path: Path) -> None:
    """So a training that was stopped finds the head that it started with."""
    target: dict[str, Any] = {"head": HeadPlan(num_classes=3), "merge": "horizontal@1", "recover": "none"}
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        out = compress(**start, **target, out=tmp_path / str(number), seed=seed, settings=CaitSettings()).folder
        digests.append(ModelFolder(out).manifest.files["model.safetensors"].sha256)
    assert digests[0] == digests[1] != digests[2]
