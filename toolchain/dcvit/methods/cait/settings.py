"""Settings of CAIT: how widths and merges are chosen, how channels are pruned, and how long it trains."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcvit.errors import InputError
from dcvit.flags import Flag
from dcvit.methods.base import MethodSettings
from dcvit.training.recipe import TrainingRecipe

SETTLING = 1.5
"""Masks are final once the steps left are this many times those in which a row of norm 1 vanishes."""


class CdcpSettings(BaseModel):
    """How channels are pruned while a model trains; to which widths, the target says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shrink: float = Field(
        default=8.0,
        gt=0,
        description="Norm that a masked row would lose over the whole run, λ: it vanishes within 1/λ of the steps. "
        "This does not follow the learning rate, whose fall to 0 would let rows that are masked late never vanish.",
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps before the first unit is masked.")
    every: int = Field(default=20, ge=1, description="Steps between re-rankings, T.")
    reached_by: float = Field(
        default=0.6,
        gt=0,
        lt=1,
        description="Share of the steps by which the masked model meets the target; in between it is approached "
        "linearly.",
    )
    min_mlp_hidden: int = Field(default=8, ge=1, description="Nodes that every MLP keeps at least.")
    vanish_norm: float = Field(default=1e-4, ge=0, description="A masked row below this norm is set to zero.")

    @model_validator(mode="after")
    def _time_to_vanish(self) -> Self:
        if self.warmup >= self.reached_by:
            raise InputError(f"CDCP: warmup {self.warmup:g} must be less than reached_by {self.reached_by:g}")
        if self.shrink < SETTLING / (1 - self.reached_by):
            raise InputError(
                f"CDCP: with shrink {self.shrink:g} rows masked at {self.reached_by:g} of the steps do not vanish by "
                f"the end; take at least {SETTLING / (1 - self.reached_by):.3g}, or a smaller reached_by"
            )
        return self

    def goal(self, done: int, steps: int) -> float:
        """Share of the target that is masked after `done` of `steps` steps."""
        if done >= self._reached(steps):
            return 1.0
        return max((done / steps - self.warmup) / (self.reached_by - self.warmup), 0.0)

    def ranks_after(self, done: int, steps: int) -> bool:
        """Whether units are re-ranked after `done` of `steps` steps."""
        reached = self._reached(steps)
        final = max(steps * (1 - SETTLING / self.shrink), reached)
        return self.goal(done, steps) > 0 and done <= final and (done % self.every == 0 or done == reached)

    def _reached(self, steps: int) -> int:
        return math.ceil(self.reached_by * steps)


class CaitSettings(MethodSettings):
    """How a model is merged, pruned and trained.

    `refit` narrows heads and MLPs by measured damage before the training, and removes attention where that does less;
    `cdcp` prunes them while the model trains, as the paper does.
    """

    method: Literal["cait"] = "cait"
    prune: Annotated[bool, Flag()] = Field(
        default=True, description="Whether widths change; without it merges have to meet the target alone."
    )
    widths: Annotated[Literal["refit", "cdcp"] | None, Flag(default="refit; cdcp with a new head")] = Field(
        default=None,
        description="Find widths by measured damage and refit them before the training, or prune channels while it "
        "runs, as the paper does.",
    )
    narrow_at: Annotated[float, Flag(metavar="SHARE")] = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Narrow after so much of the training: until then the merged model trains as wide as it was; 1 "
        "narrows trained weights and trains no more. For --widths refit.",
    )
    merge_share: float = Field(
        default=2 / 3,
        gt=0,
        le=1,
        description="Share of the MACs to be removed that chosen merges take, with cdcp or where there are no images "
        "to weigh merges against widths; all, where widths do not change.",
    )
    trim: bool = Field(
        default=True, description="Whether the last block leaves out what no head reads, which changes no logit."
    )
    labels: Annotated[bool | None, Flag(default="labels if any")] = Field(
        default=None, description="Learn from labels, or from the uncompressed model alone."
    )
    training: TrainingRecipe = TrainingRecipe()
    pruning: CdcpSettings = CdcpSettings()

    @model_validator(mode="after")
    def _narrowed_once(self) -> Self:
        if self.narrow_at and self.widths == "cdcp":
            raise InputError("--narrow-at is for --widths refit; cdcp prunes all along the training")
        return self

    @classmethod
    def paper(cls) -> Self:
        """CAIT with nothing but what its paper has."""
        return cls(widths="cdcp", trim=False)

    def share(self, macs_reduction: float) -> float:
        """What of a share of the MACs merges take where nothing says more."""
        return macs_reduction * (self.merge_share if self.prune else 1.0)
