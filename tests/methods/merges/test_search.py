"""The merge chooser: MACs are those of the built model, figures those of the merged one, and the choice is the best."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.methods.cuts.scores import divergence, logits_of
from dcvit.methods.merges.costs import MergeCosts
from dcvit.methods.merges.search import choose_merges, most_reduction, schedules
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, Merge, merges_text, parse_merges
from dcvit.stages import StageStore
from dcvit.subject import original_of
from dcvit.types import TimmModule

BLOCKS = (BlockPlan(index=1, removed="attention", mlp_hidden=72), BlockPlan(index=2, removed="block"))
PLANS = {
    "class token": {},
    "3×5, registers": {"model": "vit_small_patch14_reg4_dinov2", "img_size": (24, 40)},
    "attention pooling": {"model": "vit_base_patch16_siglip_224"},
    "norm of q and k": {"qk_norm": True},
    "from a DC-ViT plan, linear": {"blocks": BLOCKS, "merge_operator": "linear"},
    "size-aware, distillation token": {"model": "deit_tiny_distilled_patch16_224", "size_aware_attention": True},
}


@pytest.fixture(params=list(PLANS))
def plan(request: pytest.FixtureRequest, tiny_plan: CompressionPlan) -> CompressionPlan:
    changes = dict(PLANS[request.param])
    kwargs = {key: changes.pop(key) for key in ("img_size", "qk_norm") if key in changes}
    return tiny_plan.replace(**changes, model_kwargs=tiny_plan.model_kwargs | kwargs)


def made(plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    model = build(plan)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(plan: CompressionPlan, count: int = 70) -> Tensor:
    """More than one chunk of 64, the second one smaller."""
    original = original_of(plan)
    return torch.randn(
        count, *family_of(original).architecture(original).input_size, generator=torch.Generator().manual_seed(1)
    )


def schedule(text: str) -> tuple[Merge, ...]:
    return parse_merges(text)[0]


@pytest.mark.parametrize("convention", ["full", "dcvit"])
def test_macs_of_a_schedule_are_those_of_the_built_model(plan: CompressionPlan, convention: str) -> None:
    original = original_of(plan)
    family = family_of(original)
    costs = MergeCosts(build(plan, device="meta"), family, plan, convention)  # type: ignore[arg-type]
    size = family.architecture(original).input_size
    for text in ("vertical@3", "horizontal@1,vertical@1", "horizontal@1,horizontal@2,vertical@3"):
        merged = build(plan.replace(merges=schedule(text)), device="meta")
        counted = count_macs(merged, size, convention).total  # type: ignore[arg-type]
        assert costs.total - costs.saved(schedule(text)) == pytest.approx(counted, abs=0.5), text


def test_each_figure_is_that_of_the_merged_model(plan: CompressionPlan) -> None:
    """The search skips what runs in front of the first merge; that must not change what it measures."""
    model = made(plan)
    family = family_of(original_of(plan))
    images = images_for(plan)
    before = copy.deepcopy(model.state_dict())
    found = choose_merges(model, family, plan, images, macs_reduction=0.3, budget=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    features, logits = family.features_and_logits(model, images)
    for trial in (*found.trials[:3], *found.trials[-3:]):
        merged = plan.original().replace(merges=trial.merges, size_aware_attention=plan.size_aware_attention)
        student = copy.deepcopy(model)
        family.apply(student, merged)
        new_features, new_logits = family.features_and_logits(student, images)
        target = family.merge_tokens(model, merged, features)
        error = float((new_features - target).square().sum() / target.square().sum())
        # fp32 through four blocks, and bf16 where the machine trains in it: figures of one chunk more or less.
        assert trial.kl == pytest.approx(divergence(new_logits, logits), rel=0.05, abs=1e-4)
        assert trial.feature_error == pytest.approx(error, rel=0.05)
    assert found.best.macs_reduction >= 0.3
    assert found.images == 70
    assert found.size_aware == plan.size_aware_attention


def test_the_least_harmful_schedule_is_found(tiny_plan: CompressionPlan) -> None:
    model, images = made(tiny_plan), images_for(tiny_plan, 32)
    family = family_of(model)
    costs = MergeCosts(model, family, tiny_plan, "full")
    wanted = logits_of(model, images)
    harm = {
        merges: divergence(logits_of(family.cut(model, tiny_plan.replace(merges=merges)), images), wanted)
        for merges in schedules(costs.grid, costs.depth)
        if costs.reduction(merges) >= 0.4
    }
    thorough = choose_merges(model, family, tiny_plan, images, macs_reduction=0.4, budget=1000)
    assert thorough.merges == min(harm, key=harm.__getitem__)
    assert thorough.trials[0].harm <= thorough.trials[-1].harm
    quick = choose_merges(model, family, tiny_plan, images, macs_reduction=0.4, budget=8)
    better = sum(other < harm[quick.merges] for other in harm.values())
    assert better < len(harm) / 10
    assert len(quick.trials) < len(thorough.trials) / 2
    assert merges_text(quick.merges) in str(quick.to_json()["best"])


def test_what_was_measured_serves_other_targets(tiny_plan: CompressionPlan, tmp_path: Path) -> None:
    model, images = made(tiny_plan), images_for(tiny_plan, 8)
    family = family_of(model)

    def search(target: float, plan: CompressionPlan = tiny_plan) -> tuple[StageStore, object]:
        store = StageStore(tmp_path)
        return store, choose_merges(model, family, plan, images, macs_reduction=target, store=store)

    _, first = search(0.4)
    store, second = search(0.4)
    assert second == first
    assert store.reused == len(first.trials)
    store, _ = search(0.3)
    assert store.reused >= 10  # every merge alone
    store, aware = search(0.4, tiny_plan.replace(size_aware_attention=True))
    assert store.reused == 0
    assert aware.best.kl != first.best.kl


def test_a_model_without_logits_is_judged_by_its_features(tiny_plan: CompressionPlan) -> None:
    plan = tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"num_classes": 0})
    model = made(plan)
    found = choose_merges(model, family_of(model), plan, images_for(plan, 8), macs_reduction=0.3)
    assert found.best.kl is None
    enough = [trial.feature_error for trial in found.trials if trial.macs_reduction >= 0.3]
    assert found.best.feature_error == min(enough)


def test_schedules_fit_the_grid() -> None:
    assert {merges_text(merges) for merges in schedules((1, 2), 3)} == {"horizontal@1", "horizontal@2"}
    every = list(schedules((3, 4), 4))
    assert len(every) == len(set(every))
    assert all(parse_merges(merges_text(merges))[0] == merges for merges in every)
    # Three sides become two, then one; a third merge of one axis is not searched.
    assert schedule("vertical@1,vertical@2") in every
    assert not any(sum(merge.axis == "vertical" for merge in merges) > 2 for merges in every)
    assert max(map(len, every)) == 3


def test_what_cannot_be_is_refused(tiny_plan: CompressionPlan) -> None:
    model, images = made(tiny_plan), images_for(tiny_plan, 2)
    family = family_of(model)
    most = most_reduction(MergeCosts(model, family, tiny_plan, "full"))
    assert choose_merges(model, family, tiny_plan, images, macs_reduction=most).best.macs_reduction == most
    with pytest.raises(InputError, match=rf"cannot remove 0\.9000 of the MACs, at most {most:.4f}"):
        choose_merges(model, family, tiny_plan, images, macs_reduction=0.9)
    merged = tiny_plan.replace(merges=schedule("vertical@1"))
    with pytest.raises(InputError, match="tokens merge already"):
        choose_merges(build(merged), family, merged, images, macs_reduction=0.1)
    swin = CompressionPlan(model="swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match="shifted windows"):
        choose_merges(build(swin, device="meta"), family_of(original_of(swin)), swin, images, macs_reduction=0.1)
