"""Sizes and channels of images: what works in timm has the right tokens, and the rest is refused when it is opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.cli.main import cli
from dcvit.errors import InputError
from dcvit.model import build
from dcvit.plan import CompressionPlan, HeadPlan
from dcvit.subject import open_shapes
from dcvit.types import TimmModule

SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
PADDED = {"dynamic_img_size": True, "dynamic_img_pad": True}


@pytest.mark.parametrize(("name", "kwargs", "merged", "tokens"), [
    ("vit_tiny_patch16_224", SMALL | PADDED | {"img_size": [34, 58]}, True, [41, 21, 21, 21]),
    ("vit_tiny_patch16_224", SMALL | PADDED | {"img_size": [34, 58], "in_chans": 1}, False, [41] * 4),
    ("vit_tiny_patch16_224", SMALL | {"img_size": 50}, True, [37, 19, 19, 19]),  # timm drops the border
    ("vit_tiny_patch16_224", SMALL | {"img_size": 48, "dynamic_img_size": True}, True, [37, 19, 19, 19]),
    ("eva02_tiny_patch14_224", SMALL | PADDED | {"img_size": 50}, False, [50] * 4),
    ("vit_tiny_r_s16_p8_224", SMALL | {"img_size": 64, "in_chans": 1}, False, [5] * 4),
])  # fmt: skip
def test_tokens_are_those_that_timm_makes(
    random_model: Callable[[CompressionPlan], TimmModule],
    name: str,
    kwargs: dict[str, Any],
    merged: bool,
    tokens: list[int],
) -> None:
    merges = ({"after": 1, "axis": "horizontal"},) if merged else ()
    plan = CompressionPlan(model=name, model_kwargs=kwargs, merges=merges)
    subject = open_shapes(name, kwargs)
    model = random_model(plan)
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].shape[1]))
    assert model(torch.randn(2, *subject.architecture.input_size)).isfinite().all()
    assert seen == tokens
    assert subject.family.tokens(build(plan.original(), device="meta"), plan) == tokens
    assert subject.architecture.input_size[0] == kwargs.get("in_chans", 3)


@pytest.mark.parametrize(("kwargs", "reason"), [
    ({"img_size": 50, "dynamic_img_size": True}, "dynamic_img_size and images of 50×50, which its patches of 8×8 do"),
    ({"img_size": 50, "dynamic_img_pad": True}, "dynamic_img_pad and images of 50×50, which its patches of 8×8 do not"),
    ({"patch_size": [8, 8, 8]}, r"images of \[224, 224\] in patches of \[8, 8, 8\], not two sides each, is not "),
])  # fmt: skip
def test_what_timm_cannot_run_is_refused_by_name(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_shapes("vit_tiny_patch16_224", SMALL | kwargs)


def test_a_forward_that_fails_is_an_error_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.vision_transformer import VisionTransformer

    def broken(_self: object, _images: object) -> None:
        raise RuntimeError("Invalid channel dimensions")

    monkeypatch.setattr(VisionTransformer, "forward", broken)
    with pytest.raises(InputError, match="cannot take images of 32×32 with 3 channels: Invalid channel dim"):
        open_shapes("vit_tiny_patch16_224", SMALL | {"img_size": 32})


def test_a_border_is_no_part_of_a_segmented_image() -> None:
    plan = CompressionPlan(
        model="vit_tiny_patch16_224", model_kwargs=SMALL | PADDED | {"img_size": 50}, head=HeadPlan(num_classes=3)
    )
    with pytest.raises(InputError, match="dynamic_img_pad adds a border"):
        build(plan, device="meta")


def test_models_of_other_channels_end_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    channels = 4
    kwargs = json.dumps(SMALL | {"img_size": 32, "in_chans": channels})
    model = ["vit_tiny_patch16_224", "--model-kwargs", kwargs, "--random-init"]
    cli(["compress", *model, "--macs-reduction", "0.3", "--recover", "none", "-o", str(tmp_path / "out")])
    capfd.readouterr()
    shared = ["--data", "digits", "--samples", "8"]
    for command in (
        ["compress", *model, *shared, "--macs-reduction", "0.3", "-o", str(tmp_path / "other")],
        ["compress", *model, *shared, "--method", "cait", "--merge", "horizontal@2", "-o", str(tmp_path / "other")],
        ["frontier", *model, *shared, "-o", str(tmp_path / "other")],
        ["evaluate", str(tmp_path / "out"), "--data", "digits"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli(command)
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2, error
        assert f"images have 1 or 3 channels, and the model takes {channels}" in error
