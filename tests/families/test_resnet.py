"""ResNets: nothing cut = equal output, and removed blocks are exactly skipped."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.families.base import CostModules
from dcvit.model import build, create, identify
from dcvit.plan import BlockPlan, CompressionPlan, MacsConvention, parse_merges

Reweight = Callable[[nn.Module], nn.Module]

SMALL: dict[str, Any] = {
    "num_classes": 7, "channels": [16, 32, 48, 64], "pretrained_cfg_overlay": {"input_size": [3, 64, 64]},
}  # fmt: skip
# Basic and bottleneck blocks; deep stem and average-pooled shortcuts; groups and channel attention; anti-aliasing;
# a stem of convolutions alone.
NAMES = ["resnet18", "resnet26", "resnet26d", "seresnext26t_32x4d", "resnetblur18", "resnetrs50"]


def plan_of(name: str) -> CompressionPlan:
    return CompressionPlan(model=name, model_kwargs=SMALL)


PLAN = plan_of("resnet26")
REMOVED = (BlockPlan(index=3, removed="block"), BlockPlan(index=7, removed="block"))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def by_hand(model: nn.Module, images: Tensor, removed: set[int]) -> Tensor:
    """Runs the model's parts one after the other, without some blocks."""
    x, index = model.maxpool(model.act1(model.bn1(model.conv1(images)))), 0
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            x = x if index in removed else block(x)
            index += 1
    return model.fc(model.global_pool(x))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_identity_gives_equal_outputs(name: str, images: Tensor, like_trained: Reweight) -> None:
    model = like_trained(create(name, SMALL))
    assert torch.equal(family_of(model).cut(model, plan_of(name))(images), model(images))
    rebuilt = build(plan_of(name))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_every_unit_can_be_removed(name: str, images: Tensor, like_trained: Reweight, through_folder: Callable) -> None:
    model = like_trained(create(name, SMALL))
    family = family_of(model)
    removed = {index for unit in family.units(model) for index in unit}
    plan = plan_of(name).with_blocks(*(BlockPlan(index=index, removed="block") for index in removed))
    student = family.cut(model, plan)
    assert torch.equal(student(images), by_hand(model, images, removed))
    assert not torch.allclose(student(images), model(images))
    assert set(student.state_dict()) < set(model.state_dict())
    assert torch.equal(through_folder(student, plan)(images), student(images))


@torch.no_grad()
def test_blocks_may_go_one_after_the_other(images: Tensor, like_trained: Reweight) -> None:
    """The recovery cuts a model that was cut before."""
    model = like_trained(create("resnet26", SMALL))
    family = family_of(model)
    student = family.cut(model, PLAN.with_blocks(REMOVED[0]))
    family.apply(student, PLAN.with_blocks(REMOVED[1]))
    assert torch.equal(student(images), by_hand(model, images, {3, 7}))


@pytest.mark.parametrize("convention", ["full", "dcvit"])
def test_removed_blocks_save_the_macs_of_their_modules(convention: MacsConvention) -> None:
    model = create("resnet26", SMALL)
    family = family_of(model)
    before = count_macs(model, (3, 64, 64), convention)
    after = count_macs(build(PLAN.with_blocks(*REMOVED), device="meta"), (3, 64, 64), convention)
    modules = [family.cost_modules(model, index) for index in (3, 7)]
    assert modules == [CostModules(("layer2.1",)), CostModules(("layer4.1",))]
    saved = sum(before.under(module.removed) for module in modules)
    assert 0 < saved == before.total - after.total


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(3, 64, 64), (3, 72, 40)])
def test_architecture_and_tokens_are_those_of_the_forward_pass(name: str, size: tuple[int, int, int]) -> None:
    kwargs = SMALL | {"pretrained_cfg_overlay": {"input_size": list(size)}}
    model = create(name, kwargs)
    family = family_of(model)
    architecture = family.architecture(model)
    seen: list[torch.Size] = []
    for index in range(architecture.depth):
        family.block(model, index).register_forward_hook(lambda _block, _inputs, output: seen.append(output.shape))
    model(torch.randn(1, *size))
    assert len(seen) == sum(len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4))
    assert architecture.input_size == size
    assert architecture.grid == tuple(seen[0][2:])
    assert (architecture.num_prefix_tokens, architecture.num_classes) == (0, 7)
    assert [block.embed_dim for block in architecture.blocks] == [shape[1] for shape in seen]
    assert {(block.num_heads, block.head_dim, block.mlp_hidden) for block in architecture.blocks} == {(0, 0, 0)}
    plan = CompressionPlan(model=name, model_kwargs=kwargs)
    assert family.tokens(model, plan) == [shape[2] * shape[3] for shape in seen]


def test_input_channels_are_those_of_the_stem() -> None:
    for name in ("resnet18", "resnet26d"):
        model = create(name, SMALL | {"in_chans": 1})
        assert family_of(model).architecture(model).input_size == (1, 64, 64)


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("resnet18", [(1,), (3,), (5,), (7,)]),
        ("resnet50", [(1,), (2,), (4,), (5,), (6,), (8,), (9,), (10,), (11,), (12,), (14,), (15,)]),
    ],
)
def test_units_are_all_blocks_but_the_first_of_a_stage(name: str, units: list[tuple[int, ...]]) -> None:
    model = build(CompressionPlan(model=name), device="meta")
    assert family_of(model).units(model) == units


@torch.no_grad()
def test_features_are_the_last_map_and_logits_the_model_s(images: Tensor, like_trained: Reweight) -> None:
    model = like_trained(create("resnet26", SMALL))
    family = family_of(model)
    features, logits = family.features_and_logits(model, images)
    assert features.shape == (2, 4, 256)
    assert torch.equal(logits, model(images))
    assert torch.equal(features[:, 1], model.forward_features(images)[:, :, 0, 1])
    assert family.merge_tokens(model, PLAN, features) is features


@pytest.mark.parametrize(
    ("last_block", "frozen"),
    [
        (3, {"layer3.", "layer4.", "fc."}),
        (4, {"layer3.1.", "layer4.", "fc."}),
        (7, {"fc."}),
    ],
)
def test_train_up_to_freezes_what_comes_after(last_block: int, frozen: set[str], images: Tensor) -> None:
    family = family_of(create("resnet26", SMALL))
    model = build(PLAN.with_blocks(REMOVED[0]))
    family.train_up_to(model, 0)  # an earlier choice leaves nothing behind
    family.train_up_to(model, last_block)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(frozen))), name
    family.features_and_logits(model, images)[0].square().mean().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merges": parse_merges("horizontal@2")[0]}, "--merge: resnet26: merging needs .* a ResNet has none"),
        ({"blocks": (BlockPlan(index=1, removed="attention"),)}, "block 1 of resnet26: a ResNet has no attention;"),
        ({"blocks": (BlockPlan(index=1, mlp_hidden=8),)}, "block 1 of resnet26: a ResNet has no MLPs"),
        ({"blocks": (BlockPlan(index=1, head_dim=8),)}, "block 1 of resnet26: a ResNet has no attention heads"),
        ({"blocks": (BlockPlan(index=4, removed="block"),)}, "block 4 of resnet26 is the first of its stage"),
        ({"blocks": (BlockPlan(index=8, removed="block"),)}, "has no block 8; its 8 blocks"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(PLAN.replace(**changes), device="meta")


def test_other_blocks_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="ResNet with blocks of type ResNestBottleneck is not supported"):
        build(CompressionPlan(model="resnest26d"), device="meta")
    with pytest.raises(InputError, match="ResNetV2 is not supported; supported: .*not resnetv2_"):
        build(CompressionPlan(model="resnetv2_50"), device="meta")


@torch.no_grad()
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_classes": 7, "global_pool": "max"},
        {"drop_path_rate": 0.2, "drop_block_rate": 0.1, "drop_rate": 0.1},  # say nothing about evaluation
        {"pretrained_cfg_overlay": {"input_size": [3, 64, 64]}},
    ],
)
def test_identify_finds_the_arguments_of_a_model_in_memory(kwargs: dict, like_trained: Reweight) -> None:
    model = like_trained(timm.create_model("resnet18", **kwargs))
    name, found = identify(model)
    plan = CompressionPlan.from_json(CompressionPlan(model=name, model_kwargs=found).to_json())
    rebuilt = build(plan)
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(rebuilt(images), model(images))
    family = family_of(model)
    assert family.architecture(rebuilt) == family.architecture(model)


@pytest.mark.parametrize("kwargs", [{"act_layer": "silu"}, {"output_stride": 16}, {"channels": [16, 32, 48, 64]}])
def test_identify_refuses_what_it_cannot_tell(kwargs: dict) -> None:
    """Activation and stride leave names and shapes as they are; a model rebuilt without them would be a wrong one."""
    model = timm.create_model("resnet18", **kwargs)
    with pytest.raises(InputError, match=r"arguments that resnet18 was created with cannot be told .* model_kwargs"):
        identify(model)
