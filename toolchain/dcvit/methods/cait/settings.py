"""Settings of CAIT: how widths and merges are chosen, how channels are pruned, and how long it trains."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcvit.errors import InputError
from dcvit.subject import Subject
from dcvit.training.recipe import TrainingRecipe

SETTLING = 1.5
"""Masks are final once the steps left are this many times those in which a row of norm 1 vanishes."""

WidthSearch = Literal["refit", "cdcp"]


class CdcpSettings(BaseModel):
    """How channels are pruned while a model trains.

    Attributes:
        shrink: Norm that a masked row would lose over the whole run, λ: it vanishes within 1/λ of the steps. This does
            not follow the learning rate, whose fall to 0 would let rows that are masked late never vanish.
        warmup: Share of the steps before the first unit is masked.
        every: Steps between re-rankings, T.
        reached_by: Share of the steps by which the masked model meets the target; in between it is approached linearly.
        width_multiple: WidthSearch are multiples of this.
        keep_heads: Only MLPs are narrowed.
        min_head_dim: Channels that every head keeps at least.
        min_mlp_hidden: Nodes that every MLP keeps at least.
        vanish_norm: A masked row below this norm is set to zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shrink: float = Field(default=8.0, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    every: int = Field(default=20, ge=1)
    reached_by: float = Field(default=0.6, gt=0, lt=1)
    width_multiple: int = Field(default=8, ge=1)
    keep_heads: bool = False
    min_head_dim: int = Field(default=8, ge=1)
    min_mlp_hidden: int = Field(default=8, ge=1)
    vanish_norm: float = Field(default=1e-4, ge=0)

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


class CaitSettings(BaseModel):
    """How a model is merged, pruned and trained.

    Attributes:
        prune: Whether widths change; without it merges have to meet the target alone.
        widths: `refit` narrows heads and MLPs by measured damage before the training, and removes attention where that
            does less; `cdcp` prunes them while the model trains, as the paper does. None refits classifiers that are
            still whole.
        merge_share: Share of the MACs to be removed that chosen merges take, with `cdcp` or where there are no images
            to weigh merges against widths; all, where widths do not change.
        trim: Whether the last block leaves out what no head reads, which changes no logit.
        labels: Whether the images' labels are used; None uses them where there are any.
        training: Optimiser, augmentation and length.
        pruning: When and how fast channels are pruned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["cait"] = "cait"
    prune: bool = True
    widths: WidthSearch | None = None
    merge_share: float = Field(default=2 / 3, gt=0, le=1)
    trim: bool = True
    labels: bool | None = None
    training: TrainingRecipe = TrainingRecipe()
    pruning: CdcpSettings = CdcpSettings()

    def share(self, macs_reduction: float) -> float:
        """What of a share of the MACs merges take where nothing says more."""
        return macs_reduction * (self.merge_share if self.prune else 1.0)

    def refits(self, subject: Subject) -> bool:
        """Whether widths are found and refitted before the training.

        Raises:
            InputError: If that is asked for, and the model has no logits to measure damage on.
        """
        able = subject.plan.task == "classification" and not subject.plan.blocks
        if self.widths == "refit" and not able:
            raise InputError("--widths refit needs a classifier that is still whole; give --widths cdcp")
        return self.prune and self.widths != "cdcp" and able


PAPER = CaitSettings(widths="cdcp", trim=False)
"""CAIT with nothing but what its paper has."""
