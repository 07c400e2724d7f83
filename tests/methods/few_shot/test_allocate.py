import itertools

import pytest

from dcvit.errors import InputError
from dcvit.folder.records import BlockDamage
from dcvit.methods.few_shot.allocate import BlockWidths, OutOfReachError, allocate, damage_of
from dcvit.methods.few_shot.structure import UnitCost

WHOLE = BlockWidths(head_dim=32, mlp_hidden=64)
ALL_WHOLE = dict.fromkeys(range(3), WHOLE)
COSTS = {0: UnitCost(50.0, 100.0), 1: UnitCost(60.0, 90.0, heads=56.0), 2: UnitCost(40.0, 120.0, heads=40.0)}
DAMAGES = {
    0: BlockDamage(attention=None, mlp={32: 0.01, 16: 0.05}),
    1: BlockDamage(attention=0.03, mlp={32: 0.002, 16: 0.02}),
    2: BlockDamage(attention=0.5, mlp={32: 0.1, 16: 0.4}, heads={16: 0.004}),
}


def saved_by(block: int, widths: BlockWidths) -> float:
    cost = COSTS[block]
    attention = cost.heads * (1 - widths.head_dim / 32) if widths.head_dim else cost.removed
    return attention + cost.narrowed * (1 - widths.mlp_hidden / 64)


def saved(chosen: dict[int, BlockWidths]) -> float:
    return sum(saved_by(*each) for each in chosen.items())


def harm(chosen: dict[int, BlockWidths]) -> float:
    return sum(damage_of(DAMAGES[block], widths, WHOLE) for block, widths in chosen.items())


@pytest.mark.parametrize("macs", [10, 60, 100, 135, 160, 220, 270])
def test_it_is_the_best_of_all_combinations(macs: float) -> None:
    """With widths in steps of 16, checked against every combination."""
    chosen = allocate(DAMAGES, COSTS, ALL_WHOLE, macs, multiple=16)
    assert saved(chosen) >= macs - 1e-9
    hidden = (16, 32, 48, 64)
    options = [
        [BlockWidths(32, each) for each in hidden],  # block 0 may not lose its attention, nor any channel of a head
        [BlockWidths(head_dim, each) for head_dim in (0, 32) for each in hidden],
        [BlockWidths(head_dim, each) for head_dim in (0, 16, 32) for each in hidden],
    ]
    combinations = (dict(enumerate(each)) for each in itertools.product(*options))
    # Savings are counted in steps of 1/4096 of the target, for each attention and each MLP.
    best = min(harm(each) for each in combinations if saved(each) >= macs * (1 + 6 / 4096))
    assert harm(chosen) <= best + 1e-12
    assert chosen[0].head_dim == 32


def test_attention_goes_only_where_narrower_heads_save_too_little() -> None:
    chosen = [allocate({2: DAMAGES[2]}, COSTS, ALL_WHOLE, macs, multiple=16)[2] for macs in (100, 125)]
    assert chosen == [BlockWidths(16, 16), BlockWidths(0, 16)]


def test_widths_respect_the_multiple_and_the_narrowest_measured() -> None:
    for widths in allocate(DAMAGES, COSTS, ALL_WHOLE, 200, multiple=8).values():
        assert widths.mlp_hidden % 8 == widths.head_dim % 8 == 0
        assert widths.mlp_hidden >= 16
        assert widths.head_dim in (0, 16, 24, 32)


def test_out_of_reach() -> None:
    most = (100 + 90 + 120) * 0.75 + 60 + 40
    allocate(DAMAGES, COSTS, ALL_WHOLE, most * 0.999, multiple=16)
    with pytest.raises(OutOfReachError):
        allocate(DAMAGES, COSTS, ALL_WHOLE, most * 1.01, multiple=16)


@pytest.mark.parametrize("first", [60.0, 135.0, 200.0])
def test_what_comes_after_a_cut_only_loses_more(first: float) -> None:
    before = allocate(DAMAGES, COSTS, ALL_WHOLE, first, multiple=8)
    after = allocate(DAMAGES, COSTS, ALL_WHOLE, 240, multiple=8, limits=before)
    assert saved(after) >= 240 - 1e-9
    for block, widths in after.items():
        assert widths.mlp_hidden <= before[block].mlp_hidden
        assert widths.head_dim <= before[block].head_dim


def test_limits_bind_where_the_best_for_more_is_not_a_further_cut() -> None:
    free = allocate(DAMAGES, COSTS, ALL_WHOLE, 60, multiple=8)
    assert free[2].mlp_hidden > 32
    held = allocate(DAMAGES, COSTS, ALL_WHOLE, 60, multiple=8, limits={2: BlockWidths(16, 32)})
    assert held[2].mlp_hidden <= 32
    assert held[2].head_dim <= 16


def test_damages_survive_json() -> None:
    for damage in DAMAGES.values():
        assert BlockDamage.model_validate(damage.model_dump(mode="json")) == damage


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damage_that_is_not_finite_is_refused_by_block_and_cut(value: float) -> None:
    broken = {
        "attention": BlockDamage(attention=value, mlp={32: 0.01}),
        "mlp 16": BlockDamage(attention=None, mlp={32: 0.01, 16: value}),
        "head_dim 16": BlockDamage(attention=None, mlp={32: 0.01}, heads={16: value}),
    }
    for cut, damage in broken.items():
        with pytest.raises(InputError, match=f"block 1: the damage of the cut '{cut}'"):
            allocate(DAMAGES | {1: damage}, COSTS, ALL_WHOLE, 100, multiple=16)
