"""The options of commands that run a method: made from its settings, the target's and the run's."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from pydantic import BaseModel

from dcvit.cli.fields import add_parameter, parameters_of, read_from, was_given
from dcvit.flags import FlagField, flags_of
from dcvit.methods.base import Method, MethodSettings
from dcvit.methods.presets import presets
from dcvit.methods.registry import DEFAULT, METHODS, of_preset, refusal
from dcvit.methods.target import Target
from dcvit.settings import RunSettings

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS: tuple[type[MethodSettings], ...] = tuple(method.settings for method in METHODS.values())


ALL: tuple[type[BaseModel], ...] = (Target, *SETTINGS, RunSettings)


class Asked(NamedTuple):
    """What the options of a command say."""

    method: Method[Any]
    settings: MethodSettings
    target: Target
    run: RunSettings


def method_options(function: F | None = None, *, without: Collection[str] = ()) -> Any:
    """Gives a command --method, --recipe, --preset, and all options of methods, target and run but some fields."""
    if function is None:
        return lambda decorated: method_options(decorated, without=without)
    about = "; ".join(f"'{name}' is {method.about}" for name, method in METHODS.items())
    own = [
        click.Option(["--method"], type=click.Choice(list(METHODS)), default=DEFAULT, show_default=True,
                     help=f"{about}."),
        click.Option(["--recipe"], type=click.Choice(["default", "paper"]), default="default", show_default=True,
                     help="'paper' makes every choice as the method's paper does; an option that is given still wins."),
    ]  # fmt: skip
    if "preset" not in without:
        told = "Method, merges and target for DeiT-Tiny or -Small at 224, for one kind of runtime."
        own.append(click.Option(["--preset"], type=click.Choice(list(presets())), help=told))
    for parameter in reversed([*own, *parameters_of(*ALL, without=without)]):
        add_parameter(function, parameter)
    return function


def read(model: str, flags: dict[str, Any], *, without: Collection[str] = ()) -> Asked:
    """What the options say.

    Args:
        model: For `--preset`, which is of certain models.
        flags: Values by field name.
        without: Fields that are not options of this command.

    Raises:
        click.UsageError: If the method does not know an option that was given, or options exclude each other.
        InputError: If a preset is for another model.
    """
    method: Method[Any] = METHODS[flags["method"]]
    base: dict[str, Any] = {}
    if (name := flags.get("preset")) is not None:
        method, base = _of_preset(name, model, flags)
    fields = {field.name: field for each in ALL for field in flags_of(each)}
    for field in fields.values():
        if field.name not in without and was_given(field.name) and not method.knows(field.name):
            raise click.UsageError(str(refusal(method, field.name, _as_given(field, flags))))
    paper = flags["recipe"] == "paper"
    settings = read_from(method.settings, _values(method.settings, flags), method.settings.paper() if paper else None)
    start = Target.model_validate((dict(method.paper_target) if paper else {}) | base)
    target = read_from(Target, _values(Target, flags), start)
    return Asked(method, settings, target, read_from(RunSettings, _values(RunSettings, flags)))


def _of_preset(name: str, model: str, flags: dict[str, Any]) -> tuple[Method[Any], dict[str, Any]]:
    method_name = presets()[name].method
    for other in ("macs_reduction", "speedup", "latency", "max_drop", "merge", "plan", "method"):
        if was_given(other) and (other, flags[other]) != ("method", method_name):
            option = "--" + other.replace("_", "-")
            raise click.UsageError(f"--preset fixes the method, the merges and the target; leave out {option}")
    from dcvit.folder.model_folder import ModelFolder

    return of_preset(name, ModelFolder(Path(model)).plan.model if ModelFolder.is_one(model) else model)


def _values(model: type[Any], flags: dict[str, Any]) -> dict[str, Any]:
    return {field.name: flags[field.name] for field in flags_of(model) if field.name in flags}


def _as_given(field: FlagField, flags: dict[str, Any]) -> str:
    """The option, or the one that turns it off."""
    if flags.get(field.name) is False and field.flag.value is None:
        return field.flag.off or "--no-" + field.option.removeprefix("--")
    return field.option
