"""Training behind refits stays where it helps images that no step saw, and is taken back where it does not."""

import pytest
import torch

from dcvit.data import open_source
from dcvit.methods.cuts.scores import divergence, logits_of
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.run import Compressed, Run
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.subject import Subject, open_subject

TARGET = Target(macs_reduction=0.5, trim_last_block=False)


@pytest.fixture(scope="module")
def subject(tiny_plan: CompressionPlan) -> Subject:
    return open_subject(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, weights="random")


def compressed(
    subject: Subject, samples: int, steps: int, rates: tuple[float, ...] = (), lr: float = 2e-4
) -> tuple[Compressed, DcVitCompressor]:
    settings = SearchSettings(steps=steps, learning_rates=rates)
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"lr": lr})})
    compressor = DcVitCompressor(Run(subject, open_source("digits", "train"), samples, recovery="mimic"), settings)
    return compressor.compress(TARGET), compressor


@pytest.mark.parametrize("rates", [(), (1.0,)])
def test_what_made_it_worse_is_taken_back(subject: Subject, rates: tuple[float, ...]) -> None:
    refitted, _ = compressed(subject, 16, 0)
    made, _ = compressed(subject, 16, 12, rates, 1.0)
    told = made.metrics["training"]
    assert (told["images"], told["lr"], told["kept"]) == (2, 1.0, False)
    assert told["after"] > told["before"]
    assert len(made.metrics["losses"]) == 1
    for name, weight in refitted.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], weight)
    assert made.metrics["kl"] == pytest.approx(refitted.metrics["kl"])


def test_what_helps_stays_at_the_rate_that_helps_most(subject: Subject) -> None:
    made, compressor = compressed(subject, 32, 40, (1.0, 3e-4))
    told = made.metrics["training"]
    assert (told["images"], told["lr"], told["kept"]) == (4, 3e-4, True)
    assert told["after"] < told["before"]
    job, _ = compressor.job(TARGET)
    images = job.calibration[-4:]
    assert told["after"] == pytest.approx(divergence(logits_of(made.model, images), logits_of(job.model, images)))
    alike, _ = compressed(subject, 32, 40, lr=3e-4)  # trials leave nothing behind
    for name, weight in alike.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], weight)


def test_held_out_images_are_neither_fitted_nor_trained_on(subject: Subject) -> None:
    _, compressor = compressed(subject, 16, 3)
    job, _ = compressor.job(TARGET)
    pixels = job.views.views
    held_out = job.views.images(torch.stack([pixels[place] for place in range(len(pixels)) if place % 16 >= 14]))
    seen = torch.cat([images for images, _ in job.views.batches(3, seed=0)])
    assert len(seen) == 3 * 64
    assert not any(torch.equal(one, other) for one in held_out for other in seen)
    fitted, all_fitted = job.wanted(2).images, job.wanted().images
    assert not any(torch.equal(one, other) for one in job.calibration[-2:] for other in fitted)
    assert any(torch.equal(job.calibration[-1], other) for other in all_fitted)
    assert len(fitted) == len(all_fitted) * 14 // 16


@pytest.mark.parametrize(("samples", "steps"), [(3, 2), (16, 0)])
def test_too_few_images_or_no_steps_judge_nothing(subject: Subject, samples: int, steps: int) -> None:
    assert "training" not in compressed(subject, samples, steps)[0].metrics


@pytest.mark.parametrize(("samples", "images"), [(4, 1), (7, 1), (17, 2)])
def test_few_images_are_judged_too(subject: Subject, samples: int, images: int) -> None:
    assert compressed(subject, samples, 2)[0].metrics["training"]["images"] == images
