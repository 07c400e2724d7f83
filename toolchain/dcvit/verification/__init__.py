"""Whether every exported file of a model folder is what it should be, and computes what PyTorch does."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcvit.data import Images, ImageSource, draw_few_shot, open_source
from dcvit.errors import InputError
from dcvit.exporting import metadata_of
from dcvit.folder.findings import note_checks
from dcvit.folder.model_folder import WEIGHTS, ModelFolder
from dcvit.folder.records import OnnxRecord, engine_records, onnx_records
from dcvit.hardware import give_memory_back
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track
from dcvit.runtimes import onnx_runtimes
from dcvit.runtimes.onnx_file import OnnxFileRuntime
from dcvit.runtimes.onnx_runtime import CPU, OrtSession
from dcvit.runtimes.openvino import OpenVino
from dcvit.runtimes.pytorch import TorchSession
from dcvit.variant import Precision, Variant
from dcvit.verification.batches import ALONE, check_session
from dcvit.verification.checks import Check, holds
from dcvit.verification.engine import check_engine
from dcvit.verification.fused import check_fused_file
from dcvit.verification.graph import check_graph
from dcvit.verification.parity import Expected

__all__ = ["Check", "VerifyResult", "verify"]

IMAGES, FEWEST_IMAGES = 64, 8
"""Images that each runtime is compared on, and that it is compared on at least where the model is large."""

MACS = 2 * 10**12
"""That PyTorch may spend on them: 64 images of a ViT-B are 1.1 · 10¹², and of a ViT-H they would take minutes."""


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
        """A row for each file, every check that does not hold, and how many do."""
        from rich.table import Table

        files: dict[str, list[Check]] = {}
        for check in self.checks:
            files.setdefault(check.name.partition(": ")[0], []).append(check)
        table = Table("", "file", "checks", "largest error of its tolerance")
        for name, found in files.items():
            shares = [(check.max_abs_error, check.tolerance) for check in found if check.tolerance]
            worst = max(((error or 0.0, tolerance) for error, tolerance in shares if tolerance),
                        key=lambda share: share[0] / share[1], default=None)  # fmt: skip
            told = "" if worst is None else f"{worst[0]:.1e} of {worst[1]:.1e}"
            bad = sum(not check.passed for check in found)
            count = f"{bad} of {len(found)} do not hold" if bad else f"all {len(found)} hold"
            table.add_row(_in_colour(passed=not bad), name, count, told)
        yield table
        if failed := [check for check in self.checks if not check.passed]:
            yield self._table(failed)
        yield from self._summary()

    def details(self) -> Iterable[Any]:
        """Every check."""
        yield self._table(self.checks)
        yield from self._summary()

    def _table(self, checks: Iterable[Check]) -> Any:
        from rich.table import Table

        table = Table("", "check", "max. error", "tolerance", "found")
        for check in checks:
            numbers = ("" if value is None else f"{value:.1e}" for value in (check.max_abs_error, check.tolerance))
            table.add_row(_in_colour(passed=check.passed), check.name, *numbers, check.detail)
        return table

    def _summary(self) -> Iterable[str]:
        if self.data is None:
            yield "compared on random input alone; --data compares on real images too"
        failed, count = sum(not check.passed for check in self.checks), len(self.checks)
        yield f"{failed} of {count} checks FAILED" if failed else f"all {count} checks hold; --verbose shows them"


def _in_colour(*, passed: bool) -> Any:
    from rich.text import Text

    return Text("ok", "green") if passed else Text("FAILED", "red")


def verify(folder: ModelFolder | Path | str, data: Images | None = None) -> VerifyResult:
    """Checks all ONNX files and engines of a folder against its plan, its weights, and PyTorch's output.

    What was found is kept in the folder as `verify.json`.

    Args:
        folder: A model folder with at least one ONNX file.
        data: Real images to compare on, beside random input: a folder, a tar or `digits`; labels are not used.

    Raises:
        InputError: If the folder is not whole or holds no ONNX file, or there are no images.
    """
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    onnx_files = onnx_records(folder)
    if not onnx_files:
        made_by = Variant().export_command(folder.path)
        raise InputError(f"{folder.path} has no ONNX file to verify; make one with `{made_by}`")
    source = None if data is None else open_source(data, "test")
    expected = _expected(folder, source, _images_for(folder, onnx_files.values()))
    checks: list[Check] = []
    for name, onnx in track(onnx_files.items(), "checking ONNX files"):
        checks += _check_onnx(folder, name, onnx, expected)
    for name, engine in track(engine_records(folder).items(), "checking engines"):
        checks += check_engine(folder, name, engine, expected)
    result = VerifyResult(folder.path, tuple(checks), source.name if source else None)
    note_checks(folder, result.to_json())
    return result


def _check_onnx(folder: ModelFolder, name: str, record: OnnxRecord, expected: list[Expected]) -> Iterator[Check]:
    stale = record.weights_sha256 != folder.manifest.files[WEIGHTS].sha256
    yield holds(f"{name}: origin", [f"it was made from other weights than {WEIGHTS}"] * stale, "the folder's weights")
    yield from check_graph(folder.path / name, record, metadata_of(folder, record.variant))
    alone = _file_of_one(folder, name, record)
    yield from check_fused_file(folder.path / name, record.variant)
    if record.variant.explicit:
        yield from _as_written(folder, name, record, expected)
        return
    ran = False
    for runtime in onnx_runtimes():
        for precision in runtime.precisions:
            if runtime.source(precision) == record.precision and not (record.dynamic and runtime.fixed_batch):
                yield from _run(folder, name, record, expected, runtime, precision, alone)
                ran = True
    if not ran:
        yield from _read_only(folder, name, record, expected)


def _run(
    folder: ModelFolder,
    name: str,
    record: OnnxRecord,
    expected: list[Expected],
    runtime: OnnxFileRuntime,
    precision: Precision,
    alone: Path | None,
) -> Iterator[Check]:
    """One runtime, whose memory is given back before the next one is opened."""
    if precision == "bf16":  # PyTorch's model is in memory for this, which need not be beside the runtime's
        for each in expected:
            each.at_bf16()
    give_memory_back()
    session = runtime.open_file(folder.path / name, precision, folder.manifest.preprocessing, record.batch)
    title = f"{name}: {runtime.title}" + ("" if precision == record.precision else f" {precision}")
    yield from check_session(title, session, expected, precision, _opened(folder, alone, runtime, precision))


def _as_written(folder: ModelFolder, name: str, record: OnnxRecord, expected: list[Expected]) -> Iterator[Check]:
    """TensorRT's quantization, computed by ONNX Runtime operator by operator."""
    if find_spec("onnxruntime") is None:
        yield Check(f"{name}: not run", True, "it is computed by ONNX Runtime; `pip install onnxruntime`")
        return
    session = OrtSession(folder.path / name, CPU, folder.manifest.preprocessing, batch=record.batch, as_written=True)
    yield from check_session(f"{name}: ONNX Runtime, as written", session, expected, record.precision)


def _file_of_one(folder: ModelFolder, name: str, record: OnnxRecord) -> Path | None:
    """The ONNX file of batch 1 beside this one, if there is one of the same weights; itself, if it takes any."""
    if record.dynamic:
        return folder.path / name
    variant = record.variant
    one = variant.model_copy(update={"batch": 1}).onnx_name
    other = onnx_records(folder).get(one)
    if one == name or other is None or other.weights_sha256 != record.weights_sha256:
        return None
    return folder.path / one


def _opened(
    folder: ModelFolder, path: Path | None, runtime: OnnxFileRuntime, precision: Precision
) -> Callable[[Tensor], Tensor] | None:
    """What a runtime makes of images by a file; it is loaded when it is asked."""
    if path is None:
        return None
    return lambda images: runtime.open_file(path, precision, folder.manifest.preprocessing, 1).infer(images)


def _read_only(folder: ModelFolder, name: str, record: OnnxRecord, expected: list[Expected]) -> Iterator[Check]:
    """What can be known of a bf16 file where nothing computes in its types: OpenVINO runs it in fp32."""
    openvino = OpenVino()
    if reason := openvino.unavailable():
        yield Check(f"{name}: not run", True, f"nothing here computes {record.precision} from ONNX files; {reason}")
        return
    session = openvino.open_file(folder.path / name, "fp32", folder.manifest.preprocessing, record.batch)
    title = f"{name}: {openvino.title}, its weights in fp32 arithmetic,"
    yield from check_session(title, session, expected, record.precision)


def _images_for(folder: ModelFolder, records: Iterable[OnnxRecord]) -> int:
    """How many images: the largest batch is filled, and a large model is not run on more than it takes."""
    macs = folder.manifest.metrics.get("macs_after") or 1
    filled = max(FEWEST_IMAGES, *(record.batch for record in records))
    return min(IMAGES, max(filled, int(MACS // macs)))


def _expected(folder: ModelFolder, source: ImageSource | None, images: int) -> list[Expected]:
    preprocessing = folder.manifest.preprocessing
    sets = [("random input", _random_images(preprocessing, images))]
    if source is not None:
        shots = draw_few_shot(source, images, seed=0, channels=preprocessing.input_size[0], at_most=True)
        sets.append(("real images", shots.tensor(preprocessing)))
    model = folder.load()
    session, one_by_one = (TorchSession(model, batch, device="cpu") for batch in (images, 1))
    return [
        Expected(
            what,
            inputs,
            session.infer(inputs),
            what == "real images",
            cache(partial(_at_bf16, folder, inputs)),
            one_by_one.infer(inputs[:ALONE]),
        )
        for what, inputs in sets
    ]


def _at_bf16(folder: ModelFolder, images: Tensor) -> Tensor:
    return TorchSession(folder.load(), len(images), "bf16", device="cpu").infer(images)


def _random_images(preprocessing: Preprocessing, images: int) -> Tensor:
    """Random pixels, normalised: a graph that takes pixels can be given the same ones."""
    channels, height, width = preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, channels, height, width), generator=generator)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocessing.mean, preprocessing.std))
    return (pixels / 255 - mean) / std
