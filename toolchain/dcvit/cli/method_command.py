"""Commands that run a method: their help is in groups, and shows the options of the method that is asked about."""

from itertools import pairwise
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.flags import flags_of
from dcvit.methods.base import Method
from dcvit.methods.presets import presets
from dcvit.methods.registry import DEFAULT, METHODS
from dcvit.methods.target import Target
from dcvit.settings import MaskSettings, RunSettings, WeightSettings

WHAT, HOW_FAR, HOW, RUN = "What to compress", "Target", "Method", "Run"

_ARGUMENTS = "dcvit.arguments"


class MethodCommand(Command):
    """A command with `method_options`; `--method cait --help` has CAIT's own options, and so for every method.

    Its `examples` are commands that the help ends with.
    """

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = [*args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        method = _asked_about(ctx.meta.get(_ARGUMENTS, []))
        groups: dict[str, list[tuple[str, str]]] = {}
        for title in (WHAT, HOW_FAR, HOW, _own(method), RUN):
            groups[title] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            group = _group(str(parameter.name), method)
            if record is not None and group is not None and not isinstance(parameter, click.Argument):
                groups[group].append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._examples:
            with formatter.section("Examples"):
                for example in self._examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        method = _asked_about(ctx.meta.get(_ARGUMENTS, []))
        others = [f"--method {name} --help" for name in METHODS if name != method.name]
        formatter.write_paragraph()
        formatter.write(f"Options of the other methods: {ctx.command_path} {' or '.join(others)}\n")
        super().format_epilog(ctx, formatter)


def _asked_about(arguments: list[str]) -> Method[Any]:
    """The method that the arguments name, wherever --help stands among them; a wrong name is the parser's to refuse."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    named = dict(pairwise(words))
    if (preset := presets().get(named.get("--preset", ""))) is not None:
        return METHODS[preset.method]
    return METHODS.get(named.get("--method", DEFAULT), METHODS[DEFAULT])


def _own(method: Method[Any]) -> str:
    return f"{method.title}: --method {method.name}"


def _names(*models: Any) -> set[str]:
    return {field.name for model in models for field in flags_of(model)}


_OF_IMAGES_AND_MODEL = _names(WeightSettings, MaskSettings) | {
    "data",
    "out",
    "from_manifest",
    "samples",
    "task",
    "head",
    "unmerge",
}
_OF_TARGET = _names(Target) | {"preset", "reductions"}
_OF_METHODS = _names(*(method.settings for method in METHODS.values()))


def _group(name: str, method: Method[Any]) -> str | None:
    """The group of an option; None where the method does not know it."""
    of_a_method = name in _OF_METHODS or name in _names(Target, RunSettings)
    if of_a_method and not method.knows(name):
        return None
    if name in _OF_METHODS:
        return _own(method)
    if name in _OF_IMAGES_AND_MODEL:
        return WHAT
    if name in _OF_TARGET:
        return HOW_FAR
    return HOW if name in ("method", "recipe", "recover") else RUN
