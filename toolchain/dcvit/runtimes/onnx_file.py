"""What the runtimes of ONNX files have in common."""

from abc import abstractmethod
from pathlib import Path

from dcvit.folder.model_folder import ModelFolder
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes.base import Artifact, Runtime, Session
from dcvit.variant import Precision, Variant


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

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        self.require(variant.precision)
        source = variant.at(self.source(variant.precision))
        return folder.file(source.onnx_name, made_by=source.export_command(folder.path))

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        return self.open_file(self.file(folder, variant), variant.precision, folder.manifest.preprocessing)
