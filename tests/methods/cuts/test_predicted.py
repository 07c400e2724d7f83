"""Predicted damages: right where errors are small, and cuts stand in the order of measured ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dcvit
from dcvit.data import draw_few_shot, open_source
from dcvit.methods.cuts.damage import Examination, PossibleCuts, examine
from dcvit.methods.cuts.measured import Cut, MeasuredModel
from dcvit.methods.cuts.predicted import Predicted, Sensitivities
from dcvit.methods.cuts.scores import score_of
from dcvit.subject import Subject, open_subject

DIGITS = {
    "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 8, "num_heads": 4,
    "pretrained_cfg_overlay": {"mean": [0.3, 0.3, 0.3], "std": [0.35, 0.35, 0.35], "crop_pct": 1.0},
}  # fmt: skip
DEPTH, CUT = 8, (1, 3, 4, 6)


@pytest.fixture(scope="module", params=[10, 0], ids=["classifier", "headless"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """The trained model that comes with the package, with its head and without."""
    weights = Path(dcvit.__file__).parent / "assets" / "digits_vit.safetensors"
    opened = open_subject("deit_tiny_patch16_224", model_kwargs=DIGITS | {"num_classes": 10}, checkpoint=weights)
    if request.param == 0:
        opened.model.reset_classifier(0)
        opened = open_subject(opened.model, model_kwargs=DIGITS | {"num_classes": 0})
    opened.model.requires_grad_(False)
    return opened


@pytest.fixture(scope="module")
def images(subject: Subject) -> Tensor:
    return draw_few_shot(open_source("digits", "train"), 32, 0, 3).tensor(subject.preprocessing)


def examined(subject: Subject, images: Tensor, how: str) -> Examination:
    cuts = PossibleCuts(CUT, CUT, CUT)
    return examine(subject.model, subject.family, subject.plan, cuts, images, images, 8, how)  # type: ignore[arg-type]


def test_a_small_error_does_what_its_second_order_says(subject: Subject, images: Tensor) -> None:
    measured = MeasuredModel(subject.model, subject.family, DEPTH, score_of(subject.plan), images)
    found = Sensitivities(measured, images)
    for index in CUT:
        error = 0.02 * torch.randn(images.shape[0], 65, 64)
        handle = subject.model.blocks[index].register_forward_hook(
            lambda _m, _i, output, error=error: output + error[: len(output)]
        )
        with torch.no_grad():
            outputs = torch.cat([subject.model(images)])
        handle.remove()
        true = measured.score.measure(outputs, torch.cat([subject.model(images)]))
        # 4 directions of 64 images: 256 squares, whose mean scatters by some 15 %; few images hold most of the KL.
        assert found.damage(index, error) == pytest.approx(true, rel=0.5)


def test_predictions_order_cuts_as_measurements_do(subject: Subject, images: Tensor) -> None:
    exact, predicted = examined(subject, images, "exact"), examined(subject, images, "predicted")
    pairs = []
    for index, damage in exact.damages.items():
        guess = predicted.damages[index]
        assert torch.equal(exact.orders[index], predicted.orders[index])
        assert (guess.mlp.keys(), guess.heads.keys()) == (damage.mlp.keys(), damage.heads.keys())
        pairs += [(damage.mlp[width], guess.mlp[width]) for width in damage.mlp]
        pairs += [(damage.heads[width], guess.heads[width]) for width in damage.heads]
        if damage.attention is not None and guess.attention is not None:
            pairs.append((damage.attention, guess.attention))
    # bfloat16 rounds the measured outputs, which is worth some 2e-6.
    told = np.array([pair for pair in pairs if pair[0] > 1e-5])
    logs = np.log(told)
    assert len(told) > 10
    assert np.corrcoef(logs.argsort(0).argsort(0).T)[0, 1] > 0.95
    assert np.abs(logs[:, 0] - logs[:, 1]).mean() < 0.4
    assert all(guess < 1e-4 for exact, guess in pairs if exact < 1e-5)


def test_few_cuts_are_measured_whatever_the_depth(subject: Subject, images: Tensor) -> None:
    calls = []

    class Counting(MeasuredModel):
        def measure(self, student, index):  # type: ignore[no-untyped-def]
            calls.append(index)
            return 1.0

    measured = Counting(subject.model, subject.family, DEPTH, score_of(subject.plan), images[:4])
    judge = Predicted(measured, range(DEPTH))
    for index in range(DEPTH):
        for width in (192, 128, 64, 32, 16, 8):
            judge.judge(subject.model, Cut(index, "mlp", width))
        judge.advance(index)
    assert len(calls) == 6
    assert len(judge.damages()) == 6 * DEPTH
