import copy
from itertools import pairwise

import pytest
import torch

from dcvit.data import draw_few_shot, open_source
from dcvit.families import family_of
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.training.mimic import cosine, mimic
from dcvit.training.recipe import MimicRecipe
from dcvit.training.views import MAX_VIEWS, ViewBank
from dcvit.types import TimmModule

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=1.0
)
RECIPE = MimicRecipe(batch_size=16, lr=3e-3, loss_warmup_epochs=0)


@pytest.fixture(scope="module")
def teacher(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    model = build(tiny_plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def views(teacher: TimmModule) -> ViewBank:
    few_shot = draw_few_shot(open_source("digits", "train"), 32, seed=0)
    return ViewBank(teacher, family_of(teacher), few_shot, PREPROCESSING, steps=30, batch_size=16, seed=0)


def student_of(teacher: TimmModule, plan: CompressionPlan) -> TimmModule:
    family = family_of(teacher)
    student = family.cut(teacher, plan.with_blocks(BlockPlan(index=1, removed="attention", mlp_hidden=64)))
    family.train_up_to(student, 2)
    return student


def test_mimicking_brings_the_features_closer(teacher: TimmModule, views: ViewBank, tiny_plan: CompressionPlan) -> None:
    student = student_of(teacher, tiny_plan)
    family = family_of(teacher)

    def error() -> float:
        with torch.no_grad():
            wanted = family.features_and_logits(teacher, views.images(views.views))[0]
            return float((family.features_and_logits(student, views.images(views.views))[0] - wanted).square().mean())

    before = error()
    mimic(student, family, views, RECIPE, steps=30, seed=0, description="test")
    assert error() < 0.85 * before


def test_frozen_parameters_and_the_teacher_stay(
    teacher: TimmModule, views: ViewBank, tiny_plan: CompressionPlan
) -> None:
    student = student_of(teacher, tiny_plan)
    before, teacher_before = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    mimic(student, family_of(teacher), views, RECIPE, steps=2, seed=0, description="test")
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert changed == trainable
    assert any(name.startswith("blocks.3") for name in before if name not in trainable)
    assert all(torch.equal(tensor, teacher_before[name]) for name, tensor in teacher.state_dict().items())


def test_equal_seeds_give_equal_weights(teacher: TimmModule, views: ViewBank, tiny_plan: CompressionPlan) -> None:
    def trained(seed: int) -> torch.Tensor:
        student = student_of(teacher, tiny_plan)
        mimic(student, family_of(teacher), views, RECIPE, steps=3, seed=seed, description="test")
        return student.blocks[1].mlp.fc1.weight

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_views_are_all_used_before_any_is_seen_again(views: ViewBank) -> None:
    order = views._order(steps=30, seed=3)
    assert len(order) == 480
    counts = torch.bincount(order, minlength=len(views.views))
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1


def test_views_are_those_that_the_images_give_normalised(views: ViewBank) -> None:
    assert views.views.dtype == torch.uint8  # a quarter of the memory
    seeds = range(views.seed * MAX_VIEWS, views.seed * MAX_VIEWS + views.num_views)
    expected = torch.cat([views.few_shot.augmented(views.preprocessing, seed) for seed in seeds])
    assert torch.equal(views.images(views.views).cpu(), expected)
    some = torch.tensor([3, 0, len(expected) - 1])
    assert torch.equal(views.images(views.views[some]).cpu(), expected[some])


def test_kept_teacher_outputs_equal_fresh_ones(
    teacher: TimmModule, views: ViewBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = next(views.batches(1, seed=0))[1]
    monkeypatch.setattr(views, "_cached", None)
    fresh = next(views.batches(1, seed=0))[1]
    # Kept outputs are rounded to half precision: 2⁻¹¹ relative; under bf16 autocast batches differ by 2⁻⁸.
    torch.testing.assert_close(kept.features, fresh.features, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(kept.logits, fresh.logits, rtol=2**-7, atol=2**-7)


def test_the_loss_of_the_paper_starts_at_zero(teacher: TimmModule, views: ViewBank, tiny_plan: CompressionPlan) -> None:
    """min(epoch / 20, 1) is 0 in the first step, so one step without weight decay moves nothing."""
    student = student_of(teacher, tiny_plan)
    before = copy.deepcopy(student.state_dict())
    recipe = MimicRecipe(batch_size=16, weight_decay=0.0)
    mimic(student, family_of(teacher), views, recipe, steps=1, seed=0, description="test")
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_learning_rate_rises_then_falls_to_nothing():
    rates = [cosine(step, 2000, 0.05) for step in range(2000)]
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[100] == max(rates) == 1
    assert all(before > after for before, after in pairwise(rates[100:]))
    assert rates[-1] < 1e-5
    assert cosine(0, 1, 0.05) > 0
