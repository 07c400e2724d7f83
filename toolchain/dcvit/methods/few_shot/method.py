"""The few-shot methods, as the registry lists them."""

from typing import TYPE_CHECKING, ClassVar

from dcvit.methods.base import Method
from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
from dcvit.plan import Task

if TYPE_CHECKING:
    from dcvit.methods.run import Compressor, Run
    from dcvit.methods.target import Target
    from dcvit.subject import Subject
    from dcvit.summary import PlanSummary

NO_USE = frozenset({"checkpoint_minutes", "tensorboard"})


class DcVit(Method[SearchSettings]):
    """DC-ViT (arXiv 2403.18708) with our solver, or as published."""

    name = "dcvit"
    title = "DC-ViT (few-shot block compression)"
    about = "few-shot block compression"
    settings = SearchSettings
    recovery = "mimic"
    tasks: ClassVar[frozenset[Task]] = frozenset({"classification", "segmentation"})
    no_use: ClassVar[frozenset[str]] = NO_USE
    paper_target: ClassVar[dict[str, object]] = {"macs_convention": "dcvit", "width_multiple": 1}

    def summarize(self, subject: "Subject", target: "Target", settings: SearchSettings) -> "PlanSummary":
        from dcvit.methods.few_shot.figures import summarize

        return summarize(subject, target, settings)

    def compressor(self, run: "Run", settings: SearchSettings) -> "Compressor[SearchSettings]":
        from dcvit.methods.few_shot.search import DcVitCompressor

        return DcVitCompressor(run, settings)


class Practise(Method[PractiseSettings]):
    """PRACTISE (arXiv 2202.07861): whole blocks go."""

    name = "practise"
    title = "PRACTISE (dropped blocks)"
    about = "its baseline, which drops whole blocks"
    settings = PractiseSettings
    recovery = "mimic"
    no_use: ClassVar[frozenset[str]] = NO_USE | {"trim_last_block", "min_head_dim", "keep_heads", "latency_table"}
    paper_target: ClassVar[dict[str, object]] = {"macs_convention": "dcvit", "width_multiple": 1}

    def summarize(self, subject: "Subject", target: "Target", settings: PractiseSettings) -> "PlanSummary":  # noqa: ARG002
        from dcvit.methods.few_shot.practise import summarize

        return summarize(subject, target)

    def compressor(self, run: "Run", settings: PractiseSettings) -> "Compressor[PractiseSettings]":
        from dcvit.methods.few_shot.practise import PractiseCompressor

        return PractiseCompressor(run, settings)
