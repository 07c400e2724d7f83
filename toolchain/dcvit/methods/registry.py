"""The methods, by name: the one list of them."""

from typing import Any

from dcvit.errors import InputError
from dcvit.methods.base import Method, MethodSettings, Preset
from dcvit.methods.cait.method import Cait
from dcvit.methods.few_shot.method import DcVit, Practise

METHODS: dict[str, Method[Any]] = {method.name: method for method in (DcVit(), Practise(), Cait())}
"""The first is the default."""

DEFAULT = next(iter(METHODS))

PRESETS: dict[str, Preset] = {name: preset for method in METHODS.values() for name, preset in method.presets.items()}
"""Targets for well-known models, of all methods."""


def method_of(settings: MethodSettings) -> Method[Any]:
    """The method that settings are of."""
    return METHODS[settings.method]


def method_of_preset(name: str) -> Method[Any]:
    """The method that a preset is of."""
    return next(method for method in METHODS.values() if name in method.presets)


def refusal(method: Method[Any], field: str, option: str) -> InputError:
    """The error for an option that means nothing to a method; it names those that know it."""
    others = " or ".join(f"--method {each.name}" for each in METHODS.values() if each.knows(field))
    return InputError(f"{option} is of {others}, and the method is {method.name}")
