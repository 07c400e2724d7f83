"""CAIT from end to end on small models: merging and pruning in one training, and each alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.bench import BenchRow
from dcvit.bench.statistics import Latency
from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.data import draw_few_shot, open_source
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods import speedup as speedup_module
from dcvit.methods.cait.prunable import most_macs, prunable_layers
from dcvit.methods.cait.refit import Refit
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cait.uniform import narrowed_plan, uniform_widths
from dcvit.methods.cuts.by_norm import cut_by_norm, put_strongest_first
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.subject import open_subject
from dcvit.training.finetune import Finetuning
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.teacher import Teacher
from dcvit.types import TimmModule

WIDER = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2, "num_classes": 10}
TRAINING = TrainingRecipe(epochs=1, batch_size=16)
SETTINGS = CaitSettings.paper().model_copy(update={"training": TRAINING})


@pytest.fixture
def model() -> TimmModule:
    """Heads of 32 channels, so that there are widths to choose from."""
    torch.manual_seed(0)
    return create("vit_tiny_patch16_224", WIDER)


def run(model: Any, out: Path, settings: CaitSettings = SETTINGS, **changes: Any) -> Any:
    more = {"samples": 48} if isinstance(model, Path) else {"samples": 48, "model_kwargs": WIDER}
    return compress(model, "digits", out=out, settings=settings, **(more | changes))


def test_merging_and_pruning_meet_one_target(tmp_path: Path, model: TimmModule) -> None:
    result = run(model, tmp_path / "out", macs_reduction=0.5)
    assert 0.5 <= result.summary.macs_reduction < 0.54
    plan = result.summary.plan
    assert plan.merges
    assert plan.merge_operator == "linear"
    assert not plan.size_aware_attention  # trained merges do without
    assert any(block.mlp_hidden or block.head_dim for block in plan.blocks)
    folder = ModelFolder(tmp_path / "out")
    loaded = folder.load()
    assert count_macs(loaded, (3, 32, 32)).total == result.summary.macs_after
    records = [json.loads(line) for line in (folder.path / "train.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert "train.jsonl" in folder.manifest.files
    assert set(records[0]["losses"]) == {"cross_entropy", "distillation"}
    assert {"images_per_second", "seconds", "lr", "epoch", "widths"} <= set(records[0])
    widths = result.metrics["widths"]
    assert widths["mlp_hidden"] == [loaded.blocks[index].mlp.fc1.out_features for index in range(4)]
    assert widths["head_dim"] == [loaded.blocks[index].attn.head_dim for index in range(4)]
    settings = folder.manifest.settings
    assert settings["recover"] == "train"
    assert (settings["training"]["augmentation"], settings["training"]["mixup"]) == ("crop", 0.0)  # what was used
    assert not (folder.path / "checkpoints").exists()


def test_widths_are_refitted_before_the_training_and_the_last_block_trimmed(tmp_path: Path, model: TimmModule) -> None:
    settings = CaitSettings(training=TRAINING)
    result = run(model, tmp_path / "out", settings, macs_reduction=0.5, merge="horizontal@2")
    plan = result.summary.plan
    assert plan.trims_last_block
    assert len(plan.merges) == 1
    assert any(block.mlp_hidden or block.removed for block in plan.blocks)
    assert 0.5 <= result.summary.macs_reduction < 0.54
    folder = ModelFolder(tmp_path / "out")
    assert count_macs(folder.load(), (3, 32, 32)).total == result.summary.macs_after
    assert result.metrics["steps"] == 3  # it was trained, after the refit
    assert result.metrics["stages"]["refit"] > 0
    untrained = CaitSettings(training=TrainingRecipe(epochs=0))
    start = run(model, tmp_path / "start", untrained, macs_reduction=0.5, merge="horizontal@2")
    assert start.summary.plan == plan
    before, after = (ModelFolder(tmp_path / name).load().blocks[-1].attn.q.weight for name in ("start", "out"))
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    "settings",
    [SearchSettings(steps=0), CaitSettings(training=TrainingRecipe(epochs=0)), SETTINGS],
    ids=["few-shot", "refit", "cdcp"],
)
def test_heads_can_be_kept(tmp_path: Path, model: TimmModule, settings: CaitSettings | SearchSettings) -> None:
    for keeps in (False, True):
        merge = {} if isinstance(settings, SearchSettings) else {"merge": "none"}
        target = Target(macs_reduction=0.2, keep_heads=keeps, **merge)
        result = compress(
            model, "digits", out=tmp_path / str(keeps), target=target, settings=settings, samples=48, model_kwargs=WIDER
        )
        assert result.summary.macs_reduction >= 0.2
        assert any(block.head_dim for block in result.summary.plan.blocks) != keeps


@pytest.mark.parametrize("least", [16, 8])
@pytest.mark.parametrize(
    "settings", [SearchSettings(steps=0), CaitSettings(training=TrainingRecipe(epochs=0)), SETTINGS],
    ids=["few-shot", "refit", "cdcp"],
)  # fmt: skip
def test_heads_keep_as_many_channels_as_is_said(
    tmp_path: Path, model: TimmModule, settings: CaitSettings | SearchSettings, least: int
) -> None:
    merge = {} if isinstance(settings, SearchSettings) else {"merge": "none"}
    target = Target(macs_reduction=0.75, min_head_dim=least, **merge)
    result = compress(
        model, "digits", out=tmp_path / "out", target=target, settings=settings, samples=48, model_kwargs=WIDER
    )
    assert min(block.head_dim for block in result.summary.plan.blocks if block.head_dim) == least


def test_merges_are_weighed_against_widths(tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow widths that are said to ruin the model make merges worth their harm, and the other way round."""
    settings = CaitSettings(training=TrainingRecipe(epochs=0))
    cache = tmp_path / "cache"
    for cost, merges in ((1e3, True), (0.0, False)):

        def damage(_self: Refit, _target: Target, _macs: float, merge: str | None, cost: float = cost) -> float:
            return cost / (1 if merge is None else 1 + merge.count("@"))

        monkeypatch.setattr(Refit, "damage", damage)
        found = run(model, tmp_path / str(cost), settings, macs_reduction=0.4, cache=cache)
        assert bool(found.summary.plan.merges) == merges
        assert found.summary.macs_reduction >= 0.4


def test_damage_of_widths_falls_where_merges_save_a_part(model: TimmModule) -> None:
    subject = open_subject(model, model_kwargs=WIDER)
    few = draw_few_shot(open_source("digits", "train"), 32, 0)
    refit = Refit(Run(subject), subject.plan, few)
    macs = 0.4 * count_macs(model, (3, 32, 32)).total
    alone, merged = (refit.damage(Target(), macs, merge) for merge in (None, "horizontal@1,linear"))
    assert 0 < merged < alone
    assert refit.damage(Target(), 2.4 * macs, "horizontal@3") == math.inf


@pytest.mark.parametrize(
    ("target", "settings", "merges", "narrows"),
    [
        ({"merge": "none", "macs_reduction": 0.3}, SETTINGS, 0, True),
        ({"macs_reduction": 0.3}, SETTINGS.model_copy(update={"prune": False}), 1, False),
        ({"merge": "horizontal@2"}, SETTINGS, 1, False),
        ({"merge": "horizontal@1,vertical@1", "macs_reduction": 0.3}, SETTINGS, 2, False),  # the merges are enough
    ],
)
def test_each_part_alone(
    tmp_path: Path, model: TimmModule, target: dict, settings: CaitSettings, merges: int, narrows: bool
) -> None:
    result = run(model, tmp_path / "out", settings, **target)
    plan = result.summary.plan
    assert len(plan.merges) == merges if "merge" in target else len(plan.merges) >= merges
    assert bool(plan.blocks) == narrows
    assert result.summary.macs_reduction >= target.get("macs_reduction", 0.1)
    ModelFolder(tmp_path / "out").load()


def test_it_composes_with_a_plan_and_with_a_folder(tmp_path: Path, model: TimmModule) -> None:
    subject = open_subject(model, model_kwargs=WIDER)
    start = subject.plan.with_blocks(
        BlockPlan(index=1, removed="attention", mlp_hidden=128), BlockPlan(index=2, head_dim=24)
    )
    first = run(model, tmp_path / "first", plan=start, merge="horizontal@2", macs_reduction=0.5)
    assert first.summary.plan.block(1).removed == "attention"
    assert (first.summary.plan.block(1).mlp_hidden or 999) <= 128
    assert (first.summary.plan.block(2).head_dim or 999) <= 24
    assert first.summary.macs_reduction >= 0.5
    second = run(tmp_path / "first", tmp_path / "second", macs_reduction=0.2)
    assert second.summary.plan.merges == first.summary.plan.merges
    assert second.summary.macs_after < 0.8 * first.summary.macs_after
    ModelFolder(tmp_path / "second").load()


def test_resume_gives_the_same_to_the_bit(tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens merge, channels are pruned, and the weights averaged; the run stops after its second step of three."""
    settings = SETTINGS.model_copy(update={"training": SETTINGS.training.model_copy(update={"ema": 0.9})})
    more = {"macs_reduction": 0.5, "merge": "horizontal@2", "checkpoint_minutes": 0.0}
    run(model, tmp_path / "whole", settings, **more)
    with monkeypatch.context() as patch:
        step = Finetuning._step

        def stops(self: Finetuning, number: int, lr: float) -> None:
            if number == 2:
                raise KeyboardInterrupt
            step(self, number, lr)

        patch.setattr(Finetuning, "_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "stopped", settings, **more)
    assert list((tmp_path / "stopped" / "checkpoints").glob("*.training.safetensors"))
    with pytest.raises(InputError, match="--resume"):
        run(model, tmp_path / "stopped", settings, **more)
    with pytest.raises(InputError, match=r"--ema: the run in .* was started with 0\.9, and now it is 0\.0"):
        run(model, tmp_path / "stopped", SETTINGS, **more, resume=True)
    run(model, tmp_path / "stopped", settings, **more, resume=True)
    whole, resumed = (ModelFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.manifest.files["model.safetensors"].sha256 == resumed.manifest.files["model.safetensors"].sha256
    assert whole.plan == resumed.plan


def test_narrowed_in_the_middle_of_the_training(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at full width, then the cut, then the last one; stopped behind the cut, it goes on to equal bits."""
    settings = SETTINGS.model_copy(update={"widths": "refit", "narrow_at": 2 / 3})
    more = {"macs_reduction": 0.4, "merge": "none", "checkpoint_minutes": 0.0}
    widths: list[int] = []
    step = Finetuning._step

    def notes(self: Finetuning, number: int, lr: float) -> None:
        widths.append(sum(parameter.numel() for parameter in self.student.parameters()))
        step(self, number, lr)

    monkeypatch.setattr(Finetuning, "_step", notes)
    whole = run(model, tmp_path / "whole", settings, **more)
    assert widths[0] == widths[1] > widths[2]
    assert whole.metrics["steps"] == 3
    log = (tmp_path / "whole" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3]
    assert whole.summary.macs_reduction >= 0.4

    def stops(self: Finetuning, number: int, lr: float) -> None:
        if number == 2:
            raise KeyboardInterrupt
        step(self, number, lr)

    monkeypatch.setattr(Finetuning, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "stopped", settings, **more)
    monkeypatch.setattr(Finetuning, "_step", step)
    run(model, tmp_path / "stopped", settings, **more, resume=True)
    states = [ModelFolder(tmp_path / name).manifest.files["model.safetensors"].sha256 for name in ("whole", "stopped")]
    assert states[0] == states[1]


def test_narrowed_behind_the_training_nothing_trains_it(tmp_path: Path, model: TimmModule) -> None:
    settings = SETTINGS.model_copy(update={"widths": "refit", "narrow_at": 1.0})
    result = run(model, tmp_path / "out", settings, macs_reduction=0.4, merge="none")
    assert result.metrics["steps"] == 3
    assert result.metrics["loss"] > 0
    with pytest.raises(InputError, match="--narrow-at is for --widths refit"):
        CaitSettings(widths="cdcp", narrow_at=0.5)


def test_without_data_every_layer_is_cut_by_the_same_share(tmp_path: Path, model: TimmModule) -> None:
    result = compress(
        model, out=tmp_path / "out", settings=SETTINGS, recover="none", merge="horizontal@2", macs_reduction=0.5
    )
    plan = result.summary.plan
    assert plan.merge_operator == "mean"
    assert plan.size_aware_attention  # untrained merges lose less with it
    assert len({(block.head_dim, block.mlp_hidden) for block in plan.blocks}) == 1
    assert 0.5 <= result.summary.macs_reduction < 0.56
    loaded = ModelFolder(tmp_path / "out").load()
    rows = {row.tobytes() for row in model.blocks[0].mlp.fc1.weight.detach().numpy()}
    assert all(row.tobytes() in rows for row in loaded.blocks[0].mlp.fc1.weight.detach().numpy())


def test_label_free(tmp_path: Path, model: TimmModule) -> None:
    settings = SETTINGS.model_copy(update={"labels": False})
    result = run(model, tmp_path / "out", settings, merge="horizontal@2")
    assert not result.metrics["labelled"]
    records = (tmp_path / "out" / "train.jsonl").read_text()
    assert set(json.loads(records.splitlines()[0])["losses"]) == {"distillation"}


def test_a_cache_keeps_what_the_teacher_says(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    run(model, tmp_path / "a", merge="horizontal@2", cache=cache)
    assert len(list(cache.glob("teacher-*.safetensors"))) == 1
    asked = []
    call = Teacher.__call__

    def counted(self: Teacher, images: torch.Tensor, draw: Any) -> torch.Tensor:
        asked.append(self._kept is None)
        return call(self, images, draw)

    monkeypatch.setattr(Teacher, "__call__", counted)
    run(model, tmp_path / "b", merge="vertical@2", cache=cache)
    assert asked.count(True) <= 1  # to know the size of an output
    assert asked.count(False) == 3
    longer = SETTINGS.model_copy(update={"training": TRAINING.model_copy(update={"epochs": 2})})
    run(model, tmp_path / "c", longer, merge="vertical@2", cache=cache)  # asks for more than was kept
    assert asked.count(False) == 3 + 6


@pytest.fixture
def timed(model: TimmModule, monkeypatch: pytest.MonkeyPatch) -> list[CompressionPlan]:
    """Plans that were timed; here latency follows the MACs to the power of 0.8, and no clock is asked."""
    whole = count_macs(model, (3, 32, 32)).total
    timed: list[CompressionPlan] = []

    class Row:
        runtime = "fake"

        def __init__(self, plan: CompressionPlan) -> None:
            self.speedup = (whole / count_macs(build(plan, device="meta"), (3, 32, 32)).total) ** 0.8
            self.speedup_ci95 = (self.speedup, self.speedup)
            self.latency = Latency(*[1 / self.speedup] * 4)

        def to_json(self) -> dict[str, Any]:
            return {"speedup": self.speedup}

    class Measuring:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Any:
            return self.measure

        def __exit__(self, *_: Any) -> None: ...

        def measure(self, plan: CompressionPlan) -> BenchRow:
            timed.append(plan)
            return Row(plan)  # type: ignore[return-value]

    monkeypatch.setattr("dcvit.methods.run.measuring", Measuring)
    return timed


def test_a_speed_up_is_measured_on_stand_ins_and_on_the_result(
    tmp_path: Path, model: TimmModule, timed: list[CompressionPlan]
) -> None:
    result = run(model, tmp_path / "out", speedup=1.6, merge="horizontal@2")
    assert result.metrics["speedup"]["speedup"] == pytest.approx(1.6, rel=2 * speedup_module.TOLERANCE)
    assert timed[-1] == result.summary.plan
    stand_in = timed[-2]  # the one that was near enough
    assert len({(block.mlp_hidden, block.head_dim) for block in stand_in.blocks}) == 1
    with pytest.raises(InputError, match="the merges alone measure"):
        run(model, tmp_path / "no", SETTINGS.model_copy(update={"prune": False}), speedup=3, merge="horizontal@2")
    enough = run(model, tmp_path / "enough", speedup=1.1, merge="horizontal@1,vertical@1")
    assert not enough.summary.plan.blocks  # merging alone is faster than that


@pytest.mark.thorough
def test_merges_are_weighed_at_the_speed_that_is_asked_for(
    tmp_path: Path, model: TimmModule, timed: list[CompressionPlan]
) -> None:
    settings = CaitSettings(training=TrainingRecipe(epochs=0))
    result = run(model, tmp_path / "out", settings, speedup=1.6, cache=tmp_path / "cache")
    assert result.metrics["speedup"]["speedup"] == pytest.approx(1.6, rel=2 * speedup_module.TOLERANCE)
    assert timed[-1] == result.summary.plan
    weighed = [plan for plan in timed if plan.merges and not plan.blocks]
    assert weighed, "no schedule was timed on its own"
    assert all(plan.trims_last_block for plan in timed)
    count = len(timed)
    again = run(model, tmp_path / "again", settings, speedup=1.6, cache=tmp_path / "cache")
    assert again.summary.plan == result.summary.plan
    assert len(timed) == count + 1  # the choice and the search are kept; the result is always timed


@pytest.mark.thorough
def test_the_speed_of_other_weights_is_searched_anew(
    tmp_path: Path, model: TimmModule, timed: list[CompressionPlan]
) -> None:
    """Their plans are called the same until widths are found."""
    settings = CaitSettings(training=TrainingRecipe(epochs=0))
    torch.manual_seed(1)
    for name, weights in (("one", model), ("other", create("vit_tiny_patch16_224", WIDER))):
        timed.clear()
        run(weights, tmp_path / name, settings, speedup=1.6, merge="horizontal@2", cache=tmp_path / "cache")
        assert len(timed) > 1, "the search of the first was taken for that of the second"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to do"),
        ({"macs_reduction": 0.3, "data": None}, "recovery needs images"),
        ({"macs_reduction": 0.99}, "out of reach; pruning with these merges takes"),
        ({"macs_reduction": 0.3, "recover": "mimic"}, "has train and none"),
        ({"macs_reduction": 0.3, "settings": SETTINGS.model_copy(update={"prune": False}), "merge": "horizontal@3"},
         "the merges remove"),
        ({"macs_reduction": 0.3, "samples": 5000}, "has 1297 images"),
        ({"macs_reduction": 0.95, "settings": CaitSettings(training=TRAINING), "merge": "none"}, "out of reach"),
        ({"macs_reduction": 0.3, "settings": PractiseSettings(), "trim_last_block": True},
         "--trim-last-block is of --method dcvit or --method cait, and the method is practise"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, model: TimmModule, changes: dict, message: str
) -> None:
    arguments = {"data": "digits", "settings": SETTINGS, "samples": 48, "model_kwargs": WIDER} | changes
    with pytest.raises(InputError, match=message) as caught:
        compress(model, out=tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_channels_in_order_compute_the_same_and_the_strongest_stay(model: TimmModule) -> None:
    attention = model.blocks[1].attn.double()
    with torch.no_grad():
        attention.qkv.weight.view(3, 2, 32, 64)[:, :, 5] *= 100
    tokens = torch.randn(2, 17, 64, dtype=torch.double)
    before = attention(tokens)
    put_strongest_first(attention)
    torch.testing.assert_close(attention(tokens), before, rtol=0, atol=1e-10)
    norms = attention.qkv.weight.norm(dim=1).view(3, 2, 32)
    assert (norms[0] * norms[1]).diff(dim=1).max() <= 0
    assert norms[2].argmax(dim=1).tolist() == [0, 0]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_uniform_widths_save_what_is_asked_and_little_more(model: TimmModule, share: float) -> None:
    subject = open_subject(model)
    layers = prunable_layers(subject.model, subject.family, subject.plan)
    macs = share * most_macs(layers)
    plan = narrowed_plan(subject.plan, layers, uniform_widths(layers, macs, 8))
    saved = count_macs(model, (3, 32, 32)).total - count_macs(build(plan, device="meta"), (3, 32, 32)).total
    step = sum(8 * layer.macs for layer in layers if layer.kind == "mlp_hidden")
    assert macs <= saved < macs + step
    cut = cut_by_norm(subject, plan)
    assert count_macs(cut, (3, 32, 32)).total == count_macs(build(plan, device="meta"), (3, 32, 32)).total
    with pytest.raises(InputError, match="saves .* M MACs, and .* M are asked for"):
        uniform_widths(layers, 1.01 * most_macs(layers), 8)
