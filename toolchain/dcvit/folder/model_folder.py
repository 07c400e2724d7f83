"""The model folder: all that export, verify, evaluate, bench and report know of a compressed model."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dcvit.errors import InputError, WriteError, first_line
from dcvit.files import aside, finish, require_utf8, restore, sha256_of, sync, whole_file, whole_folder, writing
from dcvit.folder.lock import adding
from dcvit.folder.manifest import FileEntry, Manifest
from dcvit.folder.pending import is_pending, pending_path, settle
from dcvit.model import build, check_finite
from dcvit.plan import CompressionPlan

PLAN = "plan.json"
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"

_ATTEMPTS, _PAUSE_SECONDS = 3, 0.1
"""To open a folder that others change at the same time, without the permission to write there."""


class ModelFolder:
    """A compressed model on disk. Opening one checks the sha256 of every file in it.

    Attributes:
        path: Where it is.
        plan: What the model is.
        manifest: Where it comes from, and its files.
    """

    manifest: Manifest

    def __init__(self, path: Path | str) -> None:
        """Opens a folder.

        Raises:
            InputError: If it is no model folder, or a file in it is missing or not the one that was written.
        """
        self.path = Path(path)
        require_utf8(path)
        restore(self.path)
        if not (self.path / MANIFEST).is_file():
            raise InputError(
                f"{self.path} is not a model folder (it has no {MANIFEST}); `dcvit-tool compress` makes one"
            )
        self._open()
        self.plan = CompressionPlan.read(self.path / PLAN)
        if self.plan.digest != self.manifest.plan_digest:
            raise InputError(f"{self.path / PLAN} is not the plan of this folder's {MANIFEST}; compress again")

    @staticmethod
    def is_one(path: Path | str) -> bool:
        """Whether there is a model folder at the path (its files are not checked)."""
        return (Path(path) / MANIFEST).is_file()

    @classmethod
    def create(
        cls,
        path: Path | str,
        model: nn.Module,
        plan: CompressionPlan,
        manifest: Manifest,
        *,
        overwrite: bool = False,
        texts: Mapping[str, str] = MappingProxyType({}),
    ) -> "ModelFolder":
        """Writes a new folder, whole or not at all; `overwrite` replaces whatever stands at the path.

        Args:
            path: Where.
            model: Of the plan, with the weights to keep.
            plan: What the model is.
            manifest: Where it comes from; its files and the plan's digest are filled in.
            overwrite: Replace what stands at the path.
            texts: More files of the folder, by name.

        Raises:
            InputError: If something stands at the path and `overwrite` is not set.
            WriteError: If the disk is full, or the place may not be written to.
        """
        path = Path(path)
        if not overwrite:
            require_free(path, overwrite=False)
        with writing(path), whole_folder(path, overwrite=overwrite) as new:
            (new / PLAN).write_text(plan.to_json(), encoding="utf-8")
            save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, new / WEIGHTS)
            finish(new / WEIGHTS)  # it is written for its owner alone
            manifest.plan_digest = plan.digest
            for name, text in texts.items():
                (new / name).write_text(text, encoding="utf-8")
            manifest.files = {name: _entry(new / name) for name in (PLAN, WEIGHTS, *texts)}
            (new / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return cls(path)

    def load(self) -> nn.Module:
        """Builds the model with its weights, in evaluation mode.

        Its `pretrained_cfg` says what it really takes and gives: timm's is of the name that it was made from. Its
        `compression_plan` is the folder's plan.

        Raises:
            InputError: If the weights do not fit the plan, or one is not finite.
        """
        model = build(self.plan)
        try:
            model.load_state_dict(load_file(self.path / WEIGHTS))
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.path / WEIGHTS} does not fit {PLAN}: {first_line(error)}") from error
        check_finite(model.state_dict(), str(self.path / WEIGHTS))
        configuration = self._configuration(model)
        vars(model).update(pretrained_cfg=configuration, default_cfg=configuration, compression_plan=self.plan)
        return model

    def _configuration(self, model: nn.Module) -> dict[str, Any]:
        of_timm: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        found = {name: value for name, value in of_timm.items() if not name.startswith("test_")}
        found |= self.manifest.preprocessing.model_dump()
        classes = getattr(model, "num_classes", None) if self.plan.head is None else self.plan.head.num_classes
        found |= {} if classes is None else {"num_classes": classes}
        return found if self.manifest.classes is None else found | {"label_names": self.manifest.classes}

    def add(
        self,
        name: str,
        write: Callable[[Path], None],
        export: dict[str, object] | None = None,
        beside: Collection[str] = (),
    ) -> Path:
        """Adds or replaces a file, and its entry in the manifest: both or neither, whenever the process is killed.

        Args:
            name: The file's name in the folder.
            write: Called with the path to write to, while no other process changes the folder and `manifest` is as on
                disk: what depends on other files of the folder can be read there.
            export: What to note under `exports` about an ONNX file or an engine.
            beside: Names of files that belong to it. Those that `write` makes beside its path come along, in the same
                step; those that it does not make are taken out.

        Raises:
            InputError: If another model has taken the folder's place meanwhile.
            WriteError: If the disk is full, or the folder may not be written to; it is as it was.
        """
        path = self.path / name
        with self._changing(), writing(path), aside(path) as place:
            write(place / name)
            for each in (name, *beside):
                if (place / each).exists():
                    finish(place / each)
                    entry = _entry(place / each)
                    (place / each).replace(pending_path(self.path, each, entry.sha256))
                    self.manifest.files[each] = entry
                else:
                    self._take_out(each)
            sync(self.path)
            if export is not None:
                self.manifest.exports[name] = export
            self._write_manifest()
        return path

    def remove(self, names: Iterable[str]) -> None:
        """Takes files out of the folder, and their entries out of the manifest; those that are not there are none.

        Raises:
            InputError: If another model has taken the folder's place meanwhile.
            WriteError: If the folder may not be written to; it is as it was.
        """
        with self._changing():
            gone = [name for name in names if name in self.manifest.files]
            for name in gone:
                self._take_out(name)
            if gone:
                self._write_manifest()

    def _take_out(self, name: str) -> None:
        entry = self.manifest.files.pop(name, None)
        self.manifest.exports.pop(name, None)
        if entry is not None:
            with suppress(FileNotFoundError):
                (self.path / name).replace(pending_path(self.path, name, entry.sha256))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around a change: alone in the folder, the manifest as it is on disk, and what is pending settled after it."""
        before = self.manifest
        with writing(self.path), adding(self.path):
            self._settle()
            if _identity(self.manifest) != _identity(before):
                self.manifest = before
                raise InputError(f"{self.path} was replaced by another model while this ran; run it again")
            try:
                yield
            finally:
                self._settle()

    def _settle(self) -> None:
        self.manifest = self._read()
        settle(self.path, self.manifest.files)

    def _write_manifest(self) -> None:
        with whole_file(self.path / MANIFEST) as new:
            new.write_text(self.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _read(self) -> Manifest:
        path = self.path / MANIFEST
        try:
            return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError, InputError) as error:
            raise InputError(f"{path} cannot be read: {first_line(error)}") from error

    def _open(self) -> None:
        """Reads the manifest and checks the files; where another process is changing them, as they are after that."""
        problem = self._problem()
        if problem is None:
            return
        try:
            with adding(self.path):
                self._settle()
                problem = self._problem()
        except WriteError as error:  # whoever changes it may have the permission that is missing here
            for _ in range(_ATTEMPTS):
                time.sleep(_PAUSE_SECONDS)
                if (problem := self._problem()) is None:
                    return
            if is_pending(self.path, self.manifest.files):
                problem = f"{self.path}: a change of its files was cut off and is to be finished, but {error}"
        if problem is not None:
            raise InputError(problem)

    def file(self, name: str, *, made_by: str) -> Path:
        """The path of a file that must be there.

        Raises:
            InputError: If it is not; `made_by` is the command that makes it.
        """
        if name not in self.manifest.files:
            raise InputError(f"{self.path} has no {name}; make it with `{made_by}`")
        return self.path / name

    def _problem(self) -> str | None:
        """Reads the manifest; gives what is wrong with the first of the files that are not as it says."""
        self.manifest = self._read()
        for name, entry in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                return f"{path} is missing, though {MANIFEST} lists it; compress or export again"
            if sha256_of(path) != entry.sha256:
                return f"{path} has changed since it was written (its sha256 is not the one in {MANIFEST})"
        return None


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


def _identity(manifest: Manifest) -> tuple[str, FileEntry | None]:
    return manifest.plan_digest, manifest.files.get(WEIGHTS)
