"""What another run would have written into a folder."""

import json

from dcvit.folder.model_folder import MANIFEST, ModelFolder


def change_manifest(folder: ModelFolder, **fields: object) -> None:
    """Gives fields of the manifest other values."""
    path = folder.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
