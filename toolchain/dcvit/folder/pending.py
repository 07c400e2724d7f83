"""Changes of a folder's files that are made wholly or not at all, whenever the process is killed.

A new file waits under a hidden name that carries its sha256, `.NAME.SHA256.pending`. The manifest's rename is the only
moment that counts, and always, before it and after it, this holds: for each file that the manifest lists, the bytes of
the listed sha256 are under its name or under that hidden name. Four steps change the folder, each a rename or an unlink
and so atomic, and each keeps it:

1. a new file is renamed to its hidden name: what the manifest lists is not touched;
2. a file that is to go is renamed to its hidden name: its bytes are now there;
3. the manifest is renamed: of the files that it newly lists the bytes are there since step 1, those that it lists no
   longer may be anywhere;
4. `settle` renames each hidden file that the manifest lists to its name, and unlinks all others.

A process that is killed before step 3 leaves the old manifest and one that is killed after it the new one; step 4 needs
nothing but the manifest and the names, so whoever holds the lock next can do it, as often as it takes.
"""

import re
from pathlib import Path

from dcvit.folder.manifest import FileEntry

_PENDING = re.compile(r"\.(?P<name>.+)\.(?P<sha256>[0-9a-f]{64})\.pending")


def pending_path(folder: Path, name: str, sha256: str) -> Path:
    """Where a file waits to be, or to be no longer, one of the folder."""
    return folder / f".{name}.{sha256}.pending"


def is_pending(folder: Path, files: dict[str, FileEntry]) -> bool:
    """Whether a file that the manifest lists waits under its hidden name."""
    return any(pending_path(folder, name, entry.sha256).exists() for name, entry in files.items())


def settle(folder: Path, files: dict[str, FileEntry]) -> None:
    """Step 4, by what the manifest lists; only for who holds the folder's lock."""
    for path in list(folder.iterdir()):
        if match := _PENDING.fullmatch(path.name):
            entry = files.get(match["name"])
            if entry is not None and entry.sha256 == match["sha256"]:
                path.replace(folder / match["name"])
            else:
                path.unlink()
