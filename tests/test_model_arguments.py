"""A plan may shape a model, and do nothing else with it."""

import inspect
import json
import pickle
from pathlib import Path

import pytest
import timm
from timm.models import beit, cait, eva, resnet, swin_transformer, swin_transformer_v2, vision_transformer

from dcvit.errors import InputError
from dcvit.model import create
from dcvit.model_arguments import SHAPING, check_arguments, check_name
from dcvit.plan import CompressionPlan
from dcvit.subject import open_shapes

HARMFUL = (
    "checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_strict", "pretrained_filter_fn",
    "features_only", "scriptable", "exportable", "no_jit", "kwargs_filter", "device", "dtype",
)  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_what_does_not_shape_a_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'"):
        CompressionPlan(model="vit_tiny_patch16_224", model_kwargs={name: "x"})
    with pytest.raises(InputError, match=f"'{name}'"):
        create("vit_tiny_patch16_224", {name: "x"})


@pytest.mark.parametrize("name", ["file", "url", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "custom_load"])
def test_an_overlay_says_how_images_are_prepared_and_no_more(name: str) -> None:
    text = json.dumps({"model": "resnet18", "model_kwargs": {"pretrained_cfg_overlay": {name: "x"}}})
    with pytest.raises(InputError, match=f"here: model_kwargs: '{name}'"):
        CompressionPlan.from_json(text, where="here")
    check_arguments({"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5], "input_size": [3, 32, 32]}})


def test_no_checkpoint_of_a_plan_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    plan = {"model": "vit_tiny_patch16_224", "model_kwargs": {"checkpoint_path": str(tmp_path / "evil.pth")}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="checkpoint_path"):
        CompressionPlan.read(tmp_path / "plan.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/vit_tiny_patch16_224", "local-dir:/tmp", "resnet18.x:y", "../resnet18"])
def test_a_name_says_no_place(name: str) -> None:
    for refused in (lambda: check_name(name), lambda: create(name), lambda: open_shapes(name)):
        with pytest.raises(InputError, match="load from|neither a model folder"):
            refused()


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 1 << 11), ("embed_dim", 1 << 70), ("mlp_ratio", float("nan")), ("layers", [1, 1 << 40])],
)
def test_a_number_beyond_all_bounds_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        check_arguments({name: value})


def test_all_that_timms_constructors_take_is_known() -> None:
    """A new timm with new arguments is to be looked at before they are let in."""
    classes = (
        vision_transformer.VisionTransformer, eva.Eva, beit.Beit, cait.Cait, swin_transformer.SwinTransformer,
        swin_transformer_v2.SwinTransformerV2, resnet.ResNet,
    )  # fmt: skip
    taken = {name for each in classes for name in inspect.signature(each).parameters} - {"device", "dtype", "kwargs"}
    assert taken <= SHAPING
    factory = set(inspect.signature(timm.create_model).parameters)
    assert not SHAPING & factory
