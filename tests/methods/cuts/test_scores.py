"""What damage is of: the logits of a classifier, the centred features of a model without a head."""

import pytest
import torch

from dcvit.methods.cuts.choices import least_head_dim
from dcvit.methods.cuts.scores import feature_error, score_of
from dcvit.plan import CompressionPlan, HeadPlan


def test_a_feature_error_is_a_share_of_what_tells_images_apart() -> None:
    features = torch.randn(50, 12)
    assert feature_error(features, features) == 0
    assert feature_error(features.mean(0).expand(50, -1), features) == pytest.approx(1)
    # What all images have in common counts for nothing; a softmax would see little else.
    error = 0.1 * torch.randn(50, 12)
    far = features + 100 * torch.randn(12)
    assert feature_error(far + error, far) == pytest.approx(feature_error(features + error, features), rel=1e-3)
    assert feature_error(3 * (features + error), 3 * features) == pytest.approx(
        feature_error(features + error, features), rel=1e-5
    )


def test_errors_that_do_not_know_of_each_other_add_up() -> None:
    features, one, other = torch.randn(400, 32), 0.1 * torch.randn(400, 32), 0.2 * torch.randn(400, 32)
    parts = feature_error(features + one, features) + feature_error(features + other, features)
    # Their product has a mean of 0 and, over 12,800 numbers, a deviation of under 2 % of the sum.
    assert feature_error(features + one + other, features) == pytest.approx(parts, rel=0.08)


@pytest.mark.parametrize(("classes", "head", "name"), [(10, None, "kl"), (0, None, "feature_error"), (0, 3, "kl")])
def test_the_score_suits_the_outputs(tiny_plan: CompressionPlan, classes: int, head: int | None, name: str) -> None:
    plan = tiny_plan.replace(
        model_kwargs=tiny_plan.model_kwargs | {"num_classes": classes},
        head=None if head is None else HeadPlan(kind="linear", num_classes=head),
    )
    assert score_of(plan).name == name


@pytest.mark.parametrize(
    ("whole", "multiple", "least"), [(64, 8, 16), (64, 24, 24), (16, 8, 16), (24, 8, 16), (8, 4, 8)]
)
def test_wide_heads_keep_what_fused_kernels_need(whole: int, multiple: int, least: int) -> None:
    assert least_head_dim(whole, multiple) == least
