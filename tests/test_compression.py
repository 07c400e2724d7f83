"""compress from end to end on small models: what is written, and that runs are repeatable and resumable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.model import create
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.training import mimic as mimic_module
from dcvit.types import TimmModule

SETTINGS = SearchSettings(search="trials", steps=2)
RUN = {"data": "digits", "settings": SETTINGS, "samples": 16, "weights": "random"}


@pytest.fixture
def model(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(0)
    return create(tiny_plan.model, tiny_plan.model_kwargs)


@pytest.fixture
def checkpoint(tmp_path: Path, model: TimmModule) -> Path:
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_run_meets_its_target_and_can_be_loaded(tmp_path: Path, model: TimmModule) -> None:
    result = compress(model, "digits", out=tmp_path / "out", macs_reduction=0.3, settings=SETTINGS, samples=16)
    folder = ModelFolder(tmp_path / "out")
    assert result.summary.macs_reduction >= 0.3
    assert sorted(path.name for path in folder.path.iterdir()) == ["manifest.json", "model.safetensors", "plan.json"]
    loaded = folder.load()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert loaded(images).shape == (2, 10)
        assert torch.equal(loaded.forward_head(loaded.forward_features(images)), loaded(images))
    compressed = [block for block in folder.plan.blocks if block.removed == "attention"]
    assert {block.index for block in compressed} <= {1, 2}
    trials = folder.manifest.metrics["trials"]
    assert [trial["kl"] for trial in trials] == sorted(trial["kl"] for trial in trials)
    assert compressed[0].index in trials[0]["blocks"] or len(compressed) == 2
    assert folder.manifest.data is not None
    assert folder.manifest.data["images"] == 16


def test_a_model_in_memory_and_its_checkpoint_give_the_same(
    tmp_path: Path, model: TimmModule, checkpoint: Path, tiny_plan: CompressionPlan
) -> None:
    first = compress(model, "digits", out=tmp_path / "a", macs_reduction=0.3, settings=SETTINGS, samples=16)
    second = compress(
        tiny_plan.model, "digits", out=tmp_path / "b", macs_reduction=0.3, settings=SETTINGS, samples=16,
        model_kwargs=tiny_plan.model_kwargs, checkpoint=checkpoint,
    )  # fmt: skip
    assert first.summary.plan.blocks == second.summary.plan.blocks
    states = [ModelFolder(tmp_path / name).load().state_dict() for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_resume_gives_the_same_to_the_bit(
    tmp_path: Path, checkpoint: Path, tiny_plan: CompressionPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, resume: bool = False) -> None:
        compress(
            tiny_plan.model, "digits", out=tmp_path / name, macs_reduction=0.4, settings=SETTINGS, samples=16,
            model_kwargs=tiny_plan.model_kwargs, checkpoint=checkpoint, resume=resume,
        )  # fmt: skip

    run("whole")
    original, calls = mimic_module.mimic, []

    def stops_at_the_third(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr("dcvit.methods.few_shot.job.mimic", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    assert (tmp_path / "stopped" / "checkpoints").is_dir()
    with pytest.raises(InputError, match="--resume"):
        run("stopped")
    run("stopped", resume=True)
    whole, resumed = (ModelFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.manifest.files["model.safetensors"].sha256 == resumed.manifest.files["model.safetensors"].sha256
    assert resumed.manifest.metrics["stages_reused"] > whole.manifest.metrics["stages_reused"]
    assert not (resumed.path / "checkpoints").exists()


def test_trials_are_scored_on_synthetic_images_that_can_be_looked_at(tmp_path: Path, model: TimmModule) -> None:
    settings = SearchSettings(search="trials", steps=1, metric="synthetic", synthesis_steps=2)
    cache = tmp_path / "cache"
    result = compress(
        model, "digits", out=tmp_path / "out", macs_reduction=0.3, settings=settings, samples=16, cache=cache
    )
    assert all(trial["kl"] >= 0 for trial in result.metrics["trials"])
    assert len(list((cache / "synthetic").glob("*-class-*.png"))) == 50
    assert (cache / "synthetic" / "contact-sheet.png").is_file()


def test_the_solver_meets_targets_and_serves_later_ones_from_its_cache(
    tmp_path: Path, model: TimmModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchSettings(steps=1)
    first = compress(
        model, "digits", out=tmp_path / "a", macs_reduction=0.3, settings=settings, samples=16, cache=tmp_path / "cache"
    )
    # Without the blocks' first examination nothing could be measured again.
    monkeypatch.setattr("dcvit.methods.few_shot.solver.examine", None)
    second = compress(
        model, "digits", out=tmp_path / "b", macs_reduction=0.5, settings=settings, samples=16, cache=tmp_path / "cache"
    )
    assert 0.3 <= first.summary.macs_reduction < 0.33
    assert 0.5 <= second.summary.macs_reduction < 0.53
    assert first.metrics["damage"] == second.metrics["damage"]


@pytest.mark.parametrize("operator", ["mean", "linear"])
def test_merging_with_recovery(tmp_path: Path, model: TimmModule, operator: str) -> None:
    result = compress(
        model, "digits", out=tmp_path / "out", merge=f"horizontal@1,vertical@2,{operator}", size_aware=True,
        settings=SETTINGS, samples=16,
    )  # fmt: skip
    assert result.summary.tokens == [17, 9, 5, 5]
    assert ModelFolder(tmp_path / "out").load()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_cutting_without_data_changes_only_what_the_plan_says(tmp_path: Path, model: TimmModule) -> None:
    plan_kwargs = {"img_size": [32, 32]}
    result = compress(model, out=tmp_path / "out", merge="horizontal@2", recover="none")
    assert not result.metrics.get("trials")
    loaded = ModelFolder(tmp_path / "out").load().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert plan_kwargs["img_size"] == list(result.summary.plan.model_kwargs["img_size"])


@pytest.mark.parametrize(
    ("flags", "aware"),
    [
        ({"merge": "horizontal@2", "recover": "none"}, True),
        ({"merge": "horizontal@2,linear", "recover": "none"}, True),
        ({"merge": "horizontal@2", "recover": "none", "size_aware": False}, False),
        ({"merge": "horizontal@2", "data": "digits"}, False),
        ({"merge": "horizontal@2", "data": "digits", "recover": "none"}, True),
    ],
)
def test_attention_is_size_aware_where_nothing_is_trained(
    tmp_path: Path, model: TimmModule, flags: dict[str, Any], aware: bool
) -> None:
    result = compress(model, out=tmp_path / "out", settings=SETTINGS, samples=16, **flags)
    assert result.summary.plan.size_aware_attention == aware
    # A plan says itself what it is.
    as_planned = compress(model, out=tmp_path / "again", plan=result.summary.plan, recover="none")
    assert as_planned.summary.plan.size_aware_attention == aware


def test_a_folder_can_be_compressed_further(tmp_path: Path, model: TimmModule) -> None:
    compress(model, out=tmp_path / "merged", merge="horizontal@2", recover="none")
    result = compress(
        tmp_path / "merged", "digits", out=tmp_path / "both", macs_reduction=0.2, settings=SETTINGS, samples=16
    )
    assert result.summary.plan.merges
    assert result.summary.blocks_compressed >= 1
    assert result.summary.macs_reduction >= 0.2  # of the merged model, which was given


def test_a_plan_fixes_everything(tmp_path: Path, model: TimmModule, tiny_plan: CompressionPlan) -> None:
    first = compress(model, out=tmp_path / "first", macs_reduction=0.3, recover="none")
    again = compress(model, "digits", out=tmp_path / "again", plan=first.summary.plan, settings=SETTINGS, samples=16)
    assert again.summary.plan.digest == first.summary.plan.digest
    assert not again.metrics["trials"]  # the plan leaves nothing to choose


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
                                  "vit_base_patch16_gap_224", "vit_small_patch14_reg4_dinov2"])  # fmt: skip
def test_every_kind_of_vit_goes_through(tmp_path: Path, name: str, tiny_plan: CompressionPlan) -> None:
    model = timm.create_model(name, **tiny_plan.model_kwargs)
    for search in ("solver", "trials"):
        result = compress(
            model, "digits", out=tmp_path / search, macs_reduction=0.4, merge="horizontal@2", samples=8,
            settings=SearchSettings(search=search, steps=1),
        )  # fmt: skip
        assert 0.4 <= result.summary.macs_reduction < 0.55  # more, where that does less damage
        ModelFolder(tmp_path / search).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "recovery needs images"),
        ({"samples": 5000}, "has 1297 images"),
        ({"macs_reduction": 0.95}, "out of reach; compressing 1 to 2 blocks takes"),
        ({"macs_reduction": 0.95, "settings": SearchSettings(steps=1)}, "out of reach; cutting blocks takes 0.0000 to"),
        ({"model": "vit_tinny"}, "neither a model folder nor a timm model"),
        ({"model_kwargs": {"depht": 3}}, "'depht' does not shape a model"),
        ({"checkpoint": Path("nowhere.safetensors")}, "there is no file"),
        ({"merge": "horizontal@9"}, "is at no block"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, tiny_plan: CompressionPlan, changes: dict, message: str
) -> None:
    arguments = (
        {"model": tiny_plan.model, "model_kwargs": tiny_plan.model_kwargs, "macs_reduction": 0.3} | RUN | changes
    )
    with pytest.raises(InputError, match=message) as caught:
        compress(out=tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_names_the_first_mismatch(
    tmp_path: Path, model: TimmModule, tiny_plan: CompressionPlan
) -> None:
    def attempt(state: dict) -> str:
        save_file(state, tmp_path / "c.safetensors")
        with pytest.raises(InputError) as caught:
            compress(
                tiny_plan.model, out=tmp_path / "out", merge="horizontal@2", recover="none",
                model_kwargs=tiny_plan.model_kwargs, checkpoint=tmp_path / "c.safetensors",
            )  # fmt: skip
        return str(caught.value)

    state = model.state_dict()
    assert "'head.weight' is [3, 32]" in attempt(
        state | {"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}
    )
    assert "has no 'norm.weight'" in attempt({name: t for name, t in state.items() if name != "norm.weight"})
    assert "'extra'" in attempt(state | {"extra": torch.zeros(1)})


def test_pickled_code_is_never_run(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"model": Bomb()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        compress(
            tiny_plan.model, out=tmp_path / "out", merge="horizontal@2", recover="none",
            model_kwargs=tiny_plan.model_kwargs, checkpoint=tmp_path / "bad.pth",
        )  # fmt: skip
    assert not (tmp_path / "exploded").exists()


def test_the_result_is_json(tmp_path: Path, model: TimmModule) -> None:
    result = compress(model, out=tmp_path / "out", macs_reduction=0.3, recover="none")
    report = json.loads(json.dumps(result.to_json()))
    assert report["macs_after"] < report["macs_before"]
    assert report["plan"]["blocks"][0]["removed"] == "attention"
    assert BlockPlan.model_validate(report["plan"]["blocks"][0]).mlp_hidden == report["mlp_hidden"]
