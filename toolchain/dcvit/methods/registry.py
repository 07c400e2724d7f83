"""The methods, by name: the one list of them."""

from typing import Any

from dcvit.errors import InputError
from dcvit.methods.base import Method, MethodSettings
from dcvit.methods.cait.method import Cait
from dcvit.methods.few_shot.method import DcVit, Practise
from dcvit.methods.presets import presets

METHODS: dict[str, Method[Any]] = {method.name: method for method in (DcVit(), Practise(), Cait())}
"""The first is the default."""

DEFAULT = next(iter(METHODS))


def method_of(settings: MethodSettings) -> Method[Any]:
    """The method that settings are of."""
    return METHODS[settings.method]


def of_preset(name: str, model: str) -> tuple[Method[Any], dict[str, Any]]:
    """The method that a preset is of, and fields of the target.

    Args:
        name: Of the preset.
        model: timm name of the model that it is to be used for.

    Raises:
        InputError: If there is no such preset, or it is for another model.
    """
    preset = presets().get(name)
    if preset is None:
        raise InputError(f"there is no preset {name!r}; there are {', '.join(presets())}")
    if model.split(".", 1)[0] != preset.model:
        raise InputError(f"--preset {name} is for {preset.model}, and the model is {model}; give --merge and a target")
    fields = {"merge": preset.merge, "macs_reduction": preset.macs_reduction, "made_for": preset.made_for}
    return METHODS[preset.method], fields


def refusal(method: Method[Any], field: str, option: str) -> InputError:
    """The error for an option that means nothing to a method; it names those that know it."""
    others = " or ".join(f"--method {each.name}" for each in METHODS.values() if each.knows(field))
    return InputError(f"{option} is of {others}, and the method is {method.name}")
