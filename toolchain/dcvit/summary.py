"""A plan in figures: what it costs before and after."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from dcvit.cost import count_macs, count_params
from dcvit.families import family_of
from dcvit.model import build
from dcvit.plan import CompressionPlan, MacsConvention


@dataclass(frozen=True)
class PlanSummary:
    """What a plan makes of its model, per image.

    Attributes:
        plan: The plan.
        macs_before: MACs of the model that was given.
        tokens: Tokens that each block works on.
        blocks_compressed: k, the blocks without attention, or removed as a whole.
        mlp_hidden: M', where all compressed blocks keep the same width; else None.
        note: What a reader must know beside the figures.
        latency: What a table of latencies predicts, where one was asked: `before_ms`, `after_ms`, and of what.
    """

    plan: CompressionPlan
    convention: MacsConvention
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    tokens: list[int]
    blocks_compressed: int
    mlp_hidden: int | None
    note: str = ""
    latency: dict[str, Any] | None = None

    @property
    def macs_reduction(self) -> float:
        """Share of the MACs that is gone."""
        return 1 - self.macs_after / self.macs_before

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.plan.model,
            "macs_convention": self.convention,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "macs_reduction": self.macs_reduction,
            "params_before": self.params_before,
            "params_after": self.params_after,
            "tokens": self.tokens,
            "blocks_compressed": self.blocks_compressed,
            "mlp_hidden": self.mlp_hidden,
            "plan": self.plan.model_dump(mode="json", exclude_defaults=True),
            "plan_digest": self.plan.digest,
            "note": self.note,
            **({} if self.latency is None else {"predicted_latency": self.latency}),
        }

    def lines(self) -> Iterable[Any]:
        yield f"{self.plan.model}, per image, MACs in the '{self.convention}' convention"
        table = Table()
        for column in ("", "before", "after", "change"):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row("MACs", _si(self.macs_before), _si(self.macs_after), f"−{self.macs_reduction:.2%}")
        share = 1 - self.params_after / self.params_before
        table.add_row("parameters", _si(self.params_before), _si(self.params_after), f"−{share:.2%}")
        yield table
        if self.blocks_compressed:
            whole = sum(block.removed == "block" for block in self.plan.blocks)
            parts = [f"{whole} blocks removed"] if whole else []
            if without := self.blocks_compressed - whole:
                width = "widths of their own" if self.mlp_hidden is None else f"{self.mlp_hidden} MLP nodes"
                parts.append(f"{without} blocks without attention, with {width}")
            yield "; ".join(parts)
        kept = [block for block in self.plan.blocks if not block.removed]
        heads, mlps = ([getattr(block, name) for block in kept] for name in ("head_dim", "mlp_hidden"))
        narrowed = [*_widths("heads", "channels", heads), *_widths("MLPs", "nodes", mlps)]
        if narrowed:
            yield "narrower: " + "; ".join(narrowed)
        yield "tokens per block: " + " ".join(str(count) for count in self.tokens)
        if self.plan.trims_last_block:
            yield "the last block works out its prefix tokens alone"
        if found := self.latency:
            yield (
                f"predicted: {found['before_ms']:.3g} → {found['after_ms']:.3g} ms (×{found['speedup']:.3f}), batch "
                f"{found['batch']}, {found['runtime']} {found['precision']}"
            )
        if self.note:
            yield self.note


def _widths(what: str, units: str, widths: Sequence[int | None]) -> list[str]:
    """How wide those are that a plan narrows, in words; nothing where it narrows none."""
    given = sorted(width for width in widths if width is not None)
    if not given:
        return []
    extent = f"{given[0]}" if given[0] == given[-1] else f"{given[0]} to {given[-1]}"
    return [f"{what} of {len(given)} blocks ({extent} {units})"]


def summarize(
    plan: CompressionPlan, before: CompressionPlan, convention: MacsConvention = "full", note: str = ""
) -> PlanSummary:
    """Counts a plan against the one it started from, without data or weights.

    Raises:
        InputError: If the plan does not fit its model.
    """
    original = build(plan.original(), device="meta")
    family = family_of(original)
    size = family.architecture(original).input_size
    old, new = build(before, device="meta"), build(plan, device="meta")
    compressed = [block for block in plan.blocks if block.removed]
    widths = {block.mlp_hidden for block in compressed}
    return PlanSummary(
        plan=plan,
        convention=convention,
        macs_before=count_macs(old, size, convention).total,
        macs_after=count_macs(new, size, convention).total,
        params_before=count_params(old),
        params_after=count_params(new),
        tokens=family.tokens(original, plan),
        blocks_compressed=len(compressed),
        mlp_hidden=widths.pop() if len(widths) == 1 else None,
        note=note,
    )


def _si(number: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3f} {unit}"
    return str(number)
