"""A model that is in no folder, put into one for a while: every runtime and every export works on folders."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dcvit.artifacts import Flavor, Precision
from dcvit.exporting import export
from dcvit.folder import ModelFolder
from dcvit.manifest import Manifest, Preprocessing
from dcvit.plan import CompressionPlan
from dcvit.runtimes import Runtime
from dcvit.types import TimmModule


@contextmanager
def temporary_folder(model: TimmModule, plan: CompressionPlan, preprocessing: Preprocessing) -> Iterator[ModelFolder]:
    """Writes a model folder that lasts as long as the block."""
    manifest = Manifest(model=plan.model, method="none", plan_digest=plan.digest, seed=0, preprocessing=preprocessing)
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:
        yield ModelFolder.create(Path(place) / "model", model, plan, manifest)


def export_for(
    runtime: Runtime,
    folder: ModelFolder,
    batch: int,
    precision: Precision,
    compute_capabilities: tuple[str, ...] | None = None,
) -> None:
    """Exports what a runtime needs of a folder: nothing, an ONNX file, or an engine too.

    Raises:
        InputError: If no engine can be built here.
    """
    if runtime.artifact == "weights":
        return
    flavor: Flavor | None = None
    if runtime.artifact == "engine":
        flavor = "tensorrt-rtx" if runtime.name == "tensorrt-rtx" else "tensorrt"
    export(
        folder,
        batch,
        precision,
        trt=flavor is not None,
        flavor=flavor,
        compute_capabilities=compute_capabilities,
    )
