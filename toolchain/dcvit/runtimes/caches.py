"""Where what one machine found out is kept for its next run: chosen kernels, compiled kernels, engines."""

import os
from pathlib import Path

from dcvit.files import clear


def cache_folder(kind: str) -> Path:
    """A folder of the user's cache (`$XDG_CACHE_HOME/dcvit-tool`, else `~/.cache/dcvit-tool`); made if need be.

    What killed runs left in it goes away.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "dcvit-tool" / kind
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    return folder
