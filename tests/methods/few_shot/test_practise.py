"""PRACTISE: adaptors that start as identities, trials that train nothing else, and a result that holds none of them."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcvit.cost import count_macs
from dcvit.data import FewShot, draw_few_shot, open_source
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.layers.adaptor import Layer, adapt_input, adapt_output
from dcvit.methods.few_shot import drop_trials as module
from dcvit.methods.few_shot.compressor import Recovered
from dcvit.methods.few_shot.drop_trials import drop_with_adaptors, feature_error
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.practise import fewest, practise, unit_macs
from dcvit.methods.few_shot.proposal import Proposal, Unit, propose
from dcvit.methods.few_shot.settings import PractiseSettings
from dcvit.methods.target import Target
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, MacsConvention
from dcvit.preprocessing import Preprocessing
from dcvit.stages import StageStore
from dcvit.subject import Subject
from dcvit.training.mimic import mimic
from dcvit.training.recipe import MimicRecipe
from dcvit.training.views import ViewBank

SETTINGS = PractiseSettings(
    steps=2, trial_steps=3, training=MimicRecipe(batch_size=8, lr=3e-3, weight_decay=0.0, loss_warmup_epochs=0)
)
PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0
)
KWARGS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {
        "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_heads": 2, "num_classes": 10,
    },
    "resnet34": {
        "num_classes": 10, "channels": [8, 8, 16, 16], "pretrained_cfg_overlay": {"input_size": [3, 32, 32]},
    },
    "resnet26": {
        "num_classes": 10, "channels": [8, 8, 16, 16], "pretrained_cfg_overlay": {"input_size": [3, 32, 32]},
    },
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "embed_dim": 12, "depths": [2, 4, 2], "num_heads": [1, 2, 2], "window_size": 4,
        "num_classes": 10,
    },
}  # fmt: skip
VIT, RESNET, BOTTLENECK, SWIN = KWARGS
# A unit to drop, and the layers that get an adaptor: in the whole ViT and Swin, in the ResNet's stage.
AROUND = {
    VIT: ((2,), {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "blocks.3.attn.qkv", "blocks.4.attn.qkv"}),
    RESNET: ((4,), {"layer2.0.conv2", "layer2.2.conv1", "layer2.3.conv1"}),
    BOTTLENECK: ((3,), {"layer2.0.conv3"}),
    SWIN: (
        (4, 5),
        {f"layers.{stage}.blocks.{block}.mlp.fc2" for stage in (0, 1) for block in (0, 1)}
        | {f"layers.2.blocks.{block}.attn.qkv" for block in (0, 1)},
    ),
}


def results(found: Recovered) -> tuple[Any, Any, dict[str, Any]]:
    return found.student, found.entries, found.metrics


def plan_of(name: str) -> CompressionPlan:
    return CompressionPlan(model=name, model_kwargs=KWARGS[name])


@cache
def digits() -> FewShot:
    return draw_few_shot(open_source("digits", "train"), 16, seed=0)


def job_of(name: str, store: Path | None = None, base: CompressionPlan | None = None, **changes: Any) -> Job:
    torch.manual_seed(0)
    plan = plan_of(name)
    model = build(plan).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    family = family_of(model)
    few_shot = digits()
    images = few_shot.tensor(PREPROCESSING)
    fields: dict[str, Any] = {
        "model": model,
        "family": family,
        "start": plan,
        "base": base or plan,
        "views": ViewBank(model, family, few_shot, PREPROCESSING, steps=3, batch_size=8, seed=0),
        "calibration": images,
        "fitted": lambda: images,
        "metric": images,
        "settings": SETTINGS,
        "target": Target(),
        "store": StageStore(store),
        "identity": {"model": name},
        "seed": 0,
        "depth": family.architecture(model).depth,
    }
    return Job(**fields | changes)


def proposal_of(job: Job, **target: Any) -> Proposal:
    return propose(subject_of(job), Target(**target))


def subject_of(job: Job) -> Subject:
    architecture = job.family.architecture(build(job.start))
    return Subject(job.model, job.start, job.family, architecture, PREPROCESSING, "random")


@torch.no_grad()
@pytest.mark.parametrize("layer", [nn.Linear(6, 9), nn.Conv2d(6, 9, 3, stride=2)], ids=["linear", "conv"])
def test_an_adaptor_acts_where_it_hangs(layer: Layer) -> None:
    inputs = torch.randn(2, 5, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 7, 7)
    before, after = copy.deepcopy(layer), copy.deepcopy(layer)
    in_front, behind = adapt_input(before), adapt_output(after)
    assert torch.equal(before(inputs), layer(inputs))
    assert torch.equal(after(inputs), layer(inputs))
    for adaptor in (in_front, behind):
        adaptor.weight.normal_()
    torch.testing.assert_close(before(inputs), layer(in_front(inputs)))
    torch.testing.assert_close(copy.deepcopy(after)(inputs), behind(layer(inputs)))  # a copy uses its own, equal one
    with pytest.raises(ValueError, match="already"):
        adapt_input(after)


@torch.no_grad()
@pytest.mark.parametrize("name", AROUND)
def test_adaptors_stand_around_the_gap_and_change_nothing_at_first(name: str) -> None:
    job = job_of(name)
    unit, layers = AROUND[name]
    dropped = job.family.cut(job.model, job.start.with_blocks(*(BlockPlan(index=i, removed="block") for i in unit)))
    trial = copy.deepcopy(job.model)
    adaptors = drop_with_adaptors(job, trial, unit)
    names = {path.removesuffix(".adaptor") for path, part in trial.named_modules() if part in adaptors}
    assert names == layers
    assert len(adaptors) == len(layers)
    # A product with the identity adds only zeros.
    torch.testing.assert_close(trial(job.calibration), dropped(job.calibration), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(trial(job.calibration), job.model(job.calibration), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_a_trial_trains_its_adaptors_alone_and_brings_the_features_closer(name: str) -> None:
    job = job_of(name)
    trial = copy.deepcopy(job.model)
    drop_with_adaptors(job, trial, AROUND[name][0])
    before, error = copy.deepcopy(trial.state_dict()), feature_error(job, trial)
    mimic(trial, job.family, job.views, SETTINGS.training, steps=10, seed=0, description="test")
    changed = {key for key, tensor in trial.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {key for key in before if ".adaptor." in key}
    assert feature_error(job, trial) < error


@torch.no_grad()
def test_the_error_is_the_mean_over_all_features() -> None:
    job = job_of(VIT)
    student = job.family.cut(job.model, job.start.with_blocks(BlockPlan(index=1, removed="block")))
    features, wanted = (job.family.features_and_logits(m, job.calibration)[0] for m in (student, job.model))
    # Where the machine is fast in bf16, both are computed in it.
    assert feature_error(job, student) == pytest.approx(float((features - wanted).square().mean()), rel=0.05)
    assert feature_error(job, job.model) == 0


@pytest.mark.parametrize("convention", ["full", "dcvit"])
@pytest.mark.parametrize(
    ("name", "target"),
    [(VIT, {"macs_reduction": 0.5, "merge": "horizontal@2,linear"}), (SWIN, {"macs_reduction": 0.1}),
     (BOTTLENECK, {"macs_reduction": 0.1})],
)  # fmt: skip
def test_a_unit_costs_what_the_model_saves_without_it(
    name: str, target: dict[str, Any], convention: MacsConvention
) -> None:
    job = job_of(name)
    proposal = proposal_of(job, **target, macs_convention=convention)
    base, size = proposal.base, job.family.architecture(build(job.start)).input_size
    costs = unit_macs(subject_of(job), proposal)
    assert set(costs) == set(proposal.units)
    for unit, macs in costs.items():
        without = base.with_blocks(*(BlockPlan(index=index, removed="block") for index in unit))
        assert (
            macs == count_macs(build(base), size, convention).total - count_macs(build(without), size, convention).total
        )


def test_the_fewest_units_that_reach_the_target() -> None:
    macs: dict[Unit, float] = {(3,): 10, (1,): 4, (2,): 30}
    assert fewest(list(macs), macs, 10) == [(3,)]
    assert fewest(list(macs), macs, 10.1) == [(3,), (1,)]
    assert fewest(list(macs), macs, 15) == [(3,), (1,), (2,)]


@pytest.mark.parametrize(("name", "reduction"), [(VIT, 0.35), (BOTTLENECK, 0.02), (SWIN, 0.2)])
def test_the_result_meets_the_target_and_loads(name: str, reduction: float) -> None:
    job = job_of(name)
    proposal = proposal_of(job, macs_reduction=reduction)
    before = copy.deepcopy(job.model.state_dict())
    student, entries, found = results(practise(job, proposal))
    assert all(torch.equal(tensor, before[key]) for key, tensor in job.model.state_dict().items())
    trials = found["trials"]
    assert {trial["blocks"] for trial in trials} == set(proposal.units)
    scores = [trial["mse"] / trial["saved_percent"] for trial in trials]
    assert scores == sorted(scores) == [trial["score"] for trial in trials]
    assert all(entry.removed == "block" for entry in entries)
    chosen = [index for trial in trials for index in trial["blocks"]][: len(entries)]
    assert [entry.index for entry in entries] == chosen  # the first ones
    plan = proposal.base.with_blocks(*entries)
    size = job.family.architecture(build(job.start)).input_size
    saved = [1 - count_macs(build(job.start.with_blocks(*some)), size).total / proposal.total
             for some in (entries, entries[: -len(trials[0]["blocks"])])]  # fmt: skip
    assert saved[0] >= reduction > saved[1]
    rebuilt = build(plan)
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(job.calibration), student(job.calibration))
    trained = {key for key, tensor in student.state_dict().items() if not torch.equal(tensor, before[key])}
    assert trained == {key for key, _ in student.named_parameters() if not key.startswith(("head.", "fc."))}
    assert found["fine_tuning_steps"] == SETTINGS.steps * proposal.structure().units


def test_latency_that_is_given_decides_the_order() -> None:
    job = job_of(VIT, settings=SETTINGS.model_copy(update={"trial_steps": 0}))
    proposal = proposal_of(job, macs_reduction=0.1)
    worst = practise(job, proposal, steps=0).metrics["trials"][-1]["blocks"]
    saved = {unit: 100.0 if unit == worst else 1e-3 for unit in proposal.units}
    _, entries, found = results(practise(job, proposal, steps=0, latency_saved=saved))
    assert [entry.index for entry in entries] == list(worst)
    assert found["trials"][0]["saved_percent"] == 100


def test_equal_seeds_give_equal_results_and_kept_ones_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(store: Path | None, steps: int = 4, **changes: Any) -> tuple[dict[str, Tensor], list[int], dict[str, Any]]:
        job = job_of(VIT, store, **changes)
        student, entries, found = results(practise(job, proposal_of(job, macs_reduction=0.3), steps=steps))
        return student.state_dict(), [entry.index for entry in entries], found

    weights, blocks, found = run(tmp_path)
    other_seed = run(None, steps=0, seed=1)
    monkeypatch.setattr(module, "mimic", None)  # trials
    monkeypatch.setattr("dcvit.methods.few_shot.job.mimic", None)
    again, blocks_again, found_again = run(tmp_path)
    assert blocks == blocks_again
    assert found_again["trials"] == found["trials"]
    assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())
    assert found_again["stages_reused"] == len(found["trials"]) + 1
    monkeypatch.undo()
    repeated = run(None)
    assert [trial["mse"] for trial in repeated[2]["trials"]] == [trial["mse"] for trial in found["trials"]]
    assert all(torch.equal(tensor, repeated[0][key]) for key, tensor in weights.items())
    assert [trial["mse"] for trial in other_seed[2]["trials"]] != [trial["mse"] for trial in found["trials"]]


def test_what_the_base_plan_fixes_stays_and_counts_for_the_budget() -> None:
    job = job_of(VIT)
    fixed = BlockPlan(index=2, removed="attention", mlp_hidden=16)
    start = job.start.with_blocks(fixed).replace(merges=({"after": 3, "axis": "vertical"},))
    job = job_of(VIT, base=start)
    proposal = proposal_of(job, macs_reduction=0.5, plan=start)
    assert proposal.wanted > 0
    student, entries, found = results(practise(job, proposal))
    assert 2 not in [entry.index for entry in entries]
    assert found["fine_tuning_steps"] == SETTINGS.steps * (proposal.structure().units + 2)
    build(start.with_blocks(*entries)).load_state_dict(student.state_dict())


def test_a_target_out_of_reach_says_what_is_in_reach() -> None:
    job = job_of(VIT)
    proposal = proposal_of(job, macs_reduction=0.9)
    with pytest.raises(InputError, match=r"0.9000 is out of reach; dropping 1 to 3 units takes 0\.1\d* to 0\.[56]"):
        practise(job, proposal)
