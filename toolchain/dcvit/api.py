"""The verbs of the command line as functions; `import dcvit` gives them all."""

from dcvit.bench import benchmark
from dcvit.compression import compress
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.frontiers import frontier
from dcvit.inspection import inspect
from dcvit.loading import load, save
from dcvit.packaging import package
from dcvit.pricing import latency
from dcvit.reporting import report
from dcvit.verification import verify

__all__ = [
    "benchmark",
    "compress",
    "evaluate",
    "export",
    "frontier",
    "inspect",
    "latency",
    "load",
    "package",
    "report",
    "save",
    "verify",
]
