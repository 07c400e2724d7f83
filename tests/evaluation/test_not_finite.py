"""Logits that are no numbers are wrong answers, counted, and a failed check."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcvit import evaluation
from dcvit.agreement import cosine
from dcvit.evaluation import evaluate
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes.pytorch import TorchSession

NAN, INF = float("nan"), float("inf")


class Broken:
    """A session whose logits are not finite for the images of some places of every batch."""

    def __init__(self, session: TorchSession, value: float, places: slice) -> None:
        self.session, self.value, self.places = session, value, places
        self.batch, self.device = session.batch, session.device

    def infer(self, images: Tensor) -> Tensor:
        logits = self.session.infer(images).clone()
        logits[self.places, 0] = self.value
        return logits


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, slice], None]:
    def broken(value: float, places: slice) -> None:
        class Runtime:
            name, artifact = "torch", "weights"

            def open(self, folder: ModelFolder, variant: evaluation.Variant) -> Broken:
                return Broken(TorchSession(folder.load(), variant.batch, device="cpu"), value, places)

            def file(self, folder: ModelFolder, variant: evaluation.Variant) -> Path:
                return folder.path / "model.safetensors"

        monkeypatch.setattr(evaluation, "runtime_named", lambda name: Runtime())

    return broken


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_images_whose_logits_are_not_finite_are_wrong(
    value: float,
    breaking: Callable[[float, slice], None],
    exported_copy: ModelFolder,
    image_folder: Callable[..., Path],
) -> None:
    data = image_folder(classes=10, each=2)
    breaking(value, slice(None))
    found = evaluate(exported_copy.path, data, batch=4)
    assert (found.top1, found.top5, found.not_finite, found.images) == (0, 0, 20, 20)
    assert not found.passed
    assert found.to_json()["not_finite"] == 20
    assert any("20 of 20 images have logits that are not finite" in line for line in found.lines())


def test_the_others_count_as_ever(
    breaking: Callable[[float, slice], None], exported_copy: ModelFolder, image_folder: Callable[..., Path]
) -> None:
    data = image_folder(classes=10, each=2)
    whole = evaluate(exported_copy.path, data, batch=4)
    assert whole.passed
    assert whole.not_finite == 0
    breaking(NAN, slice(0, 1))
    found = evaluate(exported_copy.path, data, batch=4)
    assert found.not_finite == 5
    assert found.top5 <= whole.top5


def test_pixels_whose_logits_are_not_finite_are_wrong(
    breaking: Callable[[float, slice], None], segmentation_folder: ModelFolder, pair_folder: Path
) -> None:
    breaking(NAN, slice(None))
    found = evaluate(segmentation_folder.path, pair_folder, batch=4)
    assert (found.figures, found.not_finite, found.passed) == ({"miou": 0, "pixel_accuracy": 0}, 6, False)


def test_what_is_not_finite_agrees_with_nothing() -> None:
    good = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    bad = good.clone()
    bad[0, 0] = NAN
    assert cosine(bad, good) == cosine(bad, bad) == -1


def test_the_command_ends_with_a_failed_check(
    tmp_path: Path, exported_copy: ModelFolder, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from dcvit.cli.main import cli

    model = nn.Sequential(exported_copy.load(), nn.Threshold(1e9, NAN))
    monkeypatch.setattr(ModelFolder, "load", lambda self: model)
    ended = CliRunner().invoke(cli, ["evaluate", str(exported_copy.path), "--data", str(image_folder(10, 1)), "--json"])
    assert ended.exit_code == 1
    assert '"top1": 0.0' in ended.stdout
    assert '"not_finite": 10' in ended.stdout
