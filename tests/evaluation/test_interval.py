"""Intervals of accuracies, against published values and by simulation."""

import numpy as np
import pytest

from dcvit.evaluation.interval import packed, paired_interval, share_interval, unpacked


def test_wilsons_interval_has_its_published_values() -> None:
    # 8 of 10: 0.4902 to 0.9433; 0 of 10: 0 to 0.2775 (Brown, Cai and DasGupta 2001)
    assert share_interval(8, 10) == pytest.approx((49.02, 94.33), abs=0.01)
    assert share_interval(0, 10) == pytest.approx((0.0, 27.75), abs=0.01)
    assert share_interval(10, 10)[1] == pytest.approx(100.0)


def test_a_paired_interval_rests_on_the_images_that_changed() -> None:
    before = np.ones(500, dtype=bool)
    after = before.copy()
    before[:5] = False  # 5 gained
    after[5:8] = False  # 3 lost
    low, high = paired_interval(before, after)
    assert (low + high) / 2 == pytest.approx(0.3984, abs=1e-3)
    assert (high - low) / 2 == pytest.approx(1.1708, abs=1e-3)
    alone = share_interval(int(after.sum()), 500)
    assert high - low > 0
    same = paired_interval(after, after)
    assert same[1] - same[0] < alone[1] - alone[0]


def test_it_holds_the_truth_95_times_in_100() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(1000):
        before = generator.random(400) < 0.8
        after = np.where(generator.random(400) < 0.1, generator.random(400) < 0.6, before)
        low, high = paired_interval(before, after)
        held += low <= -2.0 <= high  # a tenth is drawn anew, and falls from 80 to 60 %
    assert 930 <= held <= 975


def test_which_images_are_right_comes_back_from_its_text() -> None:
    right = np.random.default_rng(0).random(77) < 0.5
    assert (unpacked(packed(right), 77) == right).all()
    with pytest.raises(ValueError, match="80 images, and not 500"):
        unpacked(packed(right), 500)
    with pytest.raises(ValueError, match="."):
        unpacked("?", 77)
