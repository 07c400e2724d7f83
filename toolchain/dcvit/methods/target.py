"""What the user wants, whichever method is to reach it, and which part of it can be reached."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dcvit.errors import InputError, TargetError
from dcvit.flags import Flag
from dcvit.methods.presets import MadeFor
from dcvit.plan import CompressionPlan, MacsConvention
from dcvit.variant import DEFAULT_BATCH, FUSED_HEAD_DIM, Precision, Variant

NO_MERGES = "none"
"""Instead of a schedule: no token merges."""

ANY_MERGES = "auto"
"""Instead of a schedule: the one that does the least damage, beside the cuts that it leaves to be made."""

ANY_SHARE = 0.5
"""Where a survey of all shares asks for one."""

MEASURED = (
    "speedup", "latency", "max_drop", "runtime", "precision", "batch", "threads", "latency_table", "latency_reduction",
)  # fmt: skip
"""Fields of a target that say what is to be measured, and where."""

_MILLISECONDS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}


def _milliseconds(value: object) -> object:
    """`5ms`, `0.8 s`, or a number of milliseconds."""
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(ms|s|us|µs)?\s*", value) if isinstance(value, str) else None
    if found is None:
        return value
    try:
        return float(found[1]) * _MILLISECONDS[found[2] or "ms"]
    except ValueError:
        return value  # pydantic says what is wrong with it


_HOW = frozenset({"runtime", "precision", "batch", "threads", "latency_table", "macs_convention", "width_multiple",
                  "min_head_dim", "keep_heads", "size_aware", "made_for"})  # fmt: skip
"""Fields that ask for nothing by themselves."""


class Target(BaseModel):
    """What the user wants; a share of the MACs is of the given model's, and merges count for it.

    `latency_reduction`, the share of the latency that a table predicts, is what a search for a latency asks for on its
    way; users give a speed-up or a latency. `made_for` says which preset merges and share are of, and of which table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs_reduction: Annotated[float | None, Flag(metavar="R")] = Field(
        default=None, gt=0, lt=1, description="Share of the MACs to remove, e.g. 0.166."
    )
    speedup: Annotated[float | None, Flag(metavar="X")] = Field(
        default=None, gt=1, description="How many times faster, as measured here, instead of --macs-reduction."
    )
    latency: Annotated[float | None, BeforeValidator(_milliseconds), Flag(metavar="TIME")] = Field(
        default=None, gt=0, description="How long a batch may take, as measured here: 5ms, or 0.8s."
    )
    max_drop: Annotated[float | None, Flag(metavar="POINTS")] = Field(
        default=None,
        gt=0,
        lt=100,
        description="The smallest model that loses at most so many points of top-1 on images that were not fitted to, "
        "or without labels as many percent of the original's classes, instead of --macs-reduction.",
    )
    runtime: Annotated[str | None, Flag(default="onnxruntime")] = Field(
        default=None, description="That --speedup and --latency are measured in."
    )
    precision: Annotated[Precision | None, Flag(default="fp32")] = Field(
        default=None, description="The same: what it computes in."
    )
    batch: Annotated[int | None, Flag(default=str(DEFAULT_BATCH))] = Field(
        default=None, ge=1, description="The same: images in every batch."
    )
    threads: Annotated[int | None, Flag(default="all cores")] = Field(
        default=None, ge=1, description="The same: CPU threads."
    )
    latency_table: Annotated[Path | None, Flag(path="file")] = Field(
        default=None,
        description="Times that `dcvit-tool latency -o` wrote, on another machine if need be: the target is then met "
        "by what they predict, and nothing is measured here.",
    )
    latency_reduction: float | None = Field(default=None, gt=0, lt=1)
    made_for: MadeFor | None = None
    macs_convention: Annotated[MacsConvention, Flag()] = Field(
        default="full", description="Count every MAC, or as the DC-ViT paper does."
    )
    width_multiple: Annotated[int, Flag()] = Field(
        default=8, ge=1, description="Widths of heads and MLPs are multiples of this; 1 reproduces the papers."
    )
    min_head_dim: Annotated[int, Flag()] = Field(
        default=FUSED_HEAD_DIM,
        ge=1,
        description="Channels that every head keeps at least; fused attention on a GPU needs 16, a CPU gains from 8.",
    )
    keep_heads: Annotated[bool, Flag()] = Field(default=False, description="No attention head loses channels.")
    merge: Annotated[str | None, Flag()] = Field(
        default=None,
        description="Token merges: horizontal@4,vertical@8 (and ,linear for a trained operator, the default where "
        "merges are trained). 'auto': the schedule that harms least, beside the cuts that it leaves to be made; 'none' "
        "where a method chooses by itself, and should not.",
    )
    size_aware: Annotated[bool | None, Flag(default="where nothing is trained")] = Field(
        default=None, description="Attention knows how many patches a merged token stands for."
    )
    trim_last_block: Annotated[bool | None, Flag(off="--keep-last-block", default="where the method does so")] = Field(
        default=None,
        description="The last block works on the class token alone, where the head reads nothing else; the outputs "
        "stay as they are.",
    )
    plan: Annotated[CompressionPlan | None, Flag(metavar="FILE")] = Field(
        default=None, description="A plan to follow; with a target, to start from."
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [
            "--" + name.replace("_", "-")
            for name in ("macs_reduction", "speedup", "latency", "max_drop")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other; give one of them")
        for name in ("runtime", "precision", "batch", "threads", "latency_table"):
            if getattr(self, name) is not None and not self.measured and self.latency_reduction is None:
                option = "--" + name.replace("_", "-")
                raise InputError(f"{option} says where a latency is measured; give --speedup or --latency too")
        return self

    @property
    def measured(self) -> str | None:
        """The option that asks for a latency; None where the target is of MACs, or none."""
        if self.speedup is not None:
            return "--speedup"
        return None if self.latency is None else "--latency"

    @property
    def variant(self) -> Variant:
        """What is measured: batch and precision."""
        return Variant.of(self.batch or DEFAULT_BATCH, self.precision or "fp32")

    def at(self, macs_reduction: float | None) -> "Target":
        """The same with this share of the MACs to remove, and nothing to measure."""
        return self.model_copy(update={"macs_reduction": macs_reduction, **dict.fromkeys(MEASURED)})

    def priced(self, latency_reduction: float | None) -> "Target":
        """The same with this share of the latency to remove, as it is predicted there."""
        update = {"macs_reduction": None, "speedup": None, "latency": None, "latency_reduction": latency_reduction}
        return self.model_copy(update=update)

    @property
    def says_only_how(self) -> bool:
        """Whether no field asks for anything: no share, no speed, no merge, no plan."""
        asks = {name for name, value in self if value != type(self).model_fields[name].default} - _HOW
        if self.merge == NO_MERGES:
            asks -= {"merge"}
        return not asks

    def resolved(self, *, trained: bool) -> "Target":
        """The same with `size_aware` decided for the merges that it asks for; a plan's own stay as the plan says.

        Weights that are trained with merged tokens can learn to do without; untrained ones lose less with it.
        """
        if self.size_aware is not None or self.merge is None:
            return self
        return self.model_copy(update={"size_aware": not trained})


@dataclass(frozen=True)
class Reach:
    """Shares of what the given model costs that a method can remove.

    Attributes:
        least: The smallest beyond what merges and fixed cuts remove.
        most: The largest.
    """

    least: float
    most: float

    def check(self, macs_reduction: float, how: str) -> None:
        """Checks that a share is not more than can be removed.

        Raises:
            TargetError: If it is; the message gives the range, and in `how` what takes it.
        """
        if macs_reduction > self.most * (1 + 1e-9):
            raise self.refusal(macs_reduction, how)

    def refusal(self, macs_reduction: float, how: str) -> TargetError:
        """The error for a share that is not within reach."""
        least, most = math.ceil(self.least * 1e4 - 1e-6) / 1e4, math.floor(self.most * 1e4 + 1e-6) / 1e4
        return TargetError(
            f"--macs-reduction: {macs_reduction:.4f} is out of reach; {how} takes {least:.4f} to {most:.4f}",
            (self.least, self.most),
        )
