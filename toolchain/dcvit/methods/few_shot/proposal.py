"""From a target to what a method has to do: the part that needs neither data nor weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dcvit.cost import count_macs
from dcvit.errors import InputError, TargetError
from dcvit.families import BlockSpec
from dcvit.methods.cuts.choices import MIN_HEAD_DIM
from dcvit.methods.few_shot.allocate import NO_BLOCK, BlockWidths, Price
from dcvit.methods.few_shot.prices import BlockPrice
from dcvit.methods.few_shot.structure import Structure, UnitCost, solve_structure, solve_width, unit_cost
from dcvit.methods.target import Reach, Target
from dcvit.model import build
from dcvit.plan import BlockPlan, CompressionPlan, MacsConvention, parse_merges
from dcvit.pricing.table import LatencyTable
from dcvit.subject import Subject, original_of

Unit = tuple[int, ...]
"""Blocks that are compressed together."""


@dataclass(frozen=True)
class Proposal:
    """What is to be done to a subject.

    Attributes:
        base: The plan before any block is chosen: the start, with the merges and the blocks that are fixed.
        wanted: What further cuts have to save: MACs, or milliseconds (`priced`); 0 where `base` meets the target.
        total: What the given model costs.
        saved: What `base` saves of it.
        least: What it would save with a last block that is not trimmed: that is done for targets from `saved` on.
        units: What each unit that may be compressed costs under the base plan. Of a unit whose MLP is narrower than
            `whole` already, `narrowed` is what one as wide would cost, and `removed` is less by the difference.
        blocks: What the cuts of each block save that may be cut; those of no unit may only be narrowed.
        narrower_heads: Those whose heads may lose channels.
        whole: Widths of the widest block of a unit.
        widths: Of each block that may be cut, as it is; 0 for an attention that is gone.
        width_multiple: MLP widths are multiples of this.
        min_head_dim: Channels that every head keeps at least.
        macs_convention: How MACs were counted.
    """

    base: CompressionPlan
    wanted: float = 0.0
    total: float = 0
    saved: float = 0
    least: float = 0
    units: dict[Unit, UnitCost] = field(default_factory=dict)
    blocks: Mapping[int, Price] = field(default_factory=dict)
    narrower_heads: tuple[int, ...] = ()
    whole: BlockWidths = NO_BLOCK
    widths: dict[int, BlockWidths] = field(default_factory=dict)
    width_multiple: int = 8
    min_head_dim: int = MIN_HEAD_DIM
    macs_convention: MacsConvention = "full"

    def removing(self, share: float) -> "Proposal":
        """The same for a share of what the model costs.

        Raises:
            InputError: If `base` saves less and leaves nothing to compress.
        """
        wanted = share * self.total - self.saved
        if wanted <= 0:
            return Proposal(self.base, width_multiple=self.width_multiple)
        if not self.blocks:
            raise InputError("--macs-reduction: the plan leaves no block that could be compressed")
        return replace(self, wanted=wanted)

    def check_units(self) -> None:
        """Raises InputError if no block is left to be compressed as a unit; MLPs may still be narrowed."""
        if not self.units:
            raise InputError(
                "--macs-reduction: the plan leaves no block with attention that could be compressed; the solver (the "
                "default search of --method dcvit) and --method cait can still narrow MLPs"
            )

    def structure(self) -> Structure:
        """How many units DC-ViT compresses, and to which width.

        Raises:
            InputError: If the target is out of its reach; the message gives the range.
        """
        self.check_units()
        return solve_structure(
            list(self.units.values()), self.whole.mlp_hidden, self.wanted, self.total, self.width_multiple, self.saved
        )

    def reach(self) -> Reach:
        """Shares of the cost that DC-ViT's structure can remove, those that `base` removes included."""
        self.check_units()
        costs = list(self.units.values())
        narrowest = 1 - self.width_multiple / self.whole.mlp_hidden if self.whole.mlp_hidden else 0.0
        least = sum(cost.removed for cost in costs) / len(costs)
        most = sum(cost.removed + cost.narrowed * narrowest for cost in costs)
        return Reach((self.saved + max(least, 0.0)) / self.total, (self.saved + most) / self.total)

    def trials(self) -> list[list[BlockPlan]]:
        """Plan entries of every unit, each compressed to the width of the structure."""
        width = self.structure().mlp_hidden
        return [self._entries(unit, width) for unit in self.units]

    def chosen(self, ranked: list[Unit]) -> list[list[BlockPlan]]:
        """Plan entries for the first k of `ranked` units, at the width that meets the target for these very units.

        Where units cost differently, those k may save too little: then the next ones join.
        """
        structure = self.structure()
        for count in range(structure.units, len(ranked) + 1):
            units = ranked[:count]
            costs = [self.units[unit] for unit in units]
            if structure.mlp_hidden is None:
                if sum(cost.removed for cost in costs) >= self.wanted * (1 - 1e-9):
                    return [self._entries(unit, None) for unit in units]
                continue
            width = solve_width(costs, self.whole.mlp_hidden, self.wanted, self.width_multiple)
            if width is not None:
                return [self._entries(unit, width) for unit in units]
        raise TargetError("--macs-reduction: not even all candidate blocks together save that much")

    def spread_out(self) -> list[Unit]:
        """The units in an order that takes them evenly over the depth: a stand-in where nothing was tried."""
        candidates, count = list(self.units), self.structure().units
        first = [candidates[int((position + 0.5) * len(candidates) / count)] for position in range(count)]
        return first + [unit for unit in candidates if unit not in first]

    def _entries(self, unit: Unit, mlp_hidden: int | None) -> list[BlockPlan]:
        """Plan entries of one compressed unit; without a width, whole blocks go."""
        if mlp_hidden is None:
            return [BlockPlan(index=index, removed="block") for index in unit]
        return [
            BlockPlan(index=index, removed="attention", mlp_hidden=min(mlp_hidden, self.widths[index].mlp_hidden))
            for index in unit
        ]


def propose(subject: Subject, target: Target) -> Proposal:
    """Works out what a target asks of a model.

    Raises:
        InputError: If the target says nothing or does not fit the model.
    """
    if target.measured:
        raise InputError(f"{target.measured} has to be measured; `dcvit-tool compress` does so")
    if target.max_drop is not None:
        raise InputError("--max-drop has to be measured; `dcvit-tool compress` does so")
    if target.macs_reduction is not None:
        return survey(subject, target).removing(target.macs_reduction)
    base = _base_plan(subject, target)
    if base == subject.plan:
        raise InputError("nothing to do: give --macs-reduction, --merge or --plan")
    return Proposal(base, width_multiple=target.width_multiple)


def survey(subject: Subject, target: Target) -> Proposal:
    """What can be compressed and what it costs, whatever the reduction; `Proposal.removing` sets one.

    Raises:
        InputError: If the target's plan or merges do not fit the model.
    """
    base = _base_plan(subject, target)
    size, convention = subject.architecture.input_size, target.macs_convention
    total = count_macs(build(subject.plan, device="meta"), size, convention).total
    count = count_macs(build(base, device="meta"), size, convention)
    least = total - count.total
    if base.trims_last_block and not subject.plan.trims_last_block:
        plain = build(base.replace(trims_last_block=False), device="meta")
        least = total - count_macs(plain, size, convention).total
    original = original_of(subject.plan)

    def cost(unit: Unit) -> UnitCost:
        found = unit_cost(count, subject.family, original, unit)
        return replace(found, heads=0.0) if target.keep_heads else found

    widths = {
        index: _widths(spec, base.block(index))
        for index, spec in enumerate(subject.architecture.blocks)
        # What the user's own plan says of a block stays; what an earlier compression did to it may go on.
        if base.block(index) == subject.plan.block(index) and base.block(index).removed != "block"
    }
    able = {index for index, now in widths.items() if now.head_dim or subject.family.removes == "block"}
    blocks = {index: cost((index,)) for index in widths}
    units = [unit for unit in subject.family.units(original) if set(unit) <= able]
    whole = max((widths[unit[0]] for unit in units), key=lambda now: now.mlp_hidden, default=NO_BLOCK)
    return Proposal(
        base=base,
        total=total,
        saved=total - count.total,
        least=least,
        units={unit: _as_if_whole(cost(unit), widths[unit[0]], whole) for unit in units},
        blocks=blocks,
        narrower_heads=tuple(sorted(index for index, found in blocks.items() if found.heads)),
        whole=whole,
        widths=widths,
        width_multiple=target.width_multiple,
        min_head_dim=target.min_head_dim,
        macs_convention=target.macs_convention,
    )


def _widths(spec: BlockSpec, entry: BlockPlan) -> BlockWidths:
    """Of a block that follows a plan's entry."""
    head_dim = 0 if entry.removed == "attention" else entry.head_dim or spec.head_dim
    return BlockWidths(head_dim, entry.mlp_hidden or spec.mlp_hidden)


def _as_if_whole(cost: UnitCost, now: BlockWidths, whole: BlockWidths) -> UnitCost:
    """The costs of a unit so that all are narrowed from one width, whatever they have now.

    At any width w that narrows it, it saves what it did: n (1 − w / m) = N (1 − w / M) − (N − n), where N = n M / m. A
    width that does not narrow it saves more than this says, for it keeps its own.
    """
    if not cost.narrowed or now.mlp_hidden == whole.mlp_hidden:
        return cost
    narrowed = cost.narrowed * whole.mlp_hidden / now.mlp_hidden
    return replace(cost, removed=cost.removed - (narrowed - cost.narrowed), narrowed=narrowed)


def priced(proposal: Proposal, subject: Subject, table: LatencyTable) -> Proposal:
    """A survey in milliseconds of a runtime in place of MACs: what a cut saves depends on the tokens of its block.

    Args:
        proposal: Of `survey`, for any target.
        subject: The model.
        table: Of that model, whose style is that of the proposal's base plan.
    """
    original = original_of(subject.plan)
    total = table.predict(subject.plan, subject.family.tokens(original, subject.plan))
    base = proposal.base
    tokens = subject.family.tokens(original, base)
    plain = base if subject.plan.trims_last_block else base.replace(trims_last_block=False)
    prices = {index: BlockPrice.of(table, base, index, tokens[index]) for index in proposal.blocks}
    whole = proposal.whole

    def unit_cost(unit: Unit, counted: UnitCost) -> UnitCost:
        """As if time fell with the width in a line: what DC-ViT's structure and stand-ins are made from."""
        found = [prices[index] for index in unit]
        if not counted.narrowed:
            return UnitCost(sum(price.block() for price in found), 0.0)
        removed = sum(price.attention(0, whole.head_dim) for price in found)
        half = whole.mlp_hidden // 2
        return UnitCost(
            removed, sum(price.mlp(half, whole.mlp_hidden) for price in found) / (1 - half / whole.mlp_hidden)
        )

    return replace(
        proposal,
        total=total,
        saved=total - table.predict(base, tokens),
        least=total - table.predict(plain, tokens),
        units={unit: unit_cost(unit, counted) for unit, counted in proposal.units.items()},
        blocks=prices,
    )


def stand_in_notes(target: Target) -> list[str]:
    """What a reader of a plan that was made without images must know."""
    if target.merge is None or target.size_aware is not None:
        return []
    return [
        "Attention is not size-aware here, as where merges are trained; `compress --recover none` makes it so, at the "
        "same MACs."
    ]


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
    if target.size_aware and not base.merges:
        raise InputError("--size-aware needs merged tokens; give --merge")
    if target.size_aware is not None:
        base = base.replace(size_aware_attention=target.size_aware)
    if target.trim_last_block:
        if base.head is not None:
            raise InputError("--trim-last-block: a segmentation head reads every token")
        base = base.replace(trims_last_block=True)
        subject.family.check(original_of(subject.plan), base)
    return base
