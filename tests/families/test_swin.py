"""Swin Transformers: nothing cut = equal output, and each cut does exactly what the plan says."""

from collections.abc import Callable

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

NAME = "swin_tiny_patch4_window7_224"
# Grids of 16, 8, 4 and 2 tokens a side: shifted windows, windows as large as the grid, and windows cut to it.
SMALL = {
    "img_size": 64, "embed_dim": 24, "depths": [2, 2, 4, 2], "num_heads": [1, 2, 2, 2], "window_size": 4,
    "num_classes": 7,
}  # fmt: skip
PLAN = CompressionPlan(model=NAME, model_kwargs=SMALL)
PAIR = (BlockPlan(index=6, removed="block"), BlockPlan(index=7, removed="block"))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def model(like_trained: Reweight) -> nn.Module:
    return like_trained(create(NAME, SMALL))


def by_hand(model: nn.Module, images: Tensor, removed: set[int]) -> Tensor:
    """Runs the model's parts one after the other, without some blocks."""
    x, index = model.patch_embed(images), 0
    for stage in model.layers:
        x = stage.downsample(x)
        for block in stage.blocks:
            x = x if index in removed else block(x)
            index += 1
    return model.head(model.norm(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "kwargs",
    [
        SMALL,
        SMALL | {"window_size": 7},  # padded windows
        SMALL | {"img_size": 72},  # padded downsampling: grids of 18, 9, 5 and 3
        SMALL | {"img_size": [32, 64], "always_partition": True},
        SMALL | {"global_pool": "max"},
    ],
)
def test_identity_gives_equal_outputs(kwargs: dict, like_trained: Reweight) -> None:
    plan = CompressionPlan(model=NAME, model_kwargs=kwargs)
    model = like_trained(create(NAME, kwargs))
    family = family_of(model)
    images = torch.randn(2, *family.architecture(model).input_size)
    assert torch.equal(family.cut(model, plan)(images), model(images))
    rebuilt = build(plan)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images), model(images))


@torch.no_grad()
def test_a_removed_pair_is_skipped_and_the_rest_keeps_its_names(
    model: nn.Module, images: Tensor, through_folder: Callable
) -> None:
    plan = PLAN.with_blocks(*PAIR)
    student = family_of(model).cut(model, plan)
    assert torch.equal(student(images), by_hand(model, images, {6, 7}))
    assert not torch.allclose(student(images), model(images))
    gone = ("layers.2.blocks.2.", "layers.2.blocks.3.")
    assert list(student.state_dict()) == [key for key in model.state_dict() if not key.startswith(gone)]
    assert torch.equal(through_folder(student, plan)(images), student(images))


@torch.no_grad()
def test_pairs_may_go_one_after_the_other(model: nn.Module, images: Tensor) -> None:
    """The recovery cuts a model that was cut before."""
    family = family_of(model)
    student = family.cut(model, PLAN.with_blocks(*PAIR))
    family.apply(student, PLAN.with_blocks(BlockPlan(index=3, removed="block")))
    assert torch.equal(student(images), by_hand(model, images, {3, 6, 7}))


@torch.no_grad()
def test_a_narrow_mlp_computes_with_the_nodes_it_keeps(model: nn.Module, images: Tensor) -> None:
    family = family_of(model)
    mlp = family.block(model, 3).mlp
    assert mlp is model.layers[1].blocks[1].mlp
    kept = torch.randperm(192)[:40].sort().values
    plan = PLAN.with_blocks(BlockPlan(index=3, mlp_hidden=40))
    student = family.cut(model, plan, {3: kept})
    # Zeroing the other nodes' way out is the same sum with zeros in it, up to fp32 rounding.
    mlp.fc2.weight[:, [node for node in range(192) if node not in kept]] = 0
    torch.testing.assert_close(student(images), model(images), rtol=1e-4, atol=1e-5)
    rebuilt = build(plan)
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(images), student(images))


@pytest.mark.parametrize("convention", ["full", "dcvit"])
def test_removed_blocks_save_the_macs_of_their_modules(model: nn.Module, convention: MacsConvention) -> None:
    family = family_of(model)
    before = count_macs(model, (3, 64, 64), convention)
    after = count_macs(build(PLAN.with_blocks(*PAIR), device="meta"), (3, 64, 64), convention)
    modules = [family.cost_modules(model, index) for index in (6, 7)]
    assert modules == [CostModules(("layers.2.blocks.2",)), CostModules(("layers.2.blocks.3",))]
    saved = sum(before.under(module.removed) for module in modules)
    assert 0 < saved == before.total - after.total


def test_architecture_and_tokens_are_those_of_the_forward_pass(like_trained: Reweight) -> None:
    kwargs = SMALL | {"img_size": [72, 64]}
    model = create(NAME, kwargs)
    family = family_of(model)
    seen: list[torch.Size] = []
    for index in range(10):
        family.block(model, index).register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].shape))
    model(torch.randn(1, 3, 72, 64))
    architecture = family.architecture(model)
    assert (architecture.input_size, architecture.grid) == ((3, 72, 64), (18, 16))
    assert (architecture.num_prefix_tokens, architecture.num_classes) == (0, 7)
    assert [block.embed_dim for block in architecture.blocks] == [shape[3] for shape in seen]
    assert [block.mlp_hidden for block in architecture.blocks] == [4 * shape[3] for shape in seen]
    assert [(block.num_heads, block.head_dim) for block in architecture.blocks[2:4]] == [(2, 24)] * 2
    plan = CompressionPlan(model=NAME, model_kwargs=kwargs)
    assert family.tokens(model, plan) == [shape[1] * shape[2] for shape in seen]


@pytest.mark.parametrize(
    ("depths", "units"),
    [
        ([2, 2, 4, 2], [(6, 7)]),
        ([2, 4, 6, 4], [(4, 5), (8, 9), (10, 11)]),  # 14 and 15 are a pair, but 15 is the last block
        ([2, 2, 5, 2], [(6, 7)]),  # block 8 has no partner
        ([4, 2, 2, 2], [(2, 3)]),
    ],
)
def test_units_are_the_pairs_behind_the_first_of_a_stage(depths: list[int], units: list[tuple[int, ...]]) -> None:
    model = create(NAME, SMALL | {"depths": depths})
    assert family_of(model).units(model) == units


@torch.no_grad()
def test_features_are_the_normed_tokens_and_logits_the_model_s(model: nn.Module, images: Tensor) -> None:
    family = family_of(model)
    features, logits = family.features_and_logits(model, images)
    assert features.shape == (2, 4, 192)
    assert torch.equal(logits, model(images))
    # The head pools these tokens by their mean; the order of the sum differs.
    torch.testing.assert_close(model.head.fc(features.mean(1)), logits, rtol=1e-4, atol=1e-5)
    assert family.merge_tokens(model, PLAN, features) is features


@pytest.mark.parametrize(
    ("last_block", "frozen"),
    [
        (3, {"layers.2.", "layers.3.", "head."}),  # the downsampling of a later stage goes with it
        (4, {"layers.2.blocks.1.", "layers.3.", "head."}),
        (9, {"head."}),
    ],
)
def test_train_up_to_freezes_what_comes_after(last_block: int, frozen: set[str], images: Tensor) -> None:
    family = family_of(create(NAME, SMALL))
    model = build(PLAN.with_blocks(*PAIR))
    family.train_up_to(model, 0)  # an earlier choice leaves nothing behind
    family.train_up_to(model, last_block)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(tuple(frozen))), name
    family.features_and_logits(model, images)[0].square().mean().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merges": parse_merges("horizontal@2")[0]}, "--merge: swin_tiny.*: merging needs a plain token grid"),
        ({"blocks": (BlockPlan(index=1, removed="attention", mlp_hidden=8),)}, "block 1 of swin_tiny.* in pairs"),
        ({"blocks": (BlockPlan(index=1, head_dim=8),)}, "heads of a Swin Transformer keep their width"),
        ({"blocks": (BlockPlan(index=1, mlp_hidden=97),)}, "has mlp_hidden 96; 97 is more"),
        ({"blocks": (BlockPlan(index=10, removed="block"),)}, "has no block 10; its 10 blocks"),
    ],
)
def test_plans_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(PLAN.replace(**changes), device="meta")


def test_relatives_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="SwinTransformerV2Cr is not supported; supported: .*swin_"):
        build(CompressionPlan(model="swinv2_cr_tiny_224"), device="meta")
    with pytest.raises(InputError, match=r"masks made for each input \(dynamic_img_size\) is not supported"):
        build(PLAN.replace(model_kwargs=SMALL | {"dynamic_img_size": True}), device="meta")


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_size": [64, 32], "in_chans": 1, "global_pool": "max"},
        {"always_partition": True, "mlp_ratio": 2.0},
        {"img_size": 16},  # windows are cut to the grid in every stage
        {"window_size": [4, 2]},
        {"drop_path_rate": 0.3},  # says nothing about evaluation
    ],
)
def test_identify_finds_the_arguments_of_a_model_in_memory(changes: dict, like_trained: Reweight) -> None:
    model = like_trained(timm.create_model(NAME, **SMALL | changes))
    name, kwargs = identify(model)
    plan = CompressionPlan.from_json(CompressionPlan(model=name, model_kwargs=kwargs).to_json())
    rebuilt = build(plan)
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(1, *family_of(model).architecture(model).input_size)
    assert torch.equal(rebuilt(images), model(images))


def test_identify_refuses_what_it_cannot_tell() -> None:
    model = timm.create_model(NAME, **SMALL, qkv_bias=False)
    with pytest.raises(InputError, match="arguments that swin_tiny.* cannot be told .* pass model_kwargs"):
        identify(model)
    cut = build(PLAN.with_blocks(BlockPlan(index=0, removed="block")))
    with pytest.raises(InputError, match="cannot be told"):
        identify(cut)
