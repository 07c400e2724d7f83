"""What the user wants, whichever method is to reach it."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dcvit.errors import InputError
from dcvit.plan import CompressionPlan, MacsConvention

NO_MERGES = "none"
"""Instead of a schedule: no token merges."""


class Target(BaseModel):
    """What the user wants.

    Attributes:
        macs_reduction: Share of the given model's MACs to remove, merges included.
        speedup: How many times faster than the uncompressed model, as measured, instead of a share of the MACs.
        runtime: That the speed-up is measured in; None takes ONNX Runtime on the CPU.
        macs_convention: How MACs are counted.
        width_multiple: Widths of heads and MLPs are multiples of this; 1 reproduces the paper.
        keep_heads: No attention head loses channels.
        merge: A merge schedule, as `horizontal@4,vertical@8`.
        size_aware: Let attention know how many patches a merged token stands for; None: where nothing is trained.
        trim_last_block: Let the last block work on the prefix tokens alone, which leaves the logits as they are; None:
            where the method does so by itself, and the head allows it.
        plan: A plan that fixes everything (or, with a reduction, the start).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs_reduction: float | None = Field(default=None, gt=0, lt=1)
    speedup: float | None = Field(default=None, gt=1)
    runtime: str | None = None
    macs_convention: MacsConvention = "full"
    width_multiple: int = Field(default=8, ge=1)
    keep_heads: bool = False
    merge: str | None = None
    size_aware: bool | None = None
    trim_last_block: bool | None = None
    plan: CompressionPlan | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.speedup is not None and self.macs_reduction is not None:
            raise InputError("--speedup and --macs-reduction exclude each other; give one of them")
        if self.runtime is not None and self.speedup is None:
            raise InputError("--runtime says where --speedup is measured; give --speedup too")
        return self

    def at(self, macs_reduction: float | None) -> "Target":
        """The same with this share of the MACs to remove, and no speed-up."""
        return self.model_copy(update={"macs_reduction": macs_reduction, "speedup": None, "runtime": None})

    def resolved(self, *, trained: bool) -> "Target":
        """The same with `size_aware` decided for the merges that it asks for; a plan's own stay as the plan says.

        Weights that are trained with merged tokens can learn to do without; untrained ones lose less with it.
        """
        if self.size_aware is not None or self.merge is None:
            return self
        return self.model_copy(update={"size_aware": not trained})
