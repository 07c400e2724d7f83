import pytest
import timm
import torch

from dcvit.cost import count_macs, count_params
from dcvit.model import build
from dcvit.plan import CompressionPlan, parse_merges


def macs(model: str, merge: str = "", convention: str = "full", **kwargs: object) -> float:
    merges, operator = parse_merges(merge)
    plan = CompressionPlan(model=model, merges=merges, merge_operator=operator, **kwargs)
    return count_macs(build(plan, device="meta"), (3, 224, 224), convention).total / 1e9


def test_the_two_conventions_on_vit_base() -> None:
    # DC-ViT's tables count 16.864 G; with QKᵀ and AV it is 17.58 G by hand, of which 0.016 G are element-wise.
    assert macs("vit_base_patch16_224", convention="dcvit") == pytest.approx(16.864, abs=0.0005)
    assert macs("vit_base_patch16_224") == pytest.approx(17.58, abs=0.02)


@pytest.mark.parametrize(
    ("merge", "expected"),
    [("", 4.60), ("horizontal@4,vertical@8", 2.66), ("horizontal@6", 3.42), ("horizontal@3,vertical@9", 2.56)],
)
def test_merging_deit_small(merge: str, expected: float) -> None:
    assert macs("deit_small_patch16_224", merge) == pytest.approx(expected, abs=0.005)


def test_linear_merging_costs_its_projections() -> None:
    schedule = "horizontal@4,vertical@8"
    projections = (98 + 49) * 2 * 192 * 192 / 1e9
    mean, linear = macs("deit_tiny_patch16_224", schedule), macs("deit_tiny_patch16_224", schedule + ",linear")
    assert linear - mean == pytest.approx(projections, rel=1e-6)
    assert linear == pytest.approx(0.731, abs=0.0005)


def test_size_aware_attention_changes_no_count() -> None:
    plain, aware = (macs("deit_tiny_patch16_224", "horizontal@4", size_aware_attention=on) for on in (False, True))
    assert plain == aware


def test_parts_add_up_and_the_model_is_left_alone() -> None:
    model = timm.create_model("deit_tiny_patch16_224", num_classes=10).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = count_macs(model, (3, 224, 224))
    tokens, width = 197, 192
    assert count.under(["blocks.0.mlp"]) == 8 * tokens * width**2
    assert count.under(["blocks.0.attn"]) == 4 * tokens * width**2 + 2 * tokens**2 * width
    parts = ["patch_embed", "head", *(f"blocks.{i}.{part}" for i in range(12) for part in ("attn", "mlp"))]
    assert count.under(parts) == count.total
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert count_params(model) == sum(tensor.numel() for tensor in before.values())
