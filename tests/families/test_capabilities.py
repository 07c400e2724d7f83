"""What methods ask a family for: where adaptors hang, what can be pruned, which images suit it, what models keep."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dcvit.errors import InputError
from dcvit.families import FAMILIES, Family, family_of, matching_family
from dcvit.methods.cait.prunable import prunable_layers
from dcvit.methods.few_shot.drop_trials import check_place_for_adaptors
from dcvit.model import create
from dcvit.plan import BlockPlan, CompressionPlan

PLAIN: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
STAGED: dict[str, Any] = {
    "img_size": 32, "embed_dim": 12, "depths": [2, 4, 2], "num_heads": [1, 2, 2], "window_size": 4, "num_classes": 5,
}  # fmt: skip
RESNET: dict[str, Any] = {
    "num_classes": 5, "channels": [8, 8, 16, 16], "pretrained_cfg_overlay": {"input_size": [3, 32, 32]},
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", PLAIN),
    "eva": ("vit_small_patch16_dinov3", PLAIN),
    "beit": ("beit_base_patch16_224", PLAIN),
    "class-attention": ("cait_xxs24_224", PLAIN),
    "swin": ("swin_tiny_patch4_window7_224", STAGED),
    "swinv2": ("swinv2_tiny_window8_256", STAGED),
    "resnet": ("resnet26", RESNET),
}
# The unit that goes, and the layers around it: in the whole ViT and Swin, in the stage of the ResNet.
PLACES: dict[str, tuple[tuple[int, ...], set[str], set[str]]] = {
    "vit": ((2,), {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}, {"blocks.3.attn.qkv"}),
    "swin": (
        (4, 5),
        {f"layers.{stage}.blocks.{block}.mlp.fc2" for stage in (0, 1) for block in (0, 1)},
        {f"layers.2.blocks.{block}.attn.qkv" for block in (0, 1)},
    ),
    "resnet": ((3,), {"layer2.0.conv3"}, set()),
}


def of(name: str) -> tuple[nn.Module, Family, CompressionPlan]:
    torch.manual_seed(0)
    model = create(*MODELS[name])
    return model, family_of(model), CompressionPlan(model=MODELS[name][0], model_kwargs=MODELS[name][1])


def names(model: nn.Module, layers: tuple[nn.Module, ...]) -> set[str]:
    return {name for name, module in model.named_modules() if module in layers}


def called(model: nn.Module, layers: set[str]) -> set[str]:
    """Those of the layers whose forward runs."""
    seen: set[str] = set()
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    model(torch.randn(1, 3, 32, 32))
    return seen


def without(model: nn.Module, family: Family, plan: CompressionPlan, unit: tuple[int, ...]) -> nn.Module:
    return family.cut(model, plan.with_blocks(*(BlockPlan(index=index, removed="block") for index in unit)))


def test_every_family_has_a_model_here() -> None:
    assert [family.name for family in FAMILIES] == list(MODELS)
    assert all(of(name)[1].name == name for name in MODELS)


@torch.no_grad()
@pytest.mark.parametrize("name", PLACES)
def test_adaptors_hang_on_layers_that_run(name: str) -> None:
    model, family, plan = of(name)
    unit, behind, in_front = PLACES[name]
    check_place_for_adaptors(family)
    student = without(model, family, plan, unit)
    places = family.adaptor_places(student, unit)
    assert places is not None
    assert names(student, places.behind) == behind
    assert names(student, places.in_front) == in_front
    assert len(places.behind + places.in_front) == len(behind | in_front)
    assert called(student, behind | in_front) == behind | in_front


def test_a_resnet_adapts_within_the_stage_and_basic_blocks_end_with_their_second_convolution() -> None:
    model = create("resnet34", RESNET)
    family = family_of(model)
    student = without(model, family, CompressionPlan(model="resnet34", model_kwargs=RESNET), (4,))
    places = family.adaptor_places(student, (4,))
    assert places is not None
    assert names(student, places.behind) == {"layer2.0.conv2"}
    assert names(student, places.in_front) == {"layer2.2.conv1", "layer2.3.conv1"}


def test_a_block_that_has_lost_the_layer_gets_no_adaptor() -> None:
    model, family, plan = of("vit")
    cut = plan.with_blocks(BlockPlan(index=0, removed="block"), BlockPlan(index=2, removed="attention", mlp_hidden=16))
    student = family.cut(model, cut.replace(trims_last_block=True))
    places = family.adaptor_places(student, (1,))
    assert places is not None
    # Of the trimmed last block, q reads other tokens than k and v, so its qkv is gone too.
    assert (places.behind, places.in_front) == ((), ())
    later = family.adaptor_places(student, (3,))
    assert later is not None
    assert names(student, later.behind) == {"blocks.1.mlp.fc2", "blocks.2.mlp.fc2"}


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(PLACES)))
def test_a_family_without_a_place_is_refused(name: str) -> None:
    model, family, _ = of(name)
    assert family.adaptor_places(model, (1,)) is None
    with pytest.raises(InputError, match=f"adaptors in a {name}; use --method dcvit"):
        check_place_for_adaptors(family)


@torch.no_grad()
def test_the_attention_of_swin_v2_goes_past_its_layer() -> None:
    model, _, _ = of("swinv2")
    assert called(model, {"layers.0.blocks.0.attn.qkv"}) == set()


@pytest.mark.parametrize("name", MODELS)
def test_compactors_prune_plain_vits_alone(name: str) -> None:
    model, family, plan = of(name)
    if family.cannot_prune is None:
        assert name == "vit"
        assert {layer.kind for layer in prunable_layers(model, family, plan, multiple=4, min_head_dim=4)} == {
            "head_dim",
            "mlp_hidden",
        }
        return
    message = rf"^channel pruning narrows the heads and MLPs of plain .* \(vit_.*\); {plan.model} is a {name}$"
    with pytest.raises(InputError, match=message):
        prunable_layers(model, family, plan)


@pytest.mark.parametrize(
    ("name", "kwargs", "exponent"),
    [
        ("vit_tiny_patch16_224", PLAIN, 0.6),
        ("vit_small_patch16_dinov3", PLAIN, 0.6),
        ("deit_tiny_patch16_224", PLAIN, 1.0),
        ("deit3_small_patch16_224", PLAIN, 1.0),
        ("flexivit_small", PLAIN, 1.0),
        ("eva02_tiny_patch14_224", PLAIN, 1.0),
        ("beit_base_patch16_224", PLAIN, 1.0),
        ("cait_xxs24_224", PLAIN, 1.0),
        ("swin_tiny_patch4_window7_224", STAGED, 1.0),
        ("swinv2_tiny_window8_256", STAGED, 1.0),
        ("resnet26", RESNET, 1.0),
    ],
)
def test_the_total_variation_of_images_is_raised_to_what_the_paper_takes(
    name: str, kwargs: dict[str, Any], exponent: float
) -> None:
    model = create(name, kwargs)
    assert family_of(model).tv_exponent(model) == exponent


def test_a_cut_model_is_of_its_family_still() -> None:
    model, family, plan = of("vit")
    student = without(model, family, plan, (1,))
    assert matching_family(student) is family
    assert family.tv_exponent(student) == 0.6
    with pytest.raises(InputError, match="blocks of type RemovedBlock"):
        family_of(student)
    assert matching_family(timm.create_model("convnext_atto")) is None


def test_swins_keep_arguments_of_their_own() -> None:
    changed = STAGED | {"mlp_ratio": 2.0}
    for name in ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"):
        model = create(name, changed)
        found = family_of(model).constructor_arguments(model)
        assert found["depths"] == [2, 4, 2]
        assert found["num_heads"] == [1, 2, 2]
        assert found["window_size"] == 4
        if name.startswith("swin_"):
            assert (found["mlp_ratio"], found["always_partition"]) == (2.0, False)
    for name in sorted(set(MODELS) - {"swin", "swinv2"}):
        model, family, _ = of(name)
        assert family.constructor_arguments(model) == {}


def test_positions_of_a_vit_alone_are_resampled() -> None:
    for name in MODELS:
        model, family, _ = of(name)
        state: dict[str, Tensor] = {"pos_embed": torch.randn(1, 26, 16), "other": torch.ones(1)}
        fitted = family.fit_positions(model, state)
        assert state["pos_embed"].shape == (1, 26, 16)
        assert fitted["other"] is state["other"]
        assert fitted["pos_embed"].shape == (1, 17 if name == "vit" else 26, 16)
