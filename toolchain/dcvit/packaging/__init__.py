"""What a server needs of a model folder: the file, its configuration, the labels, and a client that prepares images."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dcvit.errors import InputError, WriteError
from dcvit.files import whole_folder, writing
from dcvit.folder.model_folder import ModelFolder, require_free
from dcvit.packaging.client import client_for
from dcvit.packaging.packed import Packed, choose
from dcvit.packaging.readme import readme_for
from dcvit.packaging.triton import config_of
from dcvit.runtimes.openvino import OpenVino, imported
from dcvit.runtimes.tensorrt import stale
from dcvit.variant import Batch, Precision

__all__ = ["PackageResult", "Server", "package"]

Server = Literal["triton", "onnxruntime", "tensorrt", "openvino"]


@dataclass(frozen=True)
class PackageResult:
    """A folder that was written.

    Attributes:
        server: What it is for.
        packed: What went into it.
        files: Their paths below `out`.
    """

    out: Path
    server: Server
    packed: Packed
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {
            "for": self.server,
            "out": str(self.out),
            "onnx": self.packed.file,
            "batch": "dynamic" if self.packed.record.dynamic else self.packed.record.batch,
            "precision": self.packed.record.precision,
            "labels": len(self.packed.labels),
            "files": list(self.files),
        }

    def lines(self) -> Iterable[Any]:
        """What was taken, and each file."""
        yield f"{self.out}, for {self.server}: {self.packed.file} of {self.packed.folder}"
        yield from (f"  {name}" for name in self.files)
        if not self.packed.labels:
            yield "the folder does not know the names of its classes, so there is no labels file"


def package(
    folder: ModelFolder | Path | str,
    server: Server,
    out: Path | str,
    *,
    batch: Batch | None = None,
    precision: Precision | None = None,
    with_preprocessing: bool = False,
    overwrite: bool = False,
) -> PackageResult:
    """Writes a folder that a server, or a program with a runtime, starts from.

    Args:
        folder: A model folder with an ONNX file.
        server: What to write it for.
        out: The folder to write.
        batch: Of the file to take; None takes the one that leaves it open, else the last one that was exported.
        precision: Of the file to take.
        with_preprocessing: Take a file of pixels, uint8 [B, H, W, C].
        overwrite: Replace what stands at `out`.

    Raises:
        InputError: If the folder has no such file, the package to convert it is not installed, or `out` is taken.
    """
    if server not in get_args(Server):
        raise InputError(f"--for {server}: choose {', '.join(get_args(Server))}")
    out = Path(out)
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    if ModelFolder.is_one(out):
        raise InputError(f"-o {out} is a model folder; choose another one")
    if not overwrite:
        require_free(out, overwrite=False)
    elif out.is_dir() and any(out.iterdir()) and not (out / "client.py").is_file():
        raise InputError(f"-o {out} was not written by this command, so --overwrite will not replace it")
    packed = choose(folder, batch, precision, with_preprocessing=with_preprocessing, for_engine=server == "tensorrt")
    with writing(out), whole_folder(out, overwrite=overwrite) as new:
        _WRITERS[server](packed, new)
        (new / "client.py").write_text(client_for(server, packed), encoding="utf-8")
        (new / "README.md").write_text(readme_for(server, packed), encoding="utf-8")
        files = tuple(sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()))
    return PackageResult(out, server, packed, files)


def _onnxruntime(packed: Packed, new: Path) -> None:
    _copy(packed, new)
    _write_labels(packed, new)


def _tensorrt(packed: Packed, new: Path) -> None:
    _copy(packed, new)
    _write_labels(packed, new)
    for name, engine in packed.engines.items():
        if stale(packed.folder_opened, engine) is None:
            shutil.copyfile(packed.path.with_name(name), new / f"model.{engine.flavor}.engine")


def _triton(packed: Packed, new: Path) -> None:
    model = new / packed.name
    (model / "1").mkdir(parents=True)
    _copy(packed, model / "1")
    _write_labels(packed, model)
    (model / "config.pbtxt").write_text(config_of(packed), encoding="utf-8")


def _openvino(packed: Packed, new: Path) -> None:
    if reason := OpenVino().unavailable():
        raise InputError(f"--for openvino: {reason}")
    openvino = imported()
    model = openvino.convert_model(str(packed.path))
    try:
        openvino.save_model(model, str(new / "model.xml"), compress_to_fp16=False)
    except RuntimeError as error:  # it has no errno of what the system said
        if "iostream" not in str(error):
            raise
        raise WriteError(f"{new.parent} cannot be written to by OpenVINO; is the disk full?") from error
    _write_labels(packed, new)


_WRITERS: dict[Server, Callable[[Packed, Path], None]] = {
    "triton": _triton,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "openvino": _openvino,
}


def _copy(packed: Packed, place: Path) -> None:
    """The graph, and its weights under the name that it has for them."""
    shutil.copyfile(packed.path, place / "model.onnx")
    if packed.weights is not None:
        shutil.copyfile(packed.weights, place / packed.weights.name)


def _write_labels(packed: Packed, place: Path) -> None:
    if packed.labels:
        (place / "labels.txt").write_text("".join(f"{label}\n" for label in packed.labels), encoding="utf-8")
