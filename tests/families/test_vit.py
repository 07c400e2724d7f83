"""Every kind of VisionTransformer: nothing cut = equal output, and each cut does exactly what the plan says."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.layers import AttentionFreeBlock
from dcvit.model import build, create, identify
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 7}
# One of each: class token, distillation token, LayerScale and no position on the class token, average pooling without
# a class token, registers, attention pooling, pre-norm with QuickGELU, query-key norm.
ARCHITECTURES = {
    "vit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "vit_base_patch16_gap_224": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_base_patch32_clip_quickgelu_224": SMALL,
    "vit_medium_patch16_gap_240": SMALL,
    "flexivit_small": SMALL,
}
PLAIN = list(ARCHITECTURES)


@pytest.fixture(params=PLAIN)
def plan(request: pytest.FixtureRequest) -> CompressionPlan:
    return CompressionPlan(model=request.param, model_kwargs=ARCHITECTURES[request.param])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 48, 48)


def trained_like(model: nn.Module) -> nn.Module:
    """Weights as if trained: timm starts biases at 0 and scales at 1, which would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_identity_gives_equal_outputs(plan: CompressionPlan, images: Tensor) -> None:
    model = trained_like(create(plan.model, plan.model_kwargs))
    student = family_of(model).cut(model, plan)
    assert torch.equal(student(images), model(images))
    rebuilt = build(plan)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images), model(images))


@torch.no_grad()
def test_attention_free_blocks_follow_the_formula(plan: CompressionPlan, images: Tensor) -> None:
    model = trained_like(create(plan.model, plan.model_kwargs))
    family = family_of(model)
    hidden = model.blocks[1].mlp.fc1.out_features
    kept = torch.randperm(hidden)[:40].sort().values
    entry = BlockPlan(index=1, removed="attention", mlp_hidden=40)
    student = family.cut(model, plan.with_blocks(entry), {1: kept})
    assert isinstance(student.blocks[1], AttentionFreeBlock)

    block, mlp = model.blocks[1], model.blocks[1].mlp
    x = torch.randn(2, 9 + model.num_prefix_tokens, 48)
    activation = mlp.act(block.norm2(x) @ mlp.fc1.weight[kept].T + mlp.fc1.bias[kept])
    by_hand = x + block.ls2(activation @ mlp.fc2.weight[:, kept].T + mlp.fc2.bias)
    torch.testing.assert_close(student.blocks[1](x), by_hand)
    # The plan rebuilds the shapes that these weights fit.
    rebuilt = build(plan.with_blocks(entry))
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(images), student(images))


@torch.no_grad()
def test_removing_a_block_skips_it(plan: CompressionPlan, images: Tensor) -> None:
    model = trained_like(create(plan.model, plan.model_kwargs))
    student = family_of(model).cut(model, plan.with_blocks(BlockPlan(index=2, removed="block")))
    skipped = copy.deepcopy(model)
    skipped.blocks[2].forward = lambda x, **_: x
    assert torch.equal(student(images), skipped(images))


@torch.no_grad()
def test_narrow_heads_are_exact_where_the_rest_is_zero(images: Tensor) -> None:
    """With q, k and v zero beyond d' channels nothing is lost, so the outputs agree to float64 rounding."""
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=SMALL)
    model = trained_like(create(plan.model, plan.model_kwargs)).double()
    attention = model.blocks[1].attn
    qkv = attention.qkv.weight.view(3, 3, 16, 48)
    qkv[:, :, 8:] = 0
    attention.qkv.bias.view(3, 3, 16)[:, :, 8:] = 0
    student = family_of(model).cut(model, plan.with_blocks(BlockPlan(index=1, head_dim=8)))
    assert student.blocks[1].attn.qkv.weight.shape == (3 * 3 * 8, 48)
    # float64 sums of 48 terms: rounding is around 1e-15.
    assert (student(images.double()) - model(images.double())).abs().max() < 1e-12


@torch.no_grad()
def test_merges_stand_after_their_block_and_keep_the_prefix(plan: CompressionPlan, images: Tensor) -> None:
    merges, _ = parse_merges("horizontal@1,vertical@3")
    merged = plan.replace(merges=merges)
    model = create(plan.model, plan.model_kwargs)
    family = family_of(model)
    prefix = model.num_prefix_tokens
    assert family.tokens(model, merged) == [prefix + 9, prefix + 6, prefix + 6, prefix + 4]
    student = family.cut(model, merged)
    seen: list[Tensor] = []
    for block in student.blocks:
        block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0]))
    original = model.blocks[0](_embedded(model, images))
    student(images)
    assert [len(x[0]) for x in seen] == family.tokens(model, merged)
    # 3 columns: the first two are averaged, the third merges with itself; prefix tokens pass.
    grid = original[:, prefix:].unflatten(1, (3, 3))
    by_hand = torch.stack([(grid[:, :, 0] + grid[:, :, 1]) / 2, grid[:, :, 2]], dim=2).flatten(1, 2)
    torch.testing.assert_close(seen[1], torch.cat([original[:, :prefix], by_hand], dim=1))


def _embedded(model: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0]))
    model(images)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_linear_merging_starts_as_the_mean(plan: CompressionPlan, images: Tensor) -> None:
    model = create(plan.model, plan.model_kwargs)
    family = family_of(model)
    mean, linear = (
        family.cut(model, plan.replace(merges=parse_merges("vertical@2")[0], merge_operator=operator))
        for operator in ("mean", "linear")
    )
    # A product with ½I and a mean differ by fp32 rounding alone.
    torch.testing.assert_close(linear(images), mean(images), rtol=1e-4, atol=1e-5)
    assert "blocks.1.merge.weight" in linear.state_dict()


@torch.no_grad()
def test_size_aware_attention_is_exact_for_equal_neighbours() -> None:
    """If the tokens of each pair are equal, merging them changes nothing once attention knows the sizes."""
    kwargs = SMALL | {"img_size": 64}
    plan = CompressionPlan(
        model="vit_tiny_patch16_224", model_kwargs=kwargs, merges=parse_merges("horizontal@1")[0],
        size_aware_attention=True,
    )  # fmt: skip
    model = trained_like(create(plan.model, kwargs)).double()
    # Equal patches at equal positions stay equal tokens: repeat both along the width.
    model.pos_embed[:, 1:] = (
        model.pos_embed[:, 1:].unflatten(1, (4, 4))[:, :, ::2].repeat_interleave(2, 2).flatten(1, 2)
    )
    patches = torch.randn(2, 3, 4, 16, 2, 16, dtype=torch.float64)
    images = patches.repeat_interleave(2, dim=4).reshape(2, 3, 64, 64)
    aware = family_of(model).cut(model, plan)
    unaware = family_of(model).cut(model, plan.replace(size_aware_attention=False))
    expected = model(images)
    assert (aware(images) - expected).abs().max() < 1e-5  # log s is kept in fp32
    assert (unaware(images) - expected).abs().max() > 1e-3


def test_several_merges_at_one_block(tiny_plan: CompressionPlan) -> None:
    plan = tiny_plan.replace(merges=parse_merges("horizontal@2,vertical@2,linear")[0], merge_operator="linear")
    model = build(plan)
    assert family_of(model).tokens(build(tiny_plan), plan) == [17, 17, 5, 5]
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert {"blocks.1.merge.weight", "blocks.1.merge2.weight"} <= set(model.state_dict())


def test_train_up_to_freezes_what_comes_after(tiny_plan: CompressionPlan) -> None:
    model = build(tiny_plan)
    family_of(model).train_up_to(model, 2)
    frozen = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad
    }
    assert frozen == {"blocks.3", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (BlockPlan(index=4, removed="attention"),)}, "has no block 4; its 4 blocks are numbered 0 to 3"),
        ({"blocks": (BlockPlan(index=1, mlp_hidden=129),)}, "block 1 .* has mlp_hidden 128; 129 is more"),
        ({"blocks": (BlockPlan(index=1, head_dim=17),)}, "has head_dim 16; 17 is more"),
        ({"merges": parse_merges("horizontal@4")[0]}, "has 4 blocks, so horizontal@4 is at no block"),
        ({"merges": parse_merges("vertical@1,vertical@1,vertical@2")[0]}, "nothing to merge"),
    ],
)
def test_plans_that_do_not_fit_are_refused(tiny_plan: CompressionPlan, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tiny_plan.replace(**changes))


def test_other_architectures_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"VisionTransformerRelPos is not supported; supported: .*deit"):
        build(CompressionPlan(model="vit_relpos_small_patch16_224"), device="meta")
    model = timm.create_model("vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.ResPostBlock)
    with pytest.raises(InputError, match="blocks of type ResPostBlock is not supported"):
        family_of(model)


@pytest.mark.parametrize("name", PLAIN)
def test_identify_finds_the_arguments_of_a_model_in_memory(name: str) -> None:
    model = timm.create_model(name, **ARCHITECTURES[name])
    found, kwargs = identify(model)
    rebuilt = create(found, kwargs)
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), model.eval()(images))
