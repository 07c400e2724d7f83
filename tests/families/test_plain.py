"""EVA, DINOv3, BEiT and CaiT, and gated MLPs: nothing cut = equal output, and each cut does what the plan says.

`test_vit.py` has the same for Vision Transformers, and what only they can do.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.layers import hidden_width
from dcvit.methods.few_shot.settings import PractiseSettings
from dcvit.model import build, create, identify
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges

Reweight = Callable[[nn.Module], nn.Module]

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
CASES = {
    "rotary, packed gates": ("eva02_tiny_patch14_224", SMALL),
    "rotary, registers": ("vit_small_patch16_dinov3", SMALL),
    "rotary, separate gates": ("vit_small_plus_patch16_dinov3", SMALL),
    "rotary, another attention": ("vit_base_patch16_rope_reg1_gap_256", SMALL),
    "no LayerScale, no rotary": ("eva_giant_patch14_224", SMALL | {"mlp_ratio": 4.0}),
    "position biases": ("beit_base_patch16_224", SMALL),
    "shared position biases": (
        "beit_base_patch16_224",
        SMALL | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "class attention": ("cait_xxs24_224", SMALL),
    "ViT, packed gates": ("vit_giant_patch14_dinov2", SMALL | {"mlp_ratio": 2.66667 * 2}),
}  # fmt: skip


@pytest.fixture(params=CASES)
def plan(request: pytest.FixtureRequest) -> CompressionPlan:
    name, kwargs = CASES[request.param]
    return CompressionPlan(model=name, model_kwargs=kwargs)


@pytest.fixture
def model(plan: CompressionPlan, like_trained: Reweight) -> nn.Module:
    return like_trained(create(plan.model, plan.model_kwargs))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 48, 48)


@torch.no_grad()
def test_identity_gives_equal_outputs(plan: CompressionPlan, model: nn.Module, images: Tensor) -> None:
    assert torch.equal(family_of(model).cut(model, plan)(images), model(images))
    rebuilt = build(plan)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images), model(images))


@torch.no_grad()
def test_a_cut_block_computes_with_what_it_keeps(plan: CompressionPlan, model: nn.Module, images: Tensor) -> None:
    """Zeroing the way out of what goes is the same sum with zeros in it, up to fp32 rounding."""
    family = family_of(model)
    hidden = hidden_width(model.blocks[1].mlp)
    kept = torch.randperm(hidden)[:24].sort().values
    cut = plan.with_blocks(BlockPlan(index=1, removed="attention", mlp_hidden=24))
    student = family.cut(model, cut, {1: kept})
    gone = copy.deepcopy(model)
    gone.blocks[1].mlp.fc2.weight[:, [node for node in range(hidden) if node not in kept]] = 0
    gone.blocks[1].attn.proj.weight.zero_()
    gone.blocks[1].attn.proj.bias.zero_()
    torch.testing.assert_close(student(images), gone(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(student(images), model(images), rtol=1e-3)
    rebuilt = build(cut)
    rebuilt.load_state_dict(student.state_dict())
    assert torch.equal(rebuilt(images), student(images))


@torch.no_grad()
def test_removing_a_block_skips_it(plan: CompressionPlan, model: nn.Module, images: Tensor) -> None:
    student = family_of(model).cut(model, plan.with_blocks(BlockPlan(index=1, removed="block")))
    skipped = copy.deepcopy(model)
    skipped.blocks[1].forward = lambda x, **_: x
    assert torch.equal(student(images), skipped(images))


def test_what_is_said_of_the_model_is_so(plan: CompressionPlan, model: nn.Module, images: Tensor) -> None:
    family = family_of(model)
    architecture = family.architecture(model)
    seen: list[tuple[tuple[Tensor, ...], dict]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _block, *given: seen.append(given), with_kwargs=True)
    features, logits = family.features_and_logits(model, images)
    assert torch.equal(logits, model(images))
    # Every token is normalised: its mean is that of the norm's bias to rounding, whatever the scale of the block's.
    assert features.shape[:2] == (2, 9 + model.num_prefix_tokens)
    assert [inputs[0].shape[1] for inputs, _ in seen[:3]] == family.tokens(model, plan)
    assert (architecture.input_size, architecture.grid) == ((3, 48, 48), (3, 3))
    # A block alone computes what it does in the model.
    (tokens,), given = seen[1]
    alone = model.blocks[1].forward(tokens, **family.block_arguments(model))
    assert torch.equal(alone, model.blocks[1].forward(tokens, **given))
    # What a cut saves is what the modules cost.
    size = architecture.input_size
    count = count_macs(build(plan, device="meta"), size)
    cost = family.cost_modules(model, 1)
    entry = BlockPlan(index=1, removed="attention", mlp_hidden=hidden_width(model.blocks[1].mlp) // 2)
    after = count_macs(build(plan.with_blocks(entry), device="meta"), size).total
    saved = sum(count.under((name,)) for name in cost.removed) + count.under(cost.narrowed) / 2
    assert count.total - after == saved > 0


def test_train_up_to_freezes_what_comes_after(plan: CompressionPlan, model: nn.Module, images: Tensor) -> None:
    family = family_of(model)
    family.train_up_to(model, 1)
    frozen = ("blocks.2.", "head.", "blocks_token_only.")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(frozen)), name


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit_small_patch16_dinov3", {"merges": parse_merges("horizontal@1")[0]}, "here they are in attention"),
        ("vit_small_patch16_dinov3", {"blocks": (BlockPlan(index=1, head_dim=8),)}, "rotary embedding is made for"),
        ("beit_base_patch16_224", {"merges": parse_merges("horizontal@1")[0]}, "here they are in attention"),
        ("beit_base_patch16_224", {"blocks": (BlockPlan(index=1, head_dim=8),)}, "heads of a BEiT model keep"),
        ("cait_xxs24_224", {"merges": parse_merges("horizontal@1")[0]}, "carry the class token along"),
        ("cait_xxs24_224", {"blocks": (BlockPlan(index=1, head_dim=8),)}, "they talk to each other"),
        ("eva02_base_patch14_224", {}, "Eva with a norm inside the MLP is not supported"),
        ("vit_small_patch16_rope_mixed_224", {}, "rotary embeddings that differ from block to block"),
    ],
)
def test_what_cannot_be_is_refused_in_words(name: str, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(CompressionPlan(model=name, model_kwargs=SMALL).replace(**changes), device="meta")


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "beit_base_patch16_224", "cait_xxs24_224"])
def test_identify_finds_the_arguments_of_a_model_in_memory(name: str, like_trained: Reweight, images: Tensor) -> None:
    model = like_trained(create(name, SMALL))
    found, kwargs = identify(model)
    rebuilt = create(found, kwargs)
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images), model(images))


def test_practise_has_no_place_for_its_adaptors(tmp_path: Path) -> None:
    """Some of these attentions use the weights of qkv without calling the layer, where an adaptor would do nothing."""
    settings = PractiseSettings(steps=1, trial_steps=1)
    with pytest.raises(InputError, match="adaptors in a eva; use --method dcvit"):
        compress(
            "vit_small_patch16_dinov3",
            "digits",
            out=tmp_path / "out",
            macs_reduction=0.2,
            settings=settings,
            samples=8,
            model_kwargs=SMALL,
            weights="random",
        )
    assert not (tmp_path / "out").exists()
