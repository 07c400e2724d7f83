"""Options of the command line, made from the fields of settings: name, type, range, default and help stand there."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from dcvit.errors import first_line
from dcvit.flags import Argument, FlagField, choices_of, flags_of, nested, plain_type
from dcvit.plan import CompressionPlan

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)


class JsonObject(click.ParamType):
    """A JSON object, such as '{"num_classes": 10}'."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(
                f"'{value}' is not JSON ({first_line(error)}); write an object such as '{{\"num_classes\": 10}}'",
                param,
                ctx,
            )
        if not isinstance(parsed, dict):
            self.fail(f"'{value}' is not a JSON object", param, ctx)
        return parsed


class PlanFile(click.ParamType):
    """A file that holds a plan."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> CompressionPlan:  # noqa: ARG002
        return value if isinstance(value, CompressionPlan) else CompressionPlan.read(Path(value))


def takes(model: type[M]) -> Callable[[F], F]:
    """Gives a command the options that are fields of `model`, and its function one of it as `given`."""

    def decorate(function: F) -> F:
        def command(**values: Any) -> Any:
            read = {name: values.pop(name) for name in [*values] if name in model.model_fields}
            return function(read_from(model, read), **values)

        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        for parameter in (*getattr(function, "__click_params__", ()), *reversed(parameters_of(model))):
            add_parameter(command, parameter)
        return command  # type: ignore[return-value]

    return decorate


def add_parameter(function: Callable[..., Any], parameter: click.Parameter) -> None:
    """Does what click's decorators do: the last one added comes first in the help."""
    if not hasattr(function, "__click_params__"):
        function.__click_params__ = []  # type: ignore[attr-defined]
    function.__click_params__.append(parameter)  # type: ignore[attr-defined]


def parameters_of(*models: type[BaseModel], without: Collection[str] = ()) -> list[click.Parameter]:
    """Arguments and options of settings; of equal names in several, that of the first."""
    found: dict[str, click.Parameter] = {}
    for model in models:
        for name, info in model.model_fields.items():
            if any(isinstance(each, Argument) for each in info.metadata):
                found.setdefault(name, click.Argument([name], type=_click_type(info), required=info.is_required()))
        for field in flags_of(model):
            if field.name not in without:
                found.setdefault(field.name, _option(field))
    return list(found.values())


def read_from(model: type[M], values: dict[str, Any], base: M | None = None) -> M:
    """Settings of the options that the user gave, by field name; all else is as in `base`, or by default.

    Raises:
        click.UsageError: If they do not go together.
    """
    paths = {field.name: field.path for field in flags_of(model)}
    given = {paths.get(name, (name,)): value for name, value in values.items() if was_given(name)}
    try:
        return model.model_validate(nested(given) if base is None else _over(base, nested(given)))
    except ValidationError as error:
        first = error.errors()[0]
        option = next((f"{f.option}: " for f in flags_of(model) if f.path == first["loc"]), "")
        raise click.UsageError(option + first["msg"].removeprefix("Value error, ")) from error


def was_given(name: str) -> bool:
    """Whether the user gave an option of the command that runs."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _over(base: BaseModel, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of `base`, those that are given put over them, in settings within it too."""
    found = dict(base)
    for name, value in given.items():
        inner = found.get(name)
        found[name] = _over(inner, value) if isinstance(inner, BaseModel) and isinstance(value, dict) else value
    return found


def _option(field: FlagField) -> click.Option:
    info, flag = field.info, field.flag
    kind = plain_type(info.annotation)
    names = [field.option, *([flag.short] if flag.short else [])]
    how: dict[str, Any] = {"metavar": flag.metavar, "default": None, "help": _help(field)}
    if flag.value is not None:
        how["flag_value"] = flag.value
    elif kind is bool:
        how["is_flag"] = True
        if flag.off or info.default is not False:
            names[0] += "/" + (flag.off or "--no-" + field.option.removeprefix("--"))
    else:
        how["type"] = click.STRING if flag.separated else _click_type(info)
        how["multiple"] = get_origin(kind) is tuple and not flag.separated
        if info.is_required():
            how["required"] = True
            del how["default"]  # click takes a default of None for a value, and would not miss another
    return click.Option([*names, field.name], **how)


def _help(field: FlagField) -> str:
    info, flag = field.info, field.flag
    told = flag.default
    default = info.get_default(call_default_factory=True)
    if told is None and not info.is_required() and not (default is None or default is False or default == ()):
        several = default if isinstance(default, tuple) else (default,)
        told = "yes" if default is True else ", ".join(map(str, several))
    text = info.description or ""
    return f"{text} [default: {told}]" if told else text


def _click_type(info: FieldInfo) -> click.ParamType:
    kind = plain_type(info.annotation)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    limits = _limits(info.metadata)
    if hasattr(kind, "__metadata__"):  # the numbers of a tuple have a range of their own
        limits = _limits(each for field in kind.__metadata__ for each in field.metadata)
        kind = kind.__origin__
    if choices := choices_of(kind):
        return click.Choice([str(choice) for choice in choices])
    if any(isinstance(each, BeforeValidator) for each in info.metadata):
        return click.STRING  # the field itself reads the text
    if kind is int:
        return click.IntRange(**limits) if limits else click.INT
    if kind is float:
        return click.FloatRange(**limits) if limits else click.FLOAT
    if kind is Path:
        flag = next((each for each in info.metadata if hasattr(each, "path")), None)
        place = None if flag is None else flag.path
        return click.Path(path_type=Path, dir_okay=place != "file", file_okay=place != "folder")
    if kind is CompressionPlan:
        return PlanFile()
    return JsonObject() if get_origin(kind) is dict else click.STRING


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    """The range that a field's constraints allow, as click takes it."""
    found: dict[str, Any] = {}
    for each in metadata:
        for name, side, is_open in (
            ("ge", "min", False),
            ("gt", "min", True),
            ("le", "max", False),
            ("lt", "max", True),
        ):
            if (limit := getattr(each, name, None)) is not None:
                found[side] = limit
                if is_open:
                    found[f"{side}_open"] = True
    return found
