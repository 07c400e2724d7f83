"""A model that is in no folder, put into one for a while: every runtime and every export works on folders."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule


@contextmanager
def temporary_folder(model: TimmModule, plan: CompressionPlan, preprocessing: Preprocessing) -> Iterator[ModelFolder]:
    """Writes a model folder that lasts as long as the block."""
    manifest = Manifest(model=plan.model, method="none", plan_digest=plan.digest, seed=0, preprocessing=preprocessing)
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:
        folder = ModelFolder.create(Path(place) / "model", model, plan, manifest)
        del model  # it may be large, and the folder has it now
        yield folder
