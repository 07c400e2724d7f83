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
