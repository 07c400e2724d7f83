"""Where the line between rounding and a wrong result runs."""

import math

import pytest
import torch
from torch import Tensor

from dcvit.verification.checks import Check
from dcvit.verification.parity import Expected, check_logits

LOGITS = torch.tensor([[10.0, 1.0, 0.0], [0.0, 5.0, 4.0], [0.0, 3.0, 3.001]])


def compare(answer: Tensor, precision: str, expected: Tensor = LOGITS) -> list[Check]:
    return check_logits("file", answer, reference(expected), precision)


def reference(expected: Tensor, own_noise: float = 0.05, real: bool = True) -> Expected:
    """`own_noise`: what PyTorch's bf16 is off by, as a share of the logits."""
    noise = own_noise * torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)) * expected.std()
    images = torch.zeros(len(expected), 3, 4, 4)
    return Expected(
        "real images" if real else "random input", images, expected, real, lambda: expected + noise, expected
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.2)])
def test_the_largest_error_is_compared_with_a_share_of_the_largest_logit(precision: str, tolerance: float) -> None:
    for error, passes in ((0.9 * tolerance, True), (1.1 * tolerance, False)):
        answer = LOGITS.clone()
        answer[0, 1] += error
        numbers, top1 = compare(answer, precision)
        assert numbers.passed is passes
        assert numbers.max_abs_error == pytest.approx(error, rel=1e-3)
        assert numbers.tolerance == pytest.approx(tolerance)
        assert top1.passed
        assert top1.detail == "3 of 3 agree"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_fail_on_either_side(bad: float) -> None:
    answer = LOGITS.clone()
    answer[2, 0] = bad
    for checks in (compare(answer, "fp16"), compare(LOGITS, "fp16", expected=answer)):
        (check,) = checks
        assert not check.passed
        assert check.max_abs_error is None
        assert "1 logits of" in check.detail


def test_another_winner_fails_unless_the_two_were_level() -> None:
    level = LOGITS.clone()
    level[2, 1] += 0.01  # 3.01 against 3.001, where the tolerance is 0.2
    assert [check.passed for check in compare(level, "fp16")] == [True, True]
    assert compare(level, "fp16")[1].detail == "2 of 3 agree, 1 as good as level"
    wrong = LOGITS.clone()
    wrong[1, 1], wrong[1, 2] = 4.0, 5.0
    assert [check.passed for check in compare(wrong, "fp16")] == [False, False]


@pytest.mark.parametrize(("precision", "noise", "passes"), [
    ("bf16", 0.1, True), ("bf16", 0.2, False), ("int8", 0.15, True), ("int8", 0.3, False),
])  # fmt: skip
def test_bf16_and_int8_are_judged_by_the_cosine(precision: str, noise: float, passes: bool) -> None:
    expected = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    answer = expected + noise * torch.randn(64, 10, generator=torch.Generator().manual_seed(2))
    answer = expected + (answer - expected).clamp(-0.3, 0.3)  # far from the bound on single logits, but for the noise
    numbers, top1 = compare(answer, precision, expected=expected)
    assert numbers.passed is passes
    assert "cosine 0.9" in numbers.detail
    assert numbers.max_abs_error is not None
    assert top1.passed


@pytest.mark.parametrize(("own_noise", "noise", "passes"), [
    (0.01, 0.025, True), (0.01, 0.04, False), (0.001, 0.018, True), (0.001, 0.03, False), (0.2, 0.12, True),
    (0.2, 0.2, False),
])  # fmt: skip
def test_bf16_may_be_thrice_as_noisy_as_pytorch_but_not_without_limit(
    own_noise: float, noise: float, passes: bool
) -> None:
    expected = torch.randn(64, 100, generator=torch.Generator().manual_seed(1))
    answer = expected + noise * torch.randn(64, 100, generator=torch.Generator().manual_seed(2))
    (check,) = check_logits("file", answer, reference(expected, own_noise, real=False), "bf16")
    assert check.passed is passes


def test_int8_has_no_bound_on_one_logit_but_on_the_class() -> None:
    expected = torch.zeros(64, 10)
    expected[:, 3] = 10
    answer = expected.clone()
    answer[0, 3], answer[0, 4] = 0, 10  # one image of 64: the cosine hardly moves
    numbers, top1 = compare(answer, "int8", expected=expected)
    assert numbers.passed
    assert numbers.tolerance is None
    assert not top1.passed
    assert top1.detail == "63 of 64 agree"


def test_noise_is_no_measure_for_int8() -> None:
    expected = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    answer = expected + 0.5 * torch.randn(64, 10, generator=torch.Generator().manual_seed(2))
    (check,) = check_logits("file", answer, reference(expected, real=False), "int8")
    assert check.passed
    (check,) = check_logits("file", -answer, reference(expected, real=False), "int8")
    assert not check.passed
