"""Weights from files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from dcvit.errors import InputError
from dcvit.model import build, load_checkpoint
from dcvit.plan import CompressionPlan
from dcvit.subject import open_subject


@pytest.mark.parametrize("more", [{}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg"}])
def test_positions_are_resampled_for_images_of_another_size(
    tmp_path: Path, tiny_plan: CompressionPlan, more: dict[str, object]
) -> None:
    trained = build(tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | more))
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    wide = build(tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | more | {"img_size": [40, 56]}))
    load_checkpoint(wide, tmp_path / "trained.safetensors")
    prefix = 0 if more else 1
    expected = resample_abs_pos_embed(trained.pos_embed, (5, 7), (4, 4), num_prefix_tokens=prefix)
    assert wide.pos_embed.shape == (1, prefix + 35, 32)
    assert torch.equal(wide.pos_embed, expected)
    others = {name: tensor for name, tensor in trained.state_dict().items() if name != "pos_embed"}
    assert all(torch.equal(wide.state_dict()[name], tensor) for name, tensor in others.items())
    if prefix:
        assert torch.equal(wide.pos_embed[:, 0], trained.pos_embed[:, 0])


def test_positions_of_another_width_are_an_error(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    state = build(tiny_plan).state_dict() | {"pos_embed": torch.zeros(1, 17, 48)}
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"'pos_embed' is \[1, 17, 48\]"):
        load_checkpoint(build(tiny_plan), tmp_path / "other.safetensors")


def test_random_weights_are_as_if_trained(tiny_plan: CompressionPlan) -> None:
    """A bias of 0 is left out by a runtime, and a model without them is faster than the one that will be served."""
    tensors = open_subject(tiny_plan.model, model_kwargs=tiny_plan.model_kwargs, weights="random").model.state_dict()
    assert all(bool((tensor != 0).all() and (tensor != 1).all()) for tensor in tensors.values())
    assert not build(tiny_plan).state_dict()["blocks.0.mlp.fc1.bias"].any()
