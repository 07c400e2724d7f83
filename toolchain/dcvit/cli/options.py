"""Flags that mean the same thing in every command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class JsonObject(click.ParamType):
    """A JSON object, such as '{"num_classes": 10}'."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(
                f"'{value}' is not JSON ({error.msg}); write an object such as '{{\"num_classes\": 10}}'", param, ctx
            )
        if not isinstance(parsed, dict):
            self.fail(f"'{value}' is not a JSON object", param, ctx)
        return parsed


def weight_options(function: F) -> F:
    """--checkpoint, --random-init and --model-kwargs: which weights a timm name gets."""
    for decorate in (
        click.option("--model-kwargs", type=JsonObject(), default=None, help="For timm.create_model, as JSON."),
        click.option("--random-init", is_flag=True, help="Random weights, for latency studies."),
        click.option(
            "--checkpoint",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Weights to load (.safetensors, or .pth of tensors); else timm's pretrained ones.",
        ),
    ):
        function = decorate(function)
    return function


def target_options(function: F) -> F:
    """What to reach; read with `target_from`."""
    for decorate in (
        click.option("--plan", "plan_file", type=click.Path(path_type=Path, dir_okay=False), help="A plan to follow."),
        click.option("--size-aware", is_flag=True, help="Attention knows how many patches a merged token stands for."),
        click.option("--merge", help="Token merges: horizontal@4,vertical@8 (and ,linear for a trained operator)."),
        click.option("--width-multiple", type=click.IntRange(min=1), default=8, show_default=True,
                     help="MLP widths are multiples of this."),
        click.option("--macs-convention", type=click.Choice(["full", "dcvit"]), default="full", show_default=True,
                     help="Count every MAC, or as the DC-ViT paper does."),
        click.option("--macs-reduction", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="R",
                     help="Share of the MACs to remove, e.g. 0.166."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def target_from(
    macs_reduction: float | None,
    macs_convention: str,
    width_multiple: int,
    merge: str | None,
    size_aware: bool,
    plan_file: Path | None,
) -> Any:
    """The `Target` that the flags of `target_options` describe."""
    from dcvit.methods.propose import Target
    from dcvit.plan import CompressionPlan

    return Target.model_validate(
        {
            "macs_reduction": macs_reduction,
            "macs_convention": macs_convention,
            "width_multiple": width_multiple,
            "merge": merge,
            "size_aware": size_aware,
            "plan": None if plan_file is None else CompressionPlan.read(plan_file),
        }
    )
