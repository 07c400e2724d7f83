"""matplotlib, which not everybody has."""

from importlib.util import find_spec

from dcvit.errors import InputError

MISSING = "matplotlib is not installed; `pip install 'dcvit-tool[plots]'`"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def require_matplotlib(option: str) -> None:
    """Checks that pictures can be drawn, before any work is done.

    Raises:
        InputError: If matplotlib is not installed.
    """
    if not can_draw():
        raise InputError(f"{option}: {MISSING}")
