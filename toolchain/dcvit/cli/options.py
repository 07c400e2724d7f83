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
    """What to reach and the plan to start from; read with `target_from`."""
    for decorate in (
        click.option("--runtime", help="That --speedup is measured in. [default: onnxruntime]"),
        click.option("--speedup", type=click.FloatRange(1, min_open=True), metavar="X",
                     help="How many times faster, as measured here, instead of --macs-reduction."),
        click.option("--macs-reduction", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="R",
                     help="Share of the MACs to remove, e.g. 0.166."),
    ):  # fmt: skip
        function = decorate(function)
    return plan_options(function)


def plan_options(function: F) -> F:
    """How plans are made, whatever the target; read with `target_from`."""
    for decorate in (
        click.option("--plan", "plan_file", type=click.Path(path_type=Path, dir_okay=False), help="A plan to follow."),
        click.option("--size-aware/--no-size-aware", default=None,
                     help="Attention knows how many patches a merged token stands for. [default: with --recover none]"),
        click.option("--merge", help="Token merges: horizontal@4,vertical@8 (and ,linear for a trained operator, the "
                     "default of cait, where 'none' turns merging off)."),
        click.option("--width-multiple", type=click.IntRange(min=1), default=8, show_default=True,
                     help="Widths of heads and MLPs are multiples of this."),
        click.option("--keep-heads", is_flag=True, help="No attention head loses channels."),
        click.option("--macs-convention", type=click.Choice(["full", "dcvit"]), default="full", show_default=True,
                     help="Count every MAC, or as the DC-ViT paper does."),
    ):  # fmt: skip
        function = decorate(function)
    return function


PAPER = {
    "search": "trials",
    "nodes": "random",
    "metric": "synthetic",
    "macs_convention": "dcvit",
    "width_multiple": 1,
}
"""What `--recipe paper` puts in place of the defaults; a flag that is given still wins."""


def run_options(function: F) -> F:
    """Of every run that searches and recovers; `settings_from` reads those that say how, `run_arguments` the others."""
    for decorate in (
        click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote to OUT."),
        click.option("--resume", is_flag=True, help="Continue an unfinished run."),
        click.option("--cache", type=click.Path(path_type=Path, file_okay=False),
                     help="A folder where trials are kept, for other targets and runs. [default: in OUT, until done]"),
        weight_options,
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--metric", type=click.Choice(["train", "synthetic"]), default="train", show_default=True,
                     help="Score cuts and trials on your images, or on ones made from the model alone."),
        click.option("--nodes", type=click.Choice(["importance", "random"]), default="importance", show_default=True,
                     help="How trials choose the MLP nodes that stay."),
        click.option("--trial-steps", type=click.IntRange(min=0),
                     help="Training steps of a trial. [default: --steps]"),
        click.option("--steps", type=click.IntRange(min=0), default=200, show_default=True,
                     help="Training steps; with trials after each compressed block."),
        click.option("--search", type=click.Choice(["solver", "trials"]), default="solver", show_default=True,
                     help="Measure and solve, or train a trial of each block as DC-ViT does."),
        click.option("--recipe", type=click.Choice(["default", "paper"]), default="default", show_default=True,
                     is_eager=True, callback=_take_recipe, help="'paper' makes every choice as DC-ViT's paper does."),
        click.option("--method", type=click.Choice(["dcvit", "practise", "cait"]), default="dcvit", show_default=True,
                     help="Few-shot block compression, its baseline, or merging and pruning in a full training."),
        click.option("--samples", type=click.IntRange(min=1), default=500, show_default=True,
                     help="Images to use; with --method cait all by default."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def run_arguments(flags: dict[str, Any]) -> dict[str, Any]:
    """What every run takes beside its settings, under the names that the Python functions use; out of `flags`."""
    names = ("samples", "seed", "model_kwargs", "checkpoint", "cache", "resume", "overwrite")
    weights = "random" if flags.pop("random_init") else "pretrained"
    return {name: flags.pop(name) for name in names} | {"weights": weights}


def _take_recipe(ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value == "paper":
        ctx.default_map = {**(ctx.default_map or {}), **PAPER}
    return value


def settings_from(flags: dict[str, Any]) -> Any:
    """The settings of the method that the flags of `run_options` describe; takes them out of `flags`."""
    from dcvit.cli.training import cait_settings_from, refuse_training_flags

    if flags["method"] == "cait":
        return cait_settings_from(flags)
    refuse_training_flags(flags, flags["method"])
    from dcvit.methods.few_shot.settings import OURS, SearchSettings
    from dcvit.training.recipe import MimicRecipe

    chosen = {name: flags.pop(name) for name in ("method", "search", "steps", "trial_steps", "nodes", "metric")}
    training = MimicRecipe() if flags.pop("recipe") == "paper" else OURS
    if chosen["method"] == "practise":
        training = training.model_copy(update={"logit_weight": 0.0})  # its loss is the feature error alone
    return SearchSettings.model_validate(chosen | {"training": training})


def target_from(
    macs_convention: str,
    width_multiple: int,
    keep_heads: bool,
    merge: str | None,
    size_aware: bool | None,
    plan_file: Path | None,
    macs_reduction: float | None = None,
    speedup: float | None = None,
    runtime: str | None = None,
    trim_last_block: bool | None = None,
) -> Any:
    """The `Target` that the flags of `target_options`, or of `plan_options` alone, describe."""
    from dcvit.methods.target import Target
    from dcvit.plan import CompressionPlan

    return Target.model_validate(
        {
            "macs_reduction": macs_reduction,
            "speedup": speedup,
            "runtime": runtime,
            "macs_convention": macs_convention,
            "width_multiple": width_multiple,
            "keep_heads": keep_heads,
            "merge": merge,
            "size_aware": size_aware,
            "trim_last_block": trim_last_block,
            "plan": None if plan_file is None else CompressionPlan.read(plan_file),
        }
    )
