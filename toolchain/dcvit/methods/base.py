"""What every method is given and gives."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dcvit.plan import CompressionPlan
from dcvit.summary import PlanSummary
from dcvit.types import TimmModule

Recover = Literal["mimic", "train", "none"]


@dataclass(frozen=True)
class Compressed:
    """A compressed model in memory.

    Attributes:
        summary: What the plan costs, before and after.
        metrics: What the run measured: scores in nats, losses, seconds, in all and by stage.
        texts: Files for the model folder, by name.
    """

    model: TimmModule
    summary: PlanSummary
    metrics: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> CompressionPlan:
        """What the model is."""
        return self.summary.plan
