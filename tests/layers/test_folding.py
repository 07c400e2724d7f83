"""Every fold computes what the module computed, to the last digits of fp64."""

import copy

import pytest
import torch
from torch import nn

from dcvit.layers.adaptor import adapt_input, adapt_output
from dcvit.layers.folding import (
    PatchProduct,
    fold_attention_scale,
    fold_layer_scale,
    fold_normalisation,
    fold_patch_embedding,
)
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.preprocessing import Preprocessing

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {"img_size": 64, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 4, "num_classes": 7}
PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bicubic", crop_pct=1.0
)


def model_of(name: str, kwargs: dict[str, object], **changes: object) -> nn.Module:
    model = build(CompressionPlan(model=name, model_kwargs=kwargs).replace(**changes)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def same(one: nn.Module, other: nn.Module, images: torch.Tensor) -> bool:
    """fp64 rounds at 1e-16, and some hundred roundings follow one another."""
    with torch.no_grad():
        expected = one(images)
        return bool((other(images) - expected).abs().max() <= 1e-12 * expected.abs().max())


@pytest.mark.parametrize(
    ("name", "kwargs", "side"),
    [
        ("vit_tiny_patch16_224", SMALL, 32),
        ("vit_tiny_patch16_224", SMALL | {"patch_size": (8, 4), "img_size": (32, 24)}, (32, 24)),
        ("beit_base_patch16_224", SMALL, 32),
        ("swin_tiny_patch4_window7_224", SWIN, 64),
    ],
    ids=["square", "oblong", "beit", "channels last"],
)
def test_a_patch_embedding_is_a_matrix_product(name: str, kwargs: dict[str, object], side: int) -> None:
    model = model_of(name, kwargs)
    folded = copy.deepcopy(model)
    assert fold_patch_embedding(folded)
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    height, width = (side, side) if isinstance(side, int) else side
    assert same(model, folded, torch.randn(2, 3, height, width).double())


def test_other_convolutions_and_those_with_adaptors_stay() -> None:
    model = model_of("vit_tiny_patch16_224", SMALL)
    adapt_output(model.patch_embed.proj)
    assert not fold_patch_embedding(model)
    assert not fold_normalisation(model, PREPROCESSING)
    overlapping = model_of("vit_tiny_patch16_224", SMALL)
    overlapping.patch_embed.proj = nn.Conv2d(3, 32, 10, stride=8, padding=1)
    resnet = build(CompressionPlan(model="resnet18", model_kwargs={"num_classes": 7}))
    for each in (overlapping, resnet):
        assert not fold_patch_embedding(each)
        assert not fold_normalisation(each, PREPROCESSING)
        assert not [layer for layer in each.modules() if isinstance(layer, PatchProduct)]


@pytest.mark.parametrize("as_product", [False, True])
def test_the_normalisation_is_in_the_patch_embedding(as_product: bool) -> None:
    model = model_of("vit_tiny_patch16_224", SMALL)
    folded = copy.deepcopy(model)
    if as_product:
        assert fold_patch_embedding(folded)
    assert fold_normalisation(folded, PREPROCESSING)
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).double()
    mean, std = (
        torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (PREPROCESSING.mean, PREPROCESSING.std)
    )
    with torch.no_grad():
        expected = model((pixels / 255 - mean) / std)
        assert (folded(pixels) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deit3_small_patch16_224", {"blocks": (BlockPlan(index=1, removed="attention", mlp_hidden=16),)}),
        ("deit3_small_patch16_224", {"trims_last_block": True}),
        ("beit_base_patch16_224", {}),
        ("cait_xxs24_224", {}),
    ],
    ids=["without attention", "trimmed", "beit", "cait"],
)
def test_layer_scale_is_in_the_weights(name: str, changes: dict[str, object]) -> None:
    model = model_of(name, SMALL, **changes)
    folded = copy.deepcopy(model)
    assert fold_layer_scale(folded)
    left = [value for key, value in folded.state_dict().items() if "gamma" in key]
    assert all(bool((value == 1).all()) for value in left)
    assert same(model, folded, torch.randn(2, 3, 32, 32).double())
    assert not fold_layer_scale(model_of("vit_tiny_patch16_224", SMALL))


def test_the_scale_of_attention_is_in_q() -> None:
    merges, _ = parse_merges("horizontal@1")
    changes = {"merges": merges, "size_aware_attention": True, "trims_last_block": True}
    model = model_of("vit_tiny_patch16_224", SMALL, blocks=(BlockPlan(index=0, head_dim=8),), **changes)
    folded = copy.deepcopy(model)
    adapt_input(folded.blocks[0].attn.qkv)  # the identity, at first
    assert fold_attention_scale(folded)
    assert [block.attn.scale for block in folded.blocks] == [8**-0.5, 1.0]
    images = torch.randn(2, 3, 32, 32).double()
    assert same(model, folded, images)
    everywhere = copy.deepcopy(model)
    assert fold_attention_scale(everywhere)
    assert [block.attn.scale for block in everywhere.blocks] == [1.0, 1.0]
    assert same(model, everywhere, images)
    assert not fold_attention_scale(model_of("vit_tiny_patch16_224", SMALL | {"qk_norm": True}))
