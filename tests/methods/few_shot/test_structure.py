"""The check values of the DC-ViT paper (arXiv 2403.18708, ViT-B/16), and the edges of the reachable range."""

import pytest

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.methods.few_shot.figures import summarize
from dcvit.methods.few_shot.proposal import propose
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.few_shot.structure import Structure, UnitCost, solve_structure, solve_width
from dcvit.methods.target import Target
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.subject import open_shapes


@pytest.mark.parametrize(
    ("dropped", "percent", "blocks", "hidden"), [(1, 8.28, 2, 2304), (2, 16.55, 3, 1535), (3, 24.83, 4, 1151)]
)
def test_the_papers_structures_of_vit_base(dropped: int, percent: float, blocks: int, hidden: int) -> None:
    plan = CompressionPlan(model="vit_base_patch16_224")
    gone = plan.with_blocks(*(BlockPlan(index=index + 1, removed="block") for index in range(dropped)))
    total, left = (count_macs(build(each, device="meta"), (3, 224, 224), "dcvit").total for each in (plan, gone))
    reduction = 1 - left / total
    assert reduction * 100 == pytest.approx(percent, abs=0.006)
    target = Target(macs_reduction=reduction, macs_convention="dcvit", width_multiple=1)
    subject = open_shapes("vit_base_patch16_224")
    summary = summarize(subject, target, SearchSettings.paper())
    assert (summary.blocks_compressed, summary.mlp_hidden) == (blocks, hidden)
    # At most one node in each block away from the target.
    assert abs(summary.macs_after - left) <= blocks * 8 * 197 * 768**2 / 3072 + 1


COSTS = [UnitCost(removed=100.0, narrowed=200.0)] * 10


def test_neighbouring_block_counts_overlap() -> None:
    """For k blocks every reduction from k·attention to k·(attention + MLP) can be had: that is the method's density."""
    for macs in range(100, 2900, 7):
        structure = solve_structure(COSTS, 800, macs, 10_000, multiple=1)
        assert structure.mlp_hidden is not None
        saved = structure.units * (100 + 200 * (1 - structure.mlp_hidden / 800))
        assert macs - 1e-6 <= saved <= macs + structure.units * 200 / 800


def test_the_fewest_blocks_are_taken() -> None:
    assert solve_structure(COSTS, 800, 290, 10_000, multiple=8).units == 1
    # 299.9 of 300 would leave less than 8 nodes in one block, so it takes two.
    assert solve_structure(COSTS, 800, 299.9, 10_000, multiple=8) == Structure(2, 600)


def test_widths_are_rounded_down_to_the_multiple() -> None:
    assert solve_width(COSTS[:1], 800, 200, 8) == 400
    assert solve_width(COSTS[:1], 800, 199, 8) == 400
    assert solve_width(COSTS[:1], 800, 50, 8) == 800
    assert solve_width(COSTS[:1], 800, 300, 8) is None


def test_whole_blocks_need_no_width() -> None:
    assert solve_structure([UnitCost(100.0, 0.0)] * 4, 0, 150, 1000, 8) == Structure(2, None)


@pytest.mark.parametrize("macs", [50, 2990])
def test_out_of_reach_names_the_range(macs: float) -> None:
    with pytest.raises(InputError, match=r"takes 0\.0100 to 0\.2980"):
        solve_structure(COSTS, 800, macs, 10_000, multiple=8)
    with pytest.raises(InputError, match=rf"{(macs + 500) / 1e4:.4f} is out of reach; .* takes 0\.0600 to 0\.3480"):
        solve_structure(COSTS, 800, macs, 10_000, multiple=8, saved=500)  # shares count what is gone already


def test_a_target_is_met_with_merges_too() -> None:
    subject = open_shapes("deit_small_patch16_224")
    target = Target(macs_reduction=0.5, merge="horizontal@4,vertical@8")
    summary = summarize(subject, target, SearchSettings.paper())
    assert 0.5 <= summary.macs_reduction < 0.53
    assert summary.plan.merges
    assert summary.blocks_compressed > 0


def test_merges_alone_may_meet_a_target() -> None:
    subject = open_shapes("deit_small_patch16_224")
    proposal = propose(subject, Target(macs_reduction=0.3, merge="horizontal@4,vertical@8"))
    assert proposal.wanted == 0


def test_nothing_to_do_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to do"):
        propose(open_shapes("deit_tiny_patch16_224"), Target())


def test_a_plan_for_another_model_is_refused() -> None:
    plan = CompressionPlan(model="deit_small_patch16_224")
    with pytest.raises(InputError, match="--plan is for deit_small"):
        propose(open_shapes("deit_tiny_patch16_224"), Target(plan=plan))
