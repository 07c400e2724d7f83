"""Whether every exported file of a model folder is what it should be, and computes what PyTorch does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcvit.artifacts import DEFAULT_BATCH, export_command
from dcvit.data import ImageSource, draw_few_shot, open_source
from dcvit.errors import InputError
from dcvit.exporting import metadata_of
from dcvit.exporting.records import OnnxRecord, engine_records, onnx_records
from dcvit.folder import WEIGHTS, ModelFolder
from dcvit.progress import track
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.runtimes.pytorch import TorchSession
from dcvit.verification.checks import Check, holds
from dcvit.verification.engine import check_engine
from dcvit.verification.graph import check_graph
from dcvit.verification.parity import Reference, check_parity

__all__ = ["Check", "VerifyResult", "verify"]

IMAGES = 64
"""Images that each runtime is compared on."""


@dataclass(frozen=True)
class VerifyResult:
    """The checks of a model folder."""

    folder: Path
    checks: tuple[Check, ...]
    data: str | None

    @property
    def passed(self) -> bool:
        """Whether all of them hold."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {
            "passed": self.passed,
            "folder": str(self.folder),
            "data": self.data,
            "checks": [check.to_json() for check in self.checks],
        }

    def lines(self) -> Iterable[Any]:
        """A table of the checks, and how many hold."""
        from rich.table import Table

        table = Table("", "check", "max. error", "tolerance", "found")
        for check in self.checks:
            numbers = ("" if value is None else f"{value:.1e}" for value in (check.max_abs_error, check.tolerance))
            table.add_row("[green]ok[/]" if check.passed else "[red]FAILED[/]", check.name, *numbers, check.detail)
        yield table
        failed = [check for check in self.checks if not check.passed]
        if self.data is None:
            yield "compared on random input alone; --data compares on real images too"
        yield f"{len(failed)} of {len(self.checks)} checks FAILED" if failed else f"all {len(self.checks)} checks hold"


def verify(folder: ModelFolder | Path | str, data: str | Path | ImageSource | None = None) -> VerifyResult:
    """Checks all ONNX files and engines of a folder against its plan, its weights, and PyTorch's output.

    Args:
        folder: A model folder with at least one ONNX file.
        data: Real images to compare on, beside random input: a folder, a tar or `digits`; labels are not used.

    Raises:
        InputError: If the folder is not whole or holds no ONNX file, or there are no images.
    """
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    onnx_files = onnx_records(folder)
    if not onnx_files:
        made_by = export_command(folder.path, DEFAULT_BATCH, "fp32")
        raise InputError(f"{folder.path} has no ONNX file to verify; make one with `{made_by}`")
    source = None if data is None else open_source(data, "test")
    references = _references(folder, source)
    checks: list[Check] = []
    for name, onnx in track(onnx_files.items(), "checking ONNX files"):
        checks += _check_onnx(folder, name, onnx, references)
    for name, engine in track(engine_records(folder).items(), "checking engines"):
        checks += check_engine(folder, name, engine, references)
    return VerifyResult(folder.path, tuple(checks), source.name if source else None)


def _check_onnx(folder: ModelFolder, name: str, record: OnnxRecord, references: list[Reference]) -> Iterator[Check]:
    stale = record.weights_sha256 != folder.manifest.files[WEIGHTS].sha256
    yield holds(f"{name}: origin", [f"it was made from other weights than {WEIGHTS}"] * stale, "the folder's weights")
    yield from check_graph(folder.path / name, record.precision, metadata_of(folder, record.batch, record.precision))
    session = OrtSession(folder.path / name)
    for reference in references:
        yield from check_parity(f"{name}: ONNX Runtime", session, reference, record.precision)


def _references(folder: ModelFolder, source: ImageSource | None) -> list[Reference]:
    preprocessing = folder.manifest.preprocessing
    # Normalised images have about zero mean and unit deviation, and so has this noise.
    noise = torch.randn(IMAGES, *preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    sets = [("random input", noise)]
    if source is not None:
        shots = draw_few_shot(source, IMAGES, seed=0, channels=preprocessing.input_size[0], at_most=True)
        sets.append(("real images", shots.tensor(preprocessing)))
    session = TorchSession(folder.load(), IMAGES, device="cpu")
    return [Reference(what, images, session.infer(images), what == "real images") for what, images in sets]
