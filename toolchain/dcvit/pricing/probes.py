"""Small models whose latencies say what a block costs: each differs from one of few blocks in one way.

A block's cost in place is what matters: fused with its neighbours, behind the merges, in the precision of the file. So
nothing is timed alone. A probe is a model of the same architecture, few blocks deep where all blocks are equal; in it
several blocks have the same cut, and what it is faster by, divided by their number, is what one such cut saves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dcvit.errors import InputError
from dcvit.families import Architecture, BlockSpec, Family
from dcvit.plan import Axis, BlockPlan, CompressionPlan, Merge, MergeOperator
from dcvit.subject import Subject, original_of

Kind = Literal["attention", "heads", "mlp", "block"]
"""What is cut: attention goes, heads or the MLP are narrower, or the block goes."""

DEPTH = 4
"""Blocks of a probe, where a model of equal blocks can be made shallower: the first stays whole."""

HEADS = (3 / 4, 1 / 2, 1 / 4)
MLPS = (3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 32)
"""Widths that are timed, as shares of the original; what lies between is interpolated."""

HEADS_MERGED = (1 / 2, 1 / 4)
MLPS_MERGED = (1 / 2, 1 / 8)
"""The same where tokens have merged: fewer, for the steps in time are those of the widths."""

MOST_MERGES = 3
"""Merges that are timed on top of each other; what more of them leave is interpolated."""

LEAST_HEAD_DIM = 8
"""Channels that heads are timed down to."""


@dataclass(frozen=True)
class Style:
    """How tokens merge, as far as it decides a latency; `axes` are the merges that are timed on top of each other."""

    axes: tuple[Axis, ...] = ()
    operator: MergeOperator = "mean"
    size_aware: bool = False

    @property
    def name(self) -> str:
        """`none`, or such as `mean, size-aware`."""
        if not self.axes:
            return "none"
        return f"{self.operator}{', size-aware' if self.size_aware else ''}"


@dataclass(frozen=True)
class Probe:
    """One model to be timed.

    Attributes:
        plan: What it is.
        group: Of the blocks that are cut.
        level: Merges in front of them.
        kind: The cut; None where there is none.
        width: Channels or nodes that stay; 0 where all goes.
        blocks: How many have the cut.
    """

    plan: CompressionPlan
    group: int = 0
    level: int = 0
    kind: Kind | None = None
    width: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class Group:
    """Blocks that cost the same.

    Attributes:
        blocks: Their indices in the whole model.
        probed: Indices of those that probes cut.
        spec: Their widths.
        tokens: That they work on, by the number of merges in front.
    """

    blocks: tuple[int, ...]
    probed: tuple[int, ...]
    spec: BlockSpec
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Design:
    """All that is timed for one model.

    Attributes:
        base: The probe that all others are compared with.
        groups: Blocks of equal cost.
        bare: For each number of merges, the probe whose blocks behind them are whole.
        cuts: The probes with cuts.
        trimmed: The base, whose last block works on the prefix tokens alone; None where it cannot.
        whole: Plans of the whole model, the uncompressed one first, that the sums are corrected by.
    """

    base: Probe
    groups: tuple[Group, ...]
    bare: tuple[Probe, ...]
    cuts: tuple[Probe, ...]
    trimmed: Probe | None
    whole: tuple[CompressionPlan, ...]

    @property
    def probes(self) -> list[Probe]:
        """All that are compared with the base."""
        return [*self.bare[1:], *self.cuts, *([] if self.trimmed is None else [self.trimmed])]


def design(subject: Subject, style: Style, multiple: int = 8) -> Design:
    """What has to be timed to know the cost of every cut of a model.

    Args:
        subject: Shapes are enough; its plan's own cuts do not count.
        style: How tokens merge.
        multiple: Widths that are timed are multiples of this.

    Raises:
        InputError: If the architecture cannot merge as asked.
    """
    whole = subject.plan.original()
    family = subject.family
    short = _shallow(whole, subject) or whole
    groups = _groups(family, subject.architecture, whole, short)
    base = Probe(short)
    bare = [base]
    for count in range(1, len(style.axes) + 1):
        plan = _merged(short, style, count)
        family.check(original_of(short), plan)
        bare.append(Probe(plan, level=count))
    tokens = [family.tokens(original_of(short), probe.plan) for probe in bare]
    groups = tuple(
        Group(group.blocks, group.probed, group.spec, tuple(each[group.probed[-1]] for each in tokens))
        for group in groups
    )
    cuts = [
        Probe(probe.plan.with_blocks(*_cut(group, kind, width)), number, level, kind, width, len(group.probed))
        for level, probe in enumerate(bare)
        for number, group in enumerate(groups)
        for kind, width in _wanted(family, group.spec, multiple, merged=level > 0)
    ]
    return Design(base, groups, tuple(bare), tuple(cuts), _trimmed(family, short), _whole_plans(family, whole, subject))


def _shallow(whole: CompressionPlan, subject: Subject) -> CompressionPlan | None:
    """The model with fewer blocks; None where blocks differ or timm does not make it so."""
    specs = subject.architecture.blocks
    if whole.head is not None or len(set(specs)) > 1 or len(specs) <= DEPTH:
        return None
    if len(set(subject.family.tokens(original_of(whole), whole))) > 1:
        return None
    try:
        short = whole.replace(model_kwargs=whole.model_kwargs | {"depth": DEPTH})
        found = subject.family.architecture(original_of(short))
    except (InputError, TypeError):
        return None
    return short if found.blocks == specs[:DEPTH] else None


def _groups(
    family: Family, architecture: Architecture, whole: CompressionPlan, short: CompressionPlan
) -> tuple[Group, ...]:
    tokens = family.tokens(original_of(whole), whole)
    kinds: dict[Any, list[int]] = {}
    for index, spec in enumerate(architecture.blocks):
        kinds.setdefault((spec, tokens[index]), []).append(index)
    if short != whole:
        ((spec, count),) = kinds
        return (Group(tuple(range(len(tokens))), tuple(range(1, DEPTH)), spec, (count,)),)
    return tuple(
        Group(tuple(blocks), tuple(_behind_merges(blocks)), spec, (count,)) for (spec, count), blocks in kinds.items()
    )


def _behind_merges(blocks: Sequence[int]) -> Iterator[int]:
    """All but the first block of the model, in front of which nothing can merge."""
    rest = [index for index in blocks if index > 0]
    yield from rest or blocks


def _merged(plan: CompressionPlan, style: Style, count: int) -> CompressionPlan:
    merges = tuple(Merge(after=1, axis=axis) for axis in style.axes[:count])
    return plan.replace(merges=merges, merge_operator=style.operator, size_aware_attention=style.size_aware)


def _wanted(family: Family, spec: BlockSpec, multiple: int, *, merged: bool) -> Iterator[tuple[Kind, int]]:
    yield "block", 0
    if spec.head_dim and "attention" not in family.refuses and family.removes == "attention":
        yield "attention", 0
    if spec.head_dim and "head_dim" not in family.refuses:
        for width in _widths(spec.head_dim, HEADS_MERGED if merged else HEADS, min(multiple, LEAST_HEAD_DIM)):
            yield "heads", width
    if spec.mlp_hidden and "mlp_hidden" not in family.refuses:
        for width in _widths(spec.mlp_hidden, MLPS_MERGED if merged else MLPS, multiple):
            yield "mlp", width


def _widths(whole: int, shares: Sequence[float], multiple: int) -> list[int]:
    widths = {max(multiple, round(whole * share / multiple) * multiple) for share in shares}
    return sorted((width for width in widths if width < whole), reverse=True)


def _cut(group: Group, kind: Kind, width: int) -> Iterator[BlockPlan]:
    for index in group.probed:
        if kind == "heads":
            yield BlockPlan(index=index, head_dim=width)
        elif kind == "mlp":
            yield BlockPlan(index=index, mlp_hidden=width)
        else:
            yield BlockPlan(index=index, removed=kind)


def _trimmed(family: Family, short: CompressionPlan) -> Probe | None:
    if short.head is not None:
        return None
    plan = short.replace(trims_last_block=True)
    try:
        family.check(original_of(short), plan)
    except InputError:
        return None
    return Probe(plan)


def _whole_plans(family: Family, whole: CompressionPlan, subject: Subject) -> tuple[CompressionPlan, ...]:
    """The uncompressed model, and two with cuts of every kind, each in some blocks."""
    plans = [whole]
    for phase in (0, 1):
        entries = []
        for index, spec in enumerate(subject.architecture.blocks):
            step = (index + phase) % 3
            if step == 0 and spec.mlp_hidden and "mlp_hidden" not in family.refuses:
                share = 2 if phase else 4
                entries.append(BlockPlan(index=index, mlp_hidden=max(8, spec.mlp_hidden // share // 8 * 8)))
            elif step == 1 and phase and spec.head_dim >= 2 * LEAST_HEAD_DIM and "head_dim" not in family.refuses:
                entries.append(BlockPlan(index=index, head_dim=spec.head_dim // 2 // 8 * 8))
            elif step == 2 and not phase and family.removes == "attention" and "attention" not in family.refuses:
                entries.append(BlockPlan(index=index, removed="attention"))
        if entries:
            plans.append(whole.with_blocks(*entries))
    return tuple(plans)
