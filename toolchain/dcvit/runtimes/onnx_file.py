"""What the runtimes of ONNX files have in common."""

from abc import abstractmethod
from pathlib import Path

from dcvit.folder.model_folder import ModelFolder
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes.base import Artifact, Runtime, Session
from dcvit.variant import Precision, export_command, onnx_name


class OnnxFileRuntime(Runtime):
    """A runtime that reads ONNX files.

    Attributes:
        title: Its name in reports.
    """

    artifact: Artifact = "onnx"
    title: str

    @abstractmethod
    def open_file(self, path: Path, precision: Precision, preprocessing: Preprocessing | None = None) -> Session:
        """Loads an ONNX file.

        Args:
            path: A file of the precision `source(precision)`.
            precision: Of the computation.
            preprocessing: How images were normalised; needed for a file that takes pixels.

        Raises:
            InputError: If it cannot be loaded.
        """

    def file(self, folder: ModelFolder, batch: int, precision: Precision, *, with_preprocessing: bool = False) -> Path:
        self.require(precision)
        source = self.source(precision)
        made_by = export_command(folder.path, batch, source, with_preprocessing=with_preprocessing)
        return folder.file(onnx_name(batch, source, with_preprocessing=with_preprocessing), made_by=made_by)

    def open(
        self, folder: ModelFolder, batch: int, precision: Precision, *, with_preprocessing: bool = False
    ) -> Session:
        path = self.file(folder, batch, precision, with_preprocessing=with_preprocessing)
        return self.open_file(path, precision, folder.manifest.preprocessing)
