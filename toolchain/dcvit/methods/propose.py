"""From a target to what a method has to do: the part that needs neither data nor weights."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dcvit.cost import MacsConvention, count_macs
from dcvit.errors import InputError
from dcvit.methods.structure import Structure, UnitCost, solve_structure, solve_width, unit_cost
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.subject import Subject, original_of
from dcvit.summary import PlanSummary, summarize


class Target(BaseModel):
    """What the user wants.

    Attributes:
        macs_reduction: Share of the given model's MACs to remove, merges included.
        macs_convention: How MACs are counted.
        width_multiple: MLP widths are multiples of this; 1 reproduces the paper.
        merge: A merge schedule, as `horizontal@4,vertical@8`.
        size_aware: Let attention know how many patches a merged token stands for.
        plan: A plan that fixes everything (or, with a reduction, the start).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    macs_reduction: float | None = Field(default=None, gt=0, lt=1)
    macs_convention: MacsConvention = "full"
    width_multiple: int = Field(default=8, ge=1)
    merge: str | None = None
    size_aware: bool = False
    plan: CompressionPlan | None = None


Unit = tuple[int, ...]
"""Blocks that are compressed together."""


@dataclass(frozen=True)
class Proposal:
    """What is to be done to a subject.

    Attributes:
        base: The plan before any block is chosen: the start, with the merges and the blocks that are fixed.
        structure: How many more units to compress, and how wide; None where the target fixes everything.
        costs: What each candidate unit costs under the base plan.
        hidden: MLP width M of an uncompressed block.
        macs: MACs that the chosen units have to save.
        width_multiple: MLP widths are multiples of this.
    """

    base: CompressionPlan
    structure: Structure | None = None
    costs: dict[Unit, UnitCost] = field(default_factory=dict)
    hidden: int = 0
    macs: float = 0.0
    width_multiple: int = 8

    @property
    def candidates(self) -> list[Unit]:
        """Units that may be compressed, in the order of the depth."""
        return list(self.costs)

    def entries(self, unit: Unit, mlp_hidden: int | None) -> list[BlockPlan]:
        """Plan entries of one compressed unit; without a width, whole blocks go."""
        removed: Literal["attention", "block"] = "block" if mlp_hidden is None else "attention"
        return [BlockPlan(index=index, removed=removed, mlp_hidden=mlp_hidden) for index in unit]

    def chosen(self, ranked: list[Unit]) -> list[list[BlockPlan]]:
        """Plan entries for the first k of `ranked` units, at the width that meets the target for these very units.

        Where units cost differently, those k may save too little: then the next ones join.
        """
        if self.structure is None:
            return []
        for count in range(self.structure.units, len(ranked) + 1):
            units = ranked[:count]
            costs = [self.costs[unit] for unit in units]
            if self.structure.mlp_hidden is None:
                if sum(cost.removed for cost in costs) >= self.macs * (1 - 1e-9):
                    return [self.entries(unit, None) for unit in units]
                continue
            width = solve_width(costs, self.hidden, self.macs, self.width_multiple)
            if width is not None:
                return [self.entries(unit, width) for unit in units]
        raise InputError("--macs-reduction: not even all candidate blocks together save that much")

    def spread_out(self) -> list[Unit]:
        """The candidates in an order that takes units evenly over the depth: a stand-in where nothing was tried."""
        count = self.structure.units if self.structure else 0
        step = len(self.candidates) / max(count, 1)
        first = [self.candidates[int((position + 0.5) * step)] for position in range(count)]
        return first + [unit for unit in self.candidates if unit not in first]


def propose(subject: Subject, target: Target) -> Proposal:
    """Works out what a target asks of a model.

    Raises:
        InputError: If the target says nothing, does not fit the model, or is out of reach (the range is given).
    """
    base = _base_plan(subject, target)
    if target.macs_reduction is None:
        if base == subject.plan:
            raise InputError("nothing to do: give --macs-reduction, --merge or --plan")
        return Proposal(base)
    size, convention = subject.architecture.input_size, target.macs_convention
    total = count_macs(build(subject.plan, device="meta"), size, convention).total
    count = count_macs(build(base, device="meta"), size, convention)
    macs = target.macs_reduction * total - (total - count.total)
    if macs <= 0:
        return Proposal(base)
    original = original_of(subject.plan)
    free = [unit for unit in subject.family.units(original) if all(_untouched(base, block) for block in unit)]
    if not free:
        raise InputError("--macs-reduction: the plan leaves no block that could be compressed")
    costs = {unit: unit_cost(count, subject.family, original, unit) for unit in free}
    hidden = subject.architecture.blocks[free[0][0]].mlp_hidden
    structure = solve_structure(list(costs.values()), hidden, macs, total, target.width_multiple)
    return Proposal(base, structure, costs, hidden, macs, target.width_multiple)


def _untouched(plan: CompressionPlan, block: int) -> bool:
    return plan.block(block) == BlockPlan(index=block)


def summarize_proposal(subject: Subject, target: Target, proposal: Proposal) -> PlanSummary:
    """The proposal in figures; which blocks are compressed is a stand-in until trials have chosen them."""
    entries = [entry for unit in proposal.chosen(proposal.spread_out()) for entry in unit]
    note = ""
    if entries:
        listed = ", ".join(str(entry.index) for entry in sorted(entries, key=lambda entry: entry.index))
        note = f"Trials on your images choose the blocks; the figures are for blocks {listed}."
    return summarize(proposal.base.with_blocks(*entries), subject.plan, target.macs_convention, note)


def _base_plan(subject: Subject, target: Target) -> CompressionPlan:
    base = subject.plan
    if target.plan is not None:
        if (target.plan.model, target.plan.original().digest) != (base.model, base.original().digest):
            raise InputError(
                f"--plan is for {target.plan.model} {target.plan.model_kwargs or ''}, the model is {base.model} "
                f"{base.model_kwargs or ''}"
            )
        if not base.is_identity:
            raise InputError("--plan starts from an uncompressed model, and MODEL is a compressed one")
        base = target.plan
    if target.merge is not None:
        if base.merges:
            raise InputError("--merge: tokens merge already in the model or plan that was given")
        merges, operator = parse_merges(target.merge)
        if not merges:
            raise InputError("--merge names no merge; write AXIS@BLOCK, such as horizontal@4,vertical@8")
        base = base.replace(merges=merges, merge_operator=operator)
    if target.size_aware:
        if not base.merges:
            raise InputError("--size-aware needs merged tokens; give --merge")
        base = base.replace(size_aware_attention=True)
    return base
