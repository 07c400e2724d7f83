"""Flags of `--method cait`: how a model is trained while it is merged and pruned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from dcvit.methods.cait.presets import PRESETS

F = TypeVar("F", bound=Callable[..., Any])

RECIPE = ("epochs", "batch_size", "accumulate", "lr", "augmentation", "label_smoothing", "mixup", "cutmix", "distill",
          "ema")  # fmt: skip
"""Flags that are fields of `TrainingRecipe`."""
COUNTING = {"macs_convention": "full", "width_multiple": 8}
"""Flags that `--recipe paper` sets for DC-ViT alone, as they are by default."""
JOINT = ("prune", "widths", "trim_last_block")
FEW_SHOT = ("search", "steps", "trial_steps", "nodes", "metric")
"""Flags that the other methods alone know."""


def joint_options(function: F) -> F:
    """--preset, --widths and the like: what CAIT makes of a model; of `plan` and `compress`."""
    for decorate in (
        click.option("--trim-last-block/--keep-last-block", default=None,
                     help="cait: the last block works on the class token alone, where the head reads nothing else; the "
                     "outputs stay as they are. [default: where it can be]"),
        click.option("--widths", type=click.Choice(["refit", "cdcp"]),
                     help="cait: find widths by measured damage and refit them before the training, or prune channels "
                     "while it runs, as the paper does. [default: refit for a whole classifier]"),
        click.option("--prune/--no-prune", default=None,
                     help="cait: whether widths change; for no merging, --merge none. [default: yes]"),
        click.option("--preset", type=click.Choice(list(PRESETS)),
                     help="cait: merges and target for DeiT-Tiny or -Small at 224."),
    ):  # fmt: skip
        function = decorate(function)
    return function


def training_options(function: F) -> F:
    """How `--method cait` trains; read with `cait_settings_from`."""
    for decorate in (
        click.option("--tensorboard", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                     help="cait: write TensorBoard's event files there."),
        click.option("--checkpoint-every", type=click.FloatRange(min=0), metavar="MIN",
                     help="cait: minutes between two checkpoints. [default: 10]"),
        click.option("--labels/--no-labels", default=None,
                     help="cait: learn from labels, or from the uncompressed model alone. [default: labels if any]"),
        click.option("--distill", type=click.FloatRange(0, 1), metavar="W",
                     help="cait: weight of the uncompressed model's outputs against the labels. [default: 0.5]"),
        click.option("--ema", type=click.FloatRange(0, 1, max_open=True), metavar="D",
                     help="cait: decay of a moving average of the weights, kept in the end. [default: none]"),
        click.option("--cutmix", type=click.FloatRange(min=0), metavar="A",
                     help="cait: CutMix's parameter. [default: 1.0 with deit]"),
        click.option("--mixup", type=click.FloatRange(min=0), metavar="A",
                     help="cait: mixup's parameter. [default: 0.8 with deit]"),
        click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), help="cait. [default: 0.1]"),
        click.option("--augmentation", type=click.Choice(["deit", "crop", "none"]),
                     help="cait: DeiT's, or shifts and flips. [default: crop up to 64 pixels, else deit]"),
        click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="cait: peak of AdamW. [default: 2e-4]"),
        click.option("--accumulate", type=click.IntRange(min=1), metavar="K",
                     help="cait: compute a batch in so many parts, for less memory. [default: 1]"),
        click.option("--batch-size", type=click.IntRange(min=1),
                     help="cait: images a step, over all processes and parts. [default: 128]"),
        click.option("--epochs", type=click.FloatRange(min=0), help="cait: passes over the images. [default: 30]"),
    ):  # fmt: skip
        function = decorate(function)
    return function


def cait_settings_from(flags: dict[str, Any]) -> Any:
    """The `CaitSettings` that the flags describe; takes all flags that say how out of `flags`.

    Raises:
        click.UsageError: If a flag is given that CAIT does not know, or the command does not train.
    """
    from dcvit.methods.cait.settings import PAPER, CaitSettings

    if "epochs" not in flags:
        raise click.UsageError("--method cait trains every size on its own; run `dcvit-tool compress` for each")
    for name in FEW_SHOT:
        flags.pop(name)
        if was_given(name):
            raise click.UsageError(f"{flag_of(name)} is of the few-shot methods; --method cait has --epochs, --lr …")
    flags.pop("method")
    recipe = {name: flags.pop(name) for name in RECIPE}
    paper = {}
    if flags.pop("recipe") == "paper":
        paper = PAPER.model_dump(include={"widths", "trim"})
        flags.update({name: own for name, own in COUNTING.items() if not was_given(name)})
    prune, widths = flags.pop("prune"), flags.pop("widths")
    return CaitSettings.model_validate(
        paper
        | ({} if widths is None else {"widths": widths})
        | {
            "prune": prune is not False,
            "labels": flags.pop("labels"),
            "training": {name: value for name, value in recipe.items() if value is not None},
        }
    )


def refuse_training_flags(flags: dict[str, Any], method: str) -> None:
    """Takes the flags of CAIT out of `flags`.

    Raises:
        click.UsageError: If one was given.
    """
    for name in (*RECIPE, *JOINT, "labels", "checkpoint_every", "tensorboard"):
        if flags.get(name) is not None:
            raise click.UsageError(f"{flag_of(name)} is of --method cait, and the method is {method}")
    for name in (*RECIPE, *JOINT, "labels"):
        flags.pop(name, None)


def take_preset(model: str, flags: dict[str, Any]) -> None:
    """Puts the method, the merges and the target of `--preset` into the flags.

    Raises:
        click.UsageError: If one of these is given too.
        InputError: If the model is another one.
    """
    name = flags.pop("preset")
    if name is None:
        return
    for other in ("macs_reduction", "speedup", "merge", "plan_file", "method"):
        if was_given(other) and (other, flags[other]) != ("method", "cait"):
            raise click.UsageError(f"--preset fixes the method, the merges and the target; leave out {flag_of(other)}")
    preset = PRESETS[name]
    preset.check(name, model)
    flags.update(method="cait", merge=preset.merge, macs_reduction=preset.macs_reduction)


def was_given(name: str) -> bool:
    """Whether the user gave a flag of the command that runs."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def flag_of(name: str) -> str:
    """The flag of a parameter, as the user writes it."""
    return "--plan" if name == "plan_file" else "--" + name.replace("_", "-")
