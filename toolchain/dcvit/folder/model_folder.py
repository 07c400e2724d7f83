"""The model folder: all that export, verify, evaluate, bench and report know of a compressed model."""

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dcvit.errors import InputError, first_line
from dcvit.files import sha256_of, whole_file, whole_folder
from dcvit.folder.manifest import FileEntry, Manifest
from dcvit.model import build
from dcvit.plan import CompressionPlan

PLAN = "plan.json"
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


class ModelFolder:
    """A compressed model on disk. Opening one checks the sha256 of every file in it.

    Attributes:
        path: Where it is.
        plan: What the model is.
        manifest: Where it comes from, and its files.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens a folder.

        Raises:
            InputError: If it is no model folder, or a file in it is missing or not the one that was written.
        """
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise InputError(
                f"{self.path} is not a model folder (it has no {MANIFEST}); `dcvit-tool compress` makes one"
            )
        try:
            self.manifest = Manifest.model_validate_json((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path / MANIFEST} cannot be read: {first_line(error)}") from error
        for name in self.manifest.files:
            self._check(name)
        self.plan = CompressionPlan.read(self.path / PLAN)
        if self.plan.digest != self.manifest.plan_digest:
            raise InputError(f"{self.path / PLAN} is not the plan of this folder's {MANIFEST}; compress again")

    @staticmethod
    def is_one(path: Path | str) -> bool:
        """Whether there is a model folder at the path (its files are not checked)."""
        return (Path(path) / MANIFEST).is_file()

    @classmethod
    def create(
        cls, path: Path | str, model: nn.Module, plan: CompressionPlan, manifest: Manifest, *, overwrite: bool = False
    ) -> "ModelFolder":
        """Writes a new folder, whole or not at all; `overwrite` replaces whatever stands at the path.

        Raises:
            InputError: If something stands at the path and `overwrite` is not set.
        """
        path = Path(path)
        if not overwrite:
            require_free(path, overwrite=False)
        with whole_folder(path, overwrite=overwrite) as aside:
            (aside / PLAN).write_text(plan.to_json(), encoding="utf-8")
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside / WEIGHTS)
            manifest.plan_digest = plan.digest
            manifest.files = {name: _entry(aside / name) for name in (PLAN, WEIGHTS)}
            (aside / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return cls(path)

    def load(self) -> nn.Module:
        """Builds the model with its weights, in evaluation mode.

        Raises:
            InputError: If the weights do not fit the plan.
        """
        model = build(self.plan)
        try:
            model.load_state_dict(load_file(self.path / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise InputError(f"{self.path / WEIGHTS} does not fit {PLAN}: {first_line(error)}") from error
        return model

    def add(self, name: str, write: Callable[[Path], None], export: dict[str, object] | None = None) -> Path:
        """Adds or replaces a file, and its entry in the manifest.

        Args:
            name: The file's name in the folder.
            write: Called with the path to write to.
            export: What to note under `exports` about an ONNX file or an engine.
        """
        with whole_file(self.path / name) as aside:
            write(aside)
        self.manifest.files[name] = _entry(self.path / name)
        if export is not None:
            self.manifest.exports[name] = export
        self._write_manifest()
        return self.path / name

    def remove(self, names: Iterable[str]) -> None:
        """Takes files out of the folder, and their entries out of the manifest; those that are not there are none."""
        gone = [name for name in names if name in self.manifest.files]
        for name in gone:
            del self.manifest.files[name]
            self.manifest.exports.pop(name, None)
        if gone:
            self._write_manifest()
        for name in gone:
            (self.path / name).unlink()

    def _write_manifest(self) -> None:
        with whole_file(self.path / MANIFEST) as aside:
            aside.write_text(self.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def file(self, name: str, *, made_by: str) -> Path:
        """The path of a file that must be there.

        Raises:
            InputError: If it is not; `made_by` is the command that makes it.
        """
        if name not in self.manifest.files:
            raise InputError(f"{self.path} has no {name}; make it with `{made_by}`")
        return self.path / name

    def _check(self, name: str) -> None:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{path} is missing, though {MANIFEST} lists it; compress or export again")
        if sha256_of(path) != self.manifest.files[name].sha256:
            raise InputError(f"{path} has changed since it was written (its sha256 is not the one in {MANIFEST})")


def require_free(path: Path, *, overwrite: bool) -> None:
    """Checks, before any work is done, that an output folder may be written.

    Raises:
        InputError: If something stands there and may not be replaced, or it lies below a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; the output is a folder")
    if path.exists() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"{path} exists; pass --overwrite to replace it, or choose another output folder")
        if not ModelFolder.is_one(path):
            raise InputError(f"{path} is not a model folder, so --overwrite will not replace it; choose another one")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{path} cannot be made: {parent} is a file")
            break


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
