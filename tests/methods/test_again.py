"""A model that was compressed is compressed again, by every method: whatever the first one left of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.base import MethodSettings
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.training.recipe import TrainingRecipe

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 5, "num_heads": 2, "num_classes": 10}
LEFT = (
    BlockPlan(index=0, mlp_hidden=128),
    BlockPlan(index=1, mlp_hidden=192, head_dim=24),
    BlockPlan(index=2, removed="attention", mlp_hidden=128),
    BlockPlan(index=3, head_dim=16),
)
MERGES = (Merge(after=2, axis="horizontal"),)
PLAN = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=KWARGS, blocks=LEFT, merges=MERGES)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., ModelFolder]) -> Path:
    """Narrower MLPs and heads, no attention in a block, merged tokens."""
    return make_folder(tmp_path_factory.mktemp("again") / "once", PLAN).path


def macs(plan: CompressionPlan) -> int:
    return count_macs(build(plan, device="meta"), (3, 32, 32)).total


def check(folder: ModelFolder, least: float) -> None:
    """As small as was asked for, and nothing that the first compression took is back."""
    plan = folder.plan
    assert 1 - macs(plan) / macs(PLAN) >= least
    assert plan.merges == PLAN.merges
    for before in PLAN.blocks:
        after = plan.block(before.index)
        if after.removed == "block":
            continue
        assert after.removed == before.removed or after.removed == "attention"
        assert (after.mlp_hidden or 256) <= (before.mlp_hidden or 256)
        assert after.removed or (after.head_dim or 32) <= (before.head_dim or 32)
    model = folder.load()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(2, 3, 32, 32))).all()


SHORT: dict[str, MethodSettings] = {
    "solver": SearchSettings(steps=2),
    "solver, predicted": SearchSettings(steps=2, examination="predicted"),
    "trials": SearchSettings(search="trials", steps=1),
    "practise": PractiseSettings(steps=1),
    "cait, refit": CaitSettings(training=TrainingRecipe(epochs=1, batch_size=16)),
    "cait, cdcp": CaitSettings(widths="cdcp", training=TrainingRecipe(epochs=1, batch_size=16)),
}


@pytest.mark.parametrize("name", SHORT)
def test_every_method_goes_on_from_a_folder(name: str, once: Path, tmp_path: Path) -> None:
    asked = {"samples": 64 if name.startswith("cait") else 32}
    compress(once, "digits", out=tmp_path / "twice", settings=SHORT[name], macs_reduction=0.3, **asked)
    folder = ModelFolder(tmp_path / "twice")
    check(folder, 0.3)
    if name.startswith("solver"):
        narrower = [entry.index for entry in LEFT if folder.plan.block(entry.index) != entry]
        assert narrower, "blocks that were narrowed before may lose more"


def test_without_data(once: Path, tmp_path: Path) -> None:
    compress(once, out=tmp_path / "twice", macs_reduction=0.2, recover="none")
    check(ModelFolder(tmp_path / "twice"), 0.2)


@pytest.mark.thorough
def test_a_frontier_of_a_folder(once: Path, tmp_path: Path) -> None:
    from dcvit.frontiers import frontier

    asked: dict[str, Any] = {"settings": SearchSettings(steps=8), "samples": 32}
    frontier(once, "digits", out=tmp_path / "many", reductions=(0.2, 0.4), **asked)
    for share in (0.2, 0.4):
        check(ModelFolder(tmp_path / "many" / f"r{share}"), share)
    sizes = [ModelFolder(tmp_path / "many" / f"r{share}").plan for share in (0.2, 0.4)]
    for index in range(5):  # the smaller one is cut from the larger one
        larger, smaller = (plan.block(index) for plan in sizes)
        assert (smaller.mlp_hidden or 256) <= (larger.mlp_hidden or 256)


def test_how_much_more_can_go_is_told(once: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"samples": 16, "settings": SearchSettings(steps=0)}
    with pytest.raises(InputError, match=r"--macs-reduction: 0.9900 is out of reach; cutting blocks takes 0.0000 to 0"):
        compress(once, "digits", out=tmp_path / "twice", macs_reduction=0.99, **asked)


@pytest.mark.thorough
def test_what_is_left_without_any_attention(tmp_path: Path, make_folder: Callable[..., ModelFolder]) -> None:
    """The solver and CAIT narrow MLPs; where attention has to go there is none left, and the message says who can."""
    gone = tuple(BlockPlan(index=index, removed="attention") for index in range(1, 4))
    once = make_folder(tmp_path / "once", PLAN.replace(blocks=gone)).path
    compress(once, "digits", out=tmp_path / "twice", macs_reduction=0.3, samples=16, settings=SearchSettings(steps=0))
    plan = ModelFolder(tmp_path / "twice").plan
    assert 1 - macs(plan) / macs(PLAN.replace(blocks=gone)) >= 0.3
    assert {plan.block(index).removed for index in range(1, 4)} == {"attention"}
    for settings in (SearchSettings(search="trials", steps=0), PractiseSettings(steps=0)):
        with pytest.raises(InputError, match="no block with attention .* the solver .* and --method cait can still"):
            compress(once, "digits", out=tmp_path / "no", macs_reduction=0.3, samples=16, settings=settings)
