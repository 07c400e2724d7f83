"""Engines that go to their file while they are built: in memory an engine is as large as the weights once more."""

from pathlib import Path
from typing import Any

from dcvit.runtimes import flavors
from dcvit.variant import Flavor


class BuilderToFile:
    """A TensorRT builder whose engine is a file, to give to polygraphy in place of the builder itself.

    Args:
        builder: The `IBuilder`.
        flavor: Whose it is.
        path: The file to write.
    """

    def __init__(self, builder: Any, flavor: Flavor, path: Path) -> None:
        self._builder, self._flavor, self._path = builder, flavor, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network(self, network: Any, config: Any) -> Path | None:
        """Builds and writes.

        Returns:
            The file; None if TensorRT cannot build.

        Raises:
            OSError: If the file cannot be written.
        """
        with self._path.open("wb") as file:
            if not hasattr(self._builder, "build_serialized_network_to_stream"):  # an older TensorRT
                engine = self._builder.build_serialized_network(network, config)
                if engine is not None:
                    file.write(memoryview(engine))
                return self._path if engine is not None else None
            writer = _writer_to(file, self._flavor)
            built = self._builder.build_serialized_network_to_stream(network, config, writer)
            if writer.error is not None:
                raise writer.error
            return self._path if built else None


def _writer_to(file: Any, flavor: Flavor) -> Any:
    """TensorRT's stream writer; the first part that cannot be written is its `error`, since none may pass TensorRT."""

    class Writer(flavors.load(flavor).IStreamWriter):  # type: ignore[misc]  # the package is known when it runs
        def __init__(self) -> None:
            super().__init__()
            self.error: OSError | None = None

        def write(self, part: Any) -> int:
            if self.error is None:
                try:
                    return int(file.write(part))
                except OSError as error:
                    self.error = error
            return 0

    return Writer()
