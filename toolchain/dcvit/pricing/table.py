"""What every cut of every block costs in milliseconds, and from it the latency of any plan."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.pricing.probes import MOST_MERGES, Kind, Style
from dcvit.variant import Precision

UNSURE = 0.15
"""A block whose price may be this share of it higher or lower was timed beside something else."""
OFF = 0.08
"""So does a whole model that the table misses by as much."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Time(_Frozen):
    """Milliseconds of one batch, with the 95 % interval that they were measured with."""

    ms: float
    low: float
    high: float

    @property
    def unsure(self) -> float:
        """Half the interval, as a share of the time."""
        return (self.high - self.low) / 2 / max(self.ms, 1e-12)


class Level(_Frozen):
    """What a block costs behind so many merges.

    Attributes:
        tokens: That it works on.
        block: Of the whole block.
        no_attention: Of one whose attention is gone; None where that cannot be.
        heads: By channels that each head keeps.
        mlp: By nodes that the MLP keeps.
    """

    tokens: int = Field(ge=1)
    block: Time
    no_attention: Time | None = None
    heads: dict[int, Time] = {}
    mlp: dict[int, Time] = {}

    def saved(self, kind: Kind, width: int, whole: int) -> float:
        """Milliseconds that a cut saves; linear between the widths that were timed, and behind the last of them.

        Never negative: a runtime that takes longer for a narrower layer is one that a plan cannot make use of.
        """
        if kind == "block":
            return max(self.block.ms, 0.0)
        if kind == "attention":
            return 0.0 if self.no_attention is None else max(self.block.ms - self.no_attention.ms, 0.0)
        timed = self.heads if kind == "heads" else self.mlp
        if not timed or width >= whole:
            return 0.0
        known = sorted(timed)
        saved = [self.block.ms - timed[each].ms for each in known] + [0.0]
        if width < known[0]:
            widths = [*known, whole]
            slope = (saved[0] - saved[1]) / (widths[1] - widths[0])
            return max(saved[0] + slope * (widths[0] - width), 0.0)
        return max(float(np.interp(width, [*known, whole], saved)), 0.0)


class BlockTimes(_Frozen):
    """Blocks that cost the same.

    Attributes:
        blocks: Their indices.
        head_dim: Channels of a whole head; 0 where there is none.
        mlp_hidden: Nodes of the whole MLP; 0 where there is none.
        levels: Their cost, by the number of merges in front.
    """

    blocks: tuple[int, ...]
    head_dim: int
    mlp_hidden: int
    levels: tuple[Level, ...] = Field(min_length=1)

    def saved(self, kind: Kind, width: int, tokens: int) -> float:
        """Milliseconds that a cut saves in a block that works on so many tokens.

        Per token a block's cost is linear in their number (attention is of every pair), and so is what it saves.
        """
        whole = self.head_dim if kind == "heads" else self.mlp_hidden
        known = sorted(self.levels, key=lambda level: level.tokens)
        per_token = [level.saved(kind, width, whole) / level.tokens for level in known]
        return float(np.interp(tokens, [level.tokens for level in known], per_token)) * tokens

    def saved_by(self, entry: BlockPlan, tokens: int) -> float:
        """Milliseconds that a plan's entry saves."""
        if entry.removed == "block":
            return self.saved("block", 0, tokens)
        mlp = 0.0 if entry.mlp_hidden is None else self.saved("mlp", entry.mlp_hidden, tokens)
        if entry.removed == "attention":
            return self.saved("attention", 0, tokens) + mlp
        return mlp + (0.0 if entry.head_dim is None else self.saved("heads", entry.head_dim, tokens))


class WholeModel(_Frozen):
    """A whole model that was timed, and what the table says of it."""

    plan: dict[str, Any]
    measured: Time
    predicted_ms: float


class Setting(_Frozen):
    """What a table holds for: the runtime as it is used, and the machine.

    Attributes:
        device: What computes, in words.
        threads: CPU threads; None on a GPU.
        machine: Kind of the machine (`Machine.kind`), or what another device calls itself.
        versions: Of what was used.
    """

    runtime: str
    precision: Precision
    batch: int = Field(ge=1)
    threads: int | None
    device: str
    machine: str
    versions: dict[str, str]


class LatencyTable(_Frozen):
    """The price of every cut of a model, in one runtime on one machine.

    Attributes:
        model: timm name.
        model_kwargs: Arguments of `timm.create_model`.
        setting: What it holds for.
        style: How tokens merge (`Style.name`).
        fixed_ms: Of everything but the blocks: patch embedding, norm, head.
        groups: What the blocks cost.
        merges_ms: What each merge on top of the others costs by itself.
        trimmed_ms: Of a last block that works on the prefix tokens alone, behind no merges; None where it cannot.
        scale: By which sums of blocks are corrected, so that they agree with whole models.
        whole: Whole models that were timed; the uncompressed one first.
        seconds: That measuring took.
    """

    schema_version: Literal[1] = 1
    model: str
    model_kwargs: dict[str, Any]
    setting: Setting
    style: str
    fixed_ms: float
    groups: tuple[BlockTimes, ...]
    merges_ms: tuple[float, ...] = ()
    trimmed_ms: float | None = None
    scale: float = 1.0
    whole: tuple[WholeModel, ...] = ()
    seconds: float = 0.0

    def group(self, block: int) -> BlockTimes:
        """What a block costs."""
        return next(group for group in self.groups if block in group.blocks)

    def predict(self, plan: CompressionPlan, tokens: Sequence[int]) -> float:
        """Latency of a plan of this model in ms.

        Args:
            plan: Of the same timm model and arguments.
            tokens: That each block works on (`Family.tokens`).
        """
        blocks = 0.0
        for index, count in enumerate(tokens):
            group = self.group(index)
            if plan.trims_last_block and index == len(tokens) - 1 and self.trimmed_ms is not None:
                # What is left of it is keys and values of every token.
                share = count / group.levels[0].tokens
                blocks += 0.0 if plan.block(index).removed == "block" else self.trimmed_ms * share
                continue
            blocks += group.saved("block", 0, count) - group.saved_by(plan.block(index), count)
        merges = sum(self.merges_ms[min(number, len(self.merges_ms) - 1)] for number in range(len(plan.merges)))
        return self.fixed_ms + merges + self.scale * blocks

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why prices of this table may be wrong, in words for a user; empty where the machine was quiet enough."""
        found = []
        for group in self.groups:
            worst = max(group.levels, key=lambda level: level.block.unsure)
            if worst.block.unsure > UNSURE:
                found.append(
                    f"a block ({_span(group.blocks)}) on {worst.tokens} tokens takes {worst.block.ms:.3g} ms, "
                    f"±{worst.block.unsure:.0%}"
                )
        missed = max((each.predicted_ms / each.measured.ms - 1 for each in self.whole), key=abs, default=0.0)
        if abs(missed) > OFF:
            found.append(f"a whole model is missed by {missed:+.0%}")
        return tuple(found)

    @property
    def warning(self) -> str:
        """One sentence of the doubts; empty where there are none."""
        if not self.doubts:
            return ""
        return (
            f"the latency table of {self.setting.runtime} {self.setting.precision} may be wrong: "
            f"{'; '.join(self.doubts)}. The machine was busy meanwhile; when it is quiet, measure again "
            "(`dcvit-tool latency --again`)"
        )

    def to_json(self) -> dict[str, Any]:
        """The table with `predicted_ms` and `measured_ms` of the whole model, and a row for each cut that was timed."""
        found = self.model_dump(mode="json")
        whole = self.whole[0] if self.whole else None
        return found | {
            "predicted_ms": None if whole is None else whole.predicted_ms,
            "measured_ms": None if whole is None else whole.measured.ms,
            "rows": list(self.rows()),
            "doubts": list(self.doubts),
        }

    def rows(self) -> Iterable[dict[str, Any]]:
        """`block` (the first of its kind), `cut`, `width`, `tokens`, and `ms` of a block that was cut so."""
        for group in self.groups:
            for level in group.levels:
                common = {"block": group.blocks[0], "tokens": level.tokens}
                yield common | {"cut": "none", "width": None, **level.block.model_dump()}
                if level.no_attention is not None:
                    yield common | {"cut": "attention", "width": 0, **level.no_attention.model_dump()}
                for kind, timed in (("heads", level.heads), ("mlp", level.mlp)):
                    for width, each in sorted(timed.items(), reverse=True):
                        yield common | {"cut": kind, "width": width, **each.model_dump()}

    def lines(self) -> Iterable[Any]:
        from rich.table import Table

        setting = self.setting
        threads = "" if setting.threads is None else f", {setting.threads} threads"
        merging = "" if self.style == "none" else f", merges: {self.style}"
        yield (
            f"{self.model}, batch {setting.batch}, {setting.runtime} {setting.precision}, {setting.device}{threads}"
            f"{merging}; ms of one block, and what a cut leaves of it"
        )
        table = Table()
        for column in ("blocks", "tokens", "cut", "keeps", "ms", "95 %", "of the block"):
            table.add_column(column, justify="left" if column in ("blocks", "cut") else "right")
        whole: Mapping[tuple[int, int], float] = {
            (group.blocks[0], level.tokens): level.block.ms for group in self.groups for level in group.levels
        }
        names = {group.blocks[0]: _span(group.blocks) for group in self.groups}
        for row in self.rows():
            share = row["ms"] / max(whole[row["block"], row["tokens"]], 1e-12)
            width = "" if row["width"] is None else str(row["width"])
            table.add_row(names[row["block"]], str(row["tokens"]), row["cut"], width, f"{row['ms']:.3f}",
                          f"{row['low']:.3f} to {row['high']:.3f}", f"{share:.0%}")  # fmt: skip
        yield table
        yield f"all but the blocks: {self.fixed_ms:.3f} ms"
        for number, each in enumerate(self.merges_ms):
            yield f"merge {number + 1}: {each:.3f} ms"
        if self.trimmed_ms is not None:
            yield f"a last block of the prefix tokens alone: {self.trimmed_ms:.3f} ms"
        for model in self.whole:
            miss = model.predicted_ms / model.measured.ms - 1
            what = "the whole model" if not model.plan.get("blocks") else "a cut model"
            yield f"{what}: {model.measured.ms:.2f} ms measured, {model.predicted_ms:.2f} predicted ({miss:+.1%})"
        yield f"measured in {self.seconds:.0f} s"
        if self.warning:
            yield self.warning


def _span(blocks: Sequence[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}–{blocks[-1]}"


def style_of(plan: CompressionPlan) -> Style:
    """How a plan's tokens merge."""
    if not plan.merges:
        return Style()
    return Style(
        tuple(merge.axis for merge in plan.merges)[:MOST_MERGES], plan.merge_operator, plan.size_aware_attention
    )
