import itertools

import numpy as np
import pytest

from dcvit.methods.allocate import Allocation, BlockDamage, OutOfReachError, allocate
from dcvit.methods.structure import UnitCost

HIDDEN = 64
COSTS = {0: UnitCost(50.0, 100.0), 1: UnitCost(60.0, 90.0), 2: UnitCost(40.0, 120.0)}
DAMAGES = {
    0: BlockDamage(None, {32: 0.01, 16: 0.05}),
    1: BlockDamage(0.03, {32: 0.002, 16: 0.02}),
    2: BlockDamage(0.5, {32: 0.1, 16: 0.4}),
}


def saved_by(block: int, width: int, keeps_attention: bool) -> float:
    return COSTS[block].narrowed * (1 - width / HIDDEN) + (0.0 if keeps_attention else COSTS[block].removed)


def harm_of(block: int, width: int, keeps_attention: bool) -> float:
    mlp = float(DAMAGES[block].of_width(np.array([width]), HIDDEN)[0])
    return mlp + (0.0 if keeps_attention else DAMAGES[block].attention or 0.0)


@pytest.mark.parametrize("macs", [10, 60, 100, 135, 160, 220, 270])
def test_it_is_the_best_of_all_combinations(macs: float) -> None:
    """With widths in steps of 16 between 16 and 64, checked against every combination."""
    chosen = allocate(DAMAGES, COSTS, HIDDEN, macs, multiple=16)
    assert sum(saved_by(each.block, each.mlp_hidden, each.keeps_attention) for each in chosen) >= macs - 1e-9
    options = list(itertools.product((16, 32, 48, 64), (True, False)))
    best = min(
        sum(harm_of(block, *option) for block, option in enumerate(combination))
        for combination in itertools.product(options, repeat=3)
        # Block 0 may not lose its attention; savings are counted in steps of 1/4096 of the target a block.
        if combination[0][1]
        and sum(saved_by(block, *option) for block, option in enumerate(combination)) >= macs * (1 + 3 / 4096)
    )
    assert sum(harm_of(each.block, each.mlp_hidden, each.keeps_attention) for each in chosen) <= best + 1e-12
    assert all(each.keeps_attention for each in chosen if each.block == 0)


def test_widths_respect_the_multiple_and_the_narrowest_measured() -> None:
    for each in allocate(DAMAGES, COSTS, HIDDEN, 200, multiple=8):
        assert each.mlp_hidden % 8 == 0
        assert each.mlp_hidden >= 16


def test_out_of_reach() -> None:
    most = (100 + 90 + 120) * 0.75 + 60 + 40
    allocate(DAMAGES, COSTS, HIDDEN, most * 0.999, multiple=16)
    with pytest.raises(OutOfReachError):
        allocate(DAMAGES, COSTS, HIDDEN, most * 1.01, multiple=16)


@pytest.mark.parametrize("first", [60.0, 135.0, 200.0])
def test_what_comes_after_a_cut_only_loses_more(first: float) -> None:
    before = {each.block: each for each in allocate(DAMAGES, COSTS, HIDDEN, first, multiple=8)}
    after = allocate(DAMAGES, COSTS, HIDDEN, 240, multiple=8, limits=before)
    assert sum(saved_by(each.block, each.mlp_hidden, each.keeps_attention) for each in after) >= 240 - 1e-9
    for each in after:
        assert each.mlp_hidden <= before[each.block].mlp_hidden
        assert before[each.block].keeps_attention or not each.keeps_attention


def test_limits_bind_where_the_best_for_more_is_not_a_further_cut() -> None:
    free = {each.block: each for each in allocate(DAMAGES, COSTS, HIDDEN, 60, multiple=8)}
    limit = Allocation(2, keeps_attention=True, mlp_hidden=32)
    assert free[2].mlp_hidden > 32
    held = {each.block: each for each in allocate(DAMAGES, COSTS, HIDDEN, 60, multiple=8, limits={2: limit})}
    assert held[2].mlp_hidden <= 32
