"""The verbs of the command line as functions; `import dcvit` gives them all."""

from pathlib import Path

from dcvit.bench import benchmark
from dcvit.compression import compress
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.inspection import inspect
from dcvit.pricing import latency
from dcvit.reporting import report
from dcvit.types import TimmModule
from dcvit.verification import verify

__all__ = ["benchmark", "compress", "evaluate", "export", "frontier", "inspect", "latency", "load", "report", "verify"]


def load(folder: str | Path) -> TimmModule:
    """Loads a compressed model, in evaluation mode: a timm module with `forward`, `forward_features`, `forward_head`.

    Raises:
        InputError: If there is no model folder at the path, or a file in it has changed.
    """
    return ModelFolder(folder).load()
