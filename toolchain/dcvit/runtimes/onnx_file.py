"""What the runtimes of ONNX files have in common."""

from abc import abstractmethod
from pathlib import Path

from dcvit.folder.model_folder import ModelFolder
from dcvit.preprocessing import Preprocessing
from dcvit.runtimes.base import Artifact, Runtime, Session
from dcvit.variant import DEFAULT_BATCH, Precision, Variant


class OnnxFileRuntime(Runtime):
    """A runtime that reads ONNX files.

    Attributes:
        title: Its name in reports.
        fixed_batch: Whether it runs files of a fixed batch only.
    """

    artifact: Artifact = "onnx"
    title: str
    fixed_batch = False

    @abstractmethod
    def open_file(
        self,
        path: Path,
        precision: Precision,
        preprocessing: Preprocessing | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Session:
        """Loads an ONNX file.

        Args:
            path: A file of the precision `source(precision)`.
            precision: Of the computation.
            preprocessing: How images were normalised; needed for a file that takes pixels.
            batch: Images at once, for a file that takes any number.

        Raises:
            InputError: If it cannot be loaded.
        """

    def file(self, folder: ModelFolder, variant: Variant) -> Path:
        self.require(variant.precision)
        source = variant.at(self.source(variant.precision))
        exact, any_batch = source.onnx_name, source.of_any_batch().onnx_name
        files = folder.manifest.files
        fallback = exact not in files and any_batch in files and not self.fixed_batch
        return folder.file(any_batch if fallback else exact, made_by=source.export_command(folder.path))

    def open(self, folder: ModelFolder, variant: Variant) -> Session:
        path = self.file(folder, variant)
        return self.open_file(path, variant.precision, folder.manifest.preprocessing, variant.batch)
