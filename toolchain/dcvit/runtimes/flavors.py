"""The two flavors of TensorRT: which is installed, and loading one of them."""

import importlib
from importlib.util import find_spec
from typing import Any, get_args

import torch

from dcvit.errors import InputError
from dcvit.variant import Flavor

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL: dict[Flavor, str] = {
    "tensorrt": "`pip install 'dcvit-tool[tensorrt]'` (its wheels need NVIDIA's package index, see docs/install.md)",
    "tensorrt-rtx": "`pip install 'dcvit-tool[tensorrt-rtx]'`",
}


def installed(flavor: Flavor) -> bool:
    """Whether the flavor's package is there."""
    return find_spec(_MODULES[flavor]) is not None


def how_to_install(flavor: Flavor) -> str:
    """The command that installs a flavor."""
    return _INSTALL[flavor]


def default_flavor() -> Flavor:
    """The flavor to build with when none is named: TensorRT on a machine with a GPU, else TensorRT-RTX.

    Raises:
        InputError: If neither is installed.
    """
    there = [flavor for flavor in get_args(Flavor) if installed(flavor)]
    if not there:
        raise InputError(
            f"neither TensorRT nor TensorRT-RTX is installed; {_INSTALL['tensorrt-rtx']} builds engines without a GPU"
        )
    preferred: Flavor = "tensorrt" if torch.cuda.is_available() else "tensorrt-rtx"
    return preferred if preferred in there else there[0]


def not_installed(flavor: Flavor) -> str | None:
    """The sentence to say when a flavor is missing; None when it is there."""
    return None if installed(flavor) else f"{_MODULES[flavor]} is not installed; {_INSTALL[flavor]}"


def load(flavor: Flavor) -> Any:
    """The flavor's Python package.

    Raises:
        InputError: If it is not installed, or cannot be loaded.
    """
    if flavor not in _MODULES:
        raise InputError(f"--flavor {flavor}: choose {' or '.join(_MODULES)}")
    if reason := not_installed(flavor):
        raise InputError(reason)
    try:
        return importlib.import_module(_MODULES[flavor])
    except (ImportError, OSError) as error:
        raise InputError(f"{_MODULES[flavor]} is installed but cannot be loaded: {error}") from error
