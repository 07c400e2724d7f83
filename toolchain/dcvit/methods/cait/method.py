"""CAIT, as the registry lists it."""

from typing import TYPE_CHECKING, ClassVar

from dcvit.methods.base import Method
from dcvit.methods.cait.settings import CaitSettings
from dcvit.plan import Task

if TYPE_CHECKING:
    from dcvit.methods.run import Compressor, Run
    from dcvit.methods.target import Target
    from dcvit.subject import Subject
    from dcvit.summary import PlanSummary


class Cait(Method[CaitSettings]):
    """CAIT (arXiv 2309.15755), with widths and merges that images choose, or as published."""

    name = "cait"
    title = "CAIT (token merging and channel pruning)"
    about = "merging and pruning in a full training"
    settings = CaitSettings
    recovery = "train"
    samples = None
    no_use: ClassVar[frozenset[str]] = frozenset({"latency_table"})
    tasks: ClassVar[frozenset[Task]] = frozenset({"classification", "segmentation"})
    trains_heads: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False  # the last block is trimmed in any case, and a new head is trained

    def summarize(self, subject: "Subject", target: "Target", settings: CaitSettings) -> "PlanSummary":
        from dcvit.methods.cait.proposal import summarize_jointly

        return summarize_jointly(subject, target, settings)

    def compressor(self, run: "Run", settings: CaitSettings) -> "Compressor[CaitSettings]":
        from dcvit.methods.cait.compressor import CaitCompressor

        return CaitCompressor(run, settings)
