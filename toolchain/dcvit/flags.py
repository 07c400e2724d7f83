"""What makes a field of settings an option of the command line, and what it is called there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Flag:
    """Marks a field: `steps: Annotated[int, Flag()] = Field(default=200, ge=0, description="Training steps.")`.

    Name, type, range, default and help are the field's own; this says the rest.

    Attributes:
        name: By default the field's, with dashes.
        short: One letter more.
        off: Of a switch, the option that turns it off; by default `--no-` and the name. Empty: there is none.
        metavar: What stands for the value in the help.
        default: What the help says of a default that the field cannot say, such as one that depends on others.
        value: That the option sets the field to, where it is a switch of one value among several.
        path: Whether a path is that of a file or of a folder.
        separated: Whether a tuple is one value with commas; else the option may be given several times.
    """

    name: str | None = None
    short: str | None = None
    off: str | None = None
    metavar: str | None = None
    default: str | None = None
    value: str | None = None
    path: Literal["file", "folder"] | None = None
    separated: bool = False


@dataclass(frozen=True)
class Argument:
    """Marks a field that is given by its place, not by a name."""


@dataclass(frozen=True)
class FlagField:
    """A field with its flag.

    Attributes:
        path: Names from the outermost settings to the field.
        info: The field.
    """

    path: tuple[str, ...]
    info: FieldInfo
    flag: Flag

    @property
    def name(self) -> str:
        """The field's own name; no two flags of one command share one."""
        return self.path[-1]

    @property
    def option(self) -> str:
        """As the user writes it: `--macs-reduction`."""
        return option_of(self.name, self.flag)


def option_of(name: str, flag: Flag) -> str:
    """What a field is called on the command line."""
    return flag.name or "--" + name.replace("_", "-")


def flags_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[FlagField]:
    """The fields of settings that are options, those of settings within them too, in their order."""
    for name, info in model.model_fields.items():
        inner = plain_type(info.annotation)
        flag = next((each for each in info.metadata if isinstance(each, Flag)), None)
        if flag is not None:
            yield FlagField((*path, name), info, flag)
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from flags_of(inner, (*path, name))


def plain_type(annotation: Any) -> Any:
    """The type that a field has on the command line: the first one, where it may be None or of several."""
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal; none for another type."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def nested(values: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Values by path as a dict of dicts, the way that pydantic reads them."""
    found: dict[str, Any] = {}
    for (*outer, name), value in values.items():
        place = found
        for each in outer:
            place = place.setdefault(each, {})
        place[name] = value
    return found


def option_named(path: Sequence[str], *models: type[BaseModel]) -> str:
    """What a field is called to the user: its option, else its path, as in `training.weight_decay`."""
    for model in models:
        for field in flags_of(model):
            if field.path == tuple(path):
                return field.option
    return ".".join(path)
