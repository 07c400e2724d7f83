"""Segmentation models: what they compute, and that a plan is all that is needed to rebuild one."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dcvit.cost import count_macs
from dcvit.dense import DenseBackbone, SegmentationVit, attach_head
from dcvit.dense.head import head_levels
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.cuts.wanted_tokens import read_tokens
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan, HeadPlan
from dcvit.types import TimmModule

RandomModel = Callable[[CompressionPlan], TimmModule]


@pytest.mark.parametrize(
    "head",
    [
        HeadPlan(num_classes=5),
        HeadPlan(num_classes=5, unmerge="residual"),
        HeadPlan(kind="multi-level", num_classes=5, levels=(0, 3)),
        HeadPlan(kind="multi-level", num_classes=5, levels=(0, 3), unmerge="residual"),
    ],
)
def test_scores_are_those_of_the_maps_computed_by_hand(
    odd_plan: CompressionPlan, random_model: RandomModel, head: HeadPlan
) -> None:
    model, images = random_model(odd_plan.replace(head=head)), torch.randn(2, 3, 40, 56)
    maps = DenseBackbone(model, model.head.levels, norm=True, unmerge=head.unmerge)(images)
    if head.kind == "multi-level":
        maps = [F.gelu(sum(project(each) for project, each in zip(model.head.project, maps, strict=True)))]
    scores = F.interpolate(model.head.predict(maps[0]), (40, 56), mode="bilinear", align_corners=False)
    assert torch.allclose(model(images), scores, atol=1e-5)
    assert scores.shape == (2, 5, 40, 56)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_siglip_224", {}),  # pools by attention
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),  # keeps its final norm behind the pool
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}),
    ],
)
def test_every_kind_of_vit_becomes_one(odd_plan: CompressionPlan, name: str, more: dict[str, object]) -> None:
    plan = odd_plan.replace(model=name, model_kwargs=odd_plan.model_kwargs | more, head=HeadPlan(num_classes=3))
    model, images = build(plan), torch.randn(1, 3, 40, 56)
    assert isinstance(model, SegmentationVit)
    assert isinstance(model, type(create(name, plan.model_kwargs)))
    assert family_of(model).name == "vit"
    maps = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    deviation = model.fc_norm(maps[0]).std(-1)  # a layer norm has acted, once
    assert torch.allclose(deviation, torch.ones_like(deviation), atol=0.05)
    assert model(images).shape == (1, 3, 40, 56)
    names = {name for name, _ in model.named_parameters() if name.startswith(("head", "attn_pool"))}
    assert names == {"head.predict.weight", "head.predict.bias"}
    assert family_of(model).cannot_trim(model)  # its head reads every patch, whatever the classifier read
    assert read_tokens(model, family_of(model)) == 0


def test_merges_that_come_after_the_head_are_undone_too(odd_plan: CompressionPlan, random_model: RandomModel) -> None:
    plan = odd_plan.replace(head=HeadPlan(kind="multi-level", num_classes=3))
    merged = random_model(plan)
    later = random_model(plan.replace(merges=()))
    family = family_of(later)
    later = family.cut(later, plan)
    later.load_state_dict(merged.state_dict())
    images = torch.randn(1, 3, 40, 56)
    assert torch.equal(later(images), merged(images))
    cut = family.cut(random_model(plan.original()), plan.with_blocks(BlockPlan(index=2, mlp_hidden=8)))
    assert copy.deepcopy(cut)(images).shape == (1, 3, 40, 56)


def test_a_folder_rebuilds_the_model(segmentation_folder: ModelFolder, random_model: RandomModel) -> None:
    images = torch.randn(2, 3, 40, 56)
    loaded = segmentation_folder.load()
    assert torch.equal(loaded(images), random_model(segmentation_folder.plan)(images))
    assert segmentation_folder.plan.task == "segmentation"
    assert segmentation_folder.plan.original().head == segmentation_folder.plan.head
    assert loaded(images).argmax(1).unique().numel() > 1


def test_the_head_costs_what_it_should(odd_plan: CompressionPlan) -> None:
    """1×1 convolutions on 35 patches and two products that interpolate; the rest is the backbone's."""
    plan = odd_plan.original()
    size = (3, 40, 56)
    backbone = count_macs(build(plan, device="meta"), size).total - 32 * 10
    head = HeadPlan(kind="multi-level", num_classes=6, levels=(1, 3), width=16)
    found = count_macs(build(plan.replace(head=head), device="meta"), size).total
    upsampling = 6 * (5 * 7 * 56 + 40 * 5 * 56)
    assert found - backbone == 35 * (2 * 32 * 16 + 16 * 6) + upsampling


def test_default_levels_are_spread_and_end_with_the_last_block() -> None:
    head = HeadPlan(kind="multi-level", num_classes=2)
    assert head_levels(head, 12) == [2, 5, 8, 11]
    assert head_levels(head, 6) == [0, 2, 3, 5]
    assert head_levels(head, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        ("resnet18", HeadPlan(num_classes=2), "segmentation needs a Vision Transformer"),
        ("vit_tiny_patch16_224", HeadPlan(kind="multi-level", num_classes=2, levels=(3, 5)), "must be the last block"),
    ],
)
def test_what_cannot_be_is_refused(model: str, head: HeadPlan, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attach_head(create(model), head)
