"""Names of classes: other numbers for those of a source, and whether they are those of a model."""

import logging
from collections.abc import Sequence

from dcvit.data.protocols import ImageSource
from dcvit.errors import InputError

log = logging.getLogger(__name__)

_SHOWN = 12


class MappedSource:
    """A source whose classes are numbered as a class map says; a class of the map may have no images.

    Labels in memory that are numbers without names stay as they are, and get the names of the map.

    Attributes:
        classes: The names of the map, in its order.
        mapped: That this is so.
    """

    def __init__(self, source: ImageSource, names: Sequence[str]) -> None:
        """Looks each class up by its name.

        Raises:
            InputError: If the source has no classes, or one that is not in the map.
        """
        self.name, self.classes, self._source = source.name, list(names), source
        self.mapped = True
        if (content := getattr(source, "content", None)) is not None:
            self.content = content
        if len(source.classes) < 2:
            raise InputError(f"--class-map: the images of {source.name} have no labels; give one folder for each class")
        if not getattr(source, "named", True):  # numbers stand for the model's classes already
            if len(source.classes) > len(names):
                raise InputError(
                    f"--class-map: it holds {len(names)} names, and {source.name} the label {len(source.classes) - 1}"
                )
            self._labels = list(range(len(source.classes)))
            return
        found = source.classes
        places = {name: index for index, name in enumerate(names)}
        if missing := [name for name in found if name not in places]:
            what = some(missing) if missing != [""] else "the images beside the class folders"
            raise InputError(f"--class-map: it lacks classes of {source.name}: {what}; it holds {some(names)}")
        self._labels = [places[name] for name in source.classes]

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> tuple[bytes, int]:
        data, label = self._source.read(index)
        return data, self._labels[label]

    def filename(self, index: int) -> str:
        return self._source.filename(index)


def names_of(source: ImageSource) -> tuple[str, ...] | None:
    """Names of a source's classes, in the order of its labels; None where it has no labels, or they have no names."""
    if not getattr(source, "named", True):
        return None
    return tuple(source.classes) if len(source.classes) >= 2 else None


def _mapped(source: ImageSource | None) -> bool:
    """Whether a class map decides how the classes of a source, or of the one that it is a part of, are numbered."""
    return bool(getattr(source, "mapped", False))


def fits(source: ImageSource, num_classes: int) -> bool:
    """Whether a source's labels can be the classes of a model: as many, or where they are numbers alone, no more."""
    return len(source.classes) == num_classes or (
        not getattr(source, "named", True) and 2 <= len(source.classes) <= num_classes
    )


def class_names(known: Sequence[str] | None, source: ImageSource | None, num_classes: int) -> tuple[str, ...] | None:
    """Names of a model's classes: those of a class map, else those that it is known by, else those of the data.

    Args:
        known: What the model is known by already.
        source: Images; their names count where they have as many classes as the model.
        num_classes: Of the model.
    """
    names = None if source is None else names_of(source)
    if names is None or len(names) != num_classes or (known is not None and not _mapped(source)):
        return None if known is None else tuple(known)
    return names


def check_order(known: Sequence[str] | None, source: ImageSource, model: str) -> None:
    """Compares the order of a source's classes with the one that a model is known by.

    A class map decides, and names that a model does not know may be other words for the same: then that is said, and no
    more.

    Args:
        known: Names in the order of the model's outputs; None where that is not known.
        source: Images with as many classes as the model has.
        model: What it is called.

    Raises:
        InputError: If a name stands for another class of the model; the message names the first.
    """
    names = names_of(source)
    if known is None or names is None or tuple(known) == names or len(known) != len(names):
        return
    label, (theirs, ours) = next(
        (label, pair) for label, pair in enumerate(zip(known, names, strict=True)) if pair[0] != pair[1]
    )
    told = f"class {label} is '{ours}' in {source.name}, and '{theirs}' in {model}"
    mapped = _mapped(source)
    moved = [name for place, name in enumerate(names) if name in known and known[place] != name]
    if mapped or not moved:
        log.warning("%s; the order of %s counts", told, "--class-map" if mapped else source.name)
        return
    raise InputError(
        f"--data: {told}: {model} was made with the order {some(known)}, and the data has {some(names)}; "
        "give --class-map FILE with the names in the order of the model's outputs, one a line"
    )


def some_classes(names: Sequence[str]) -> str:
    """The first names with their indices, and how many there are where these are not all."""
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:_SHOWN]))
    return shown + (f", … ({len(names)} classes)" if len(names) > _SHOWN else "")


def some(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
