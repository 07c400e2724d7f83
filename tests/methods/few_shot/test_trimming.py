"""The last block is trimmed where that costs nothing: exactly, and for targets that ask for as much."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.trimming import trimmed, untrimmed
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.subject import open_shapes
from dcvit.types import TimmModule

KWARGS = {"img_size": (32, 32), "patch_size": (8, 8), "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
SETTINGS = SearchSettings(steps=2)


@pytest.fixture
def model() -> TimmModule:
    torch.manual_seed(0)
    return create("vit_tiny_patch16_224", KWARGS)


def compressed(model: TimmModule, out: Path, **asked: Any) -> CompressionPlan:
    found = compress(model, "digits", out=out, samples=16, **{"settings": SETTINGS} | asked)
    assert found.summary.macs_reduction >= asked.get("macs_reduction", 0)
    return ModelFolder(out).plan


def share_of_trimming() -> float:
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=KWARGS)
    plans = (plan, plan.replace(trims_last_block=True))
    whole, less = (count_macs(build(each, device="meta"), (3, 32, 32), "full").total for each in plans)
    return 1 - less / whole


def test_it_comes_first_where_as_much_is_asked_for(tmp_path: Path, model: TimmModule) -> None:
    saved = share_of_trimming()
    assert 0.1 < saved < 0.25
    plan = compressed(model, tmp_path / "equal", macs_reduction=saved)
    assert plan == plan.original().replace(trims_last_block=True)
    # It changes no logit.
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ModelFolder(tmp_path / "equal").load()(images), model.eval()(images))
    plan = compressed(model, tmp_path / "more", macs_reduction=saved + 0.1)
    assert plan.trims_last_block
    assert plan.blocks
    plan = compressed(model, tmp_path / "less", macs_reduction=saved - 0.05)
    assert not plan.trims_last_block


@pytest.mark.parametrize(
    "asked",
    [
        {"trim_last_block": False},
        {"settings": SearchSettings(search="trials", steps=1)},
        {"plan": CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=KWARGS)},
    ],
    ids=["the user says no", "trials", "a plan"],
)
def test_it_is_left_where_somebody_else_decides(tmp_path: Path, model: TimmModule, asked: dict[str, Any]) -> None:
    assert not compressed(model, tmp_path / "out", macs_reduction=0.4, **asked).trims_last_block


def test_trials_trim_when_asked_to(tmp_path: Path, model: TimmModule) -> None:
    settings = SearchSettings(search="trials", steps=1)
    asked = {"macs_reduction": 0.3, "settings": settings, "trim_last_block": True}
    assert compressed(model, tmp_path / "out", **asked).trims_last_block


def test_a_backbone_keeps_the_tokens_that_others_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create("vit_tiny_patch16_224", KWARGS | {"num_classes": 0})
    assert not compressed(backbone, tmp_path / "out", macs_reduction=0.4).trims_last_block
    again = compressed(backbone, tmp_path / "asked", macs_reduction=0.4, trim_last_block=True)
    assert again.trims_last_block


def test_a_smaller_size_goes_on_from_a_trimmed_one(tmp_path: Path, model: TimmModule) -> None:
    saved = share_of_trimming()
    frontier(model, "digits", out=tmp_path / "out", reductions=(saved - 0.05, 0.3, 0.5), samples=16, settings=SETTINGS)
    plans = [ModelFolder(path).plan for path in sorted((tmp_path / "out").glob("r*"))]
    assert [plan.trims_last_block for plan in plans] == [False, True, True]


@pytest.mark.parametrize("merge", [None, "horizontal@2"])
@pytest.mark.parametrize(
    "last", [{}, {"head_dim": 8, "mlp_hidden": 64}, {"removed": "attention", "mlp_hidden": 40}],
    ids=["whole", "narrow", "no attention"],
)  # fmt: skip
def test_trimming_can_be_undone(last: dict[str, Any], merge: str | None) -> None:
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=KWARGS)
    plan = plan.with_blocks(*([BlockPlan(index=3, **last)] if last else []))
    if merge is not None:
        plan = plan.replace(merges=parse_merges(merge)[0], size_aware_attention=True)
    family = open_shapes(plan.model, plan.model_kwargs).family
    torch.manual_seed(0)
    model = build(plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trims = plan.replace(trims_last_block=True)
    after = untrimmed(trimmed(model, family, trims), trims).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
