"""A trimmed last block: the same logits, for fewer MACs; and models whose head reads more, by name."""

import dataclasses
from typing import Any

import pytest
import timm
import torch

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.layers import PrefixBlock
from dcvit.methods.cait.prunable import prunable_layers
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, HeadPlan, Merge
from dcvit.subject import open_subject
from dcvit.types import TimmModule

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3, "num_classes": 10}
MERGED: dict[str, Any] = {"merges": (Merge(after=1, axis="horizontal"),), "size_aware_attention": True}


def made(name: str, kwargs: dict[str, Any]) -> tuple[TimmModule, CompressionPlan]:
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL, **kwargs).eval().double()
    for parameter in model.parameters():  # so that no gate, norm or bias is neutral
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model, CompressionPlan(model=name, model_kwargs=SMALL | kwargs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changes", [{}, MERGED, {"blocks": (BlockPlan(index=2, head_dim=16, mlp_hidden=64),)}])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {"embed_dim": 192, "num_heads": 3}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "reg_tokens": 2}),
    ],
)
def test_the_logits_stay_what_they_are(name: str, kwargs: dict, changes: dict, fused: bool) -> None:
    model, plan = made(name, kwargs)
    if kwargs.get("qk_norm") and "blocks" in changes:
        pytest.skip("a norm over q and k keeps heads as wide as they are")
    family, plan = family_of(model), plan.replace(**changes)
    whole, trimmed = family.cut(model, plan), family.cut(model, plan.replace(trims_last_block=True))
    trimmed.blocks[-1].attn.fused_attn = fused
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    wanted, found = whole(images), trimmed(images)
    assert (found - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert count_macs(trimmed, (3, 32, 32)).total < count_macs(whole, (3, 32, 32)).total
    assert trimmed.forward_features(images).shape[1] == model.num_prefix_tokens


def test_it_is_as_fine_without_attention() -> None:
    model, plan = made("deit_tiny_patch16_224", {})
    family, plan = family_of(model), plan.with_blocks(BlockPlan(index=2, removed="attention"))
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    trimmed = family.cut(model, plan.replace(trims_last_block=True))
    torch.testing.assert_close(trimmed(images), family.cut(model, plan)(images), rtol=0, atol=1e-12)


def test_a_trimmed_model_is_a_subject_like_any_other() -> None:
    """Its last block can lose its attention or its MLP's nodes, and the size bias of its merges goes along."""
    model, plan = made("deit_tiny_patch16_224", {})
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    merged = cut_by_norm(open_subject(model, model_kwargs=SMALL), plan.replace(**MERGED))
    wanted = merged(images)
    family_of(model).apply(merged, plan.replace(trims_last_block=True))
    torch.testing.assert_close(merged(images), wanted, rtol=0, atol=1e-12)
    layers = prunable_layers(merged, family_of(model), plan.replace(**MERGED))
    assert [layer.kind for layer in layers if layer.block == 2] == ["mlp_hidden"]
    assert [layer.macs for layer in layers if layer.block == 2] == [2 * 192]  # one token
    family_of(model).apply(merged, plan.with_blocks(BlockPlan(index=2, removed="attention", mlp_hidden=64)))
    assert isinstance(merged.blocks[-1], PrefixBlock)
    assert merged(images).shape == (2, 10)


def test_heads_of_a_trimmed_block_are_narrowed_as_before_it_was() -> None:
    model, plan = made("deit_tiny_patch16_224", {})
    images = torch.randn(2, 3, 32, 32, dtype=torch.double)
    family, narrow = family_of(model), plan.with_blocks(BlockPlan(index=2, head_dim=8))
    trimmed = family.cut(model, plan.replace(trims_last_block=True))
    family.apply(trimmed, narrow)
    assert trimmed.blocks[-1].attn.kv.out_features == 2 * trimmed.blocks[-1].attn.q.out_features
    torch.testing.assert_close(trimmed(images), family.cut(model, narrow)(images), rtol=0, atol=1e-12)
    # The same where the strongest channels stay.
    whole, trims = open_subject(model, model_kwargs=SMALL), plan.replace(trims_last_block=True)
    cut = dataclasses.replace(whole, model=cut_by_norm(whole, trims), plan=trims)
    both = narrow.replace(trims_last_block=True)
    torch.testing.assert_close(cut_by_norm(cut, both)(images), cut_by_norm(whole, both)(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "kwargs", "changes", "message"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, {}, "its head reads the patch tokens too"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, {}, "its head reads the patch tokens too"),
        ("swin_tiny_patch4_window7_224", {}, {}, "only the last block of a plain Vision Transformer"),
        ("vit_tiny_patch16_224", {}, {"blocks": (BlockPlan(index=11, removed="block"),)}, "its last block is removed"),
    ],
)
def test_what_cannot_be_trimmed_is_named(model: str, kwargs: dict, changes: dict, message: str) -> None:
    plan = CompressionPlan(model=model, model_kwargs=kwargs, trims_last_block=True, **changes)
    with pytest.raises(InputError, match=message):
        build(plan, device="meta")


def test_a_segmentation_head_needs_every_token() -> None:
    with pytest.raises(InputError, match="reads every token"):
        CompressionPlan.from_json(
            CompressionPlan(model="vit_tiny_patch16_224", trims_last_block=True)
            .to_json()
            .replace("}", ', "head": {"num_classes": 3}}')
        )
    assert CompressionPlan(model="vit_tiny_patch16_224", head=HeadPlan(num_classes=3)).trims_last_block is False
