"""The channels that each block keeps, as bars over those of the uncompressed model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcvit.families import Architecture, Family
from dcvit.layers.token_grid import grids
from dcvit.plan import CompressionPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEPT, _GONE, _MERGE, _REMOVED, _UNCUT = "#1f5fa8", "#dbe3ec", "#c8691c", "#a02c2c", "#404040"


@dataclass(frozen=True)
class Bar:
    """One layer of one block: how wide it was, how wide it is, and whether it went altogether."""

    before: int
    after: int
    removed: bool
    heads: int | None = None

    @property
    def label(self) -> str:
        """The width; of attention as heads × head width."""
        return str(self.after) if self.heads is None else f"{self.heads}×{self.after // self.heads}"


def attention_bars(plan: CompressionPlan, architecture: Architecture) -> list[Bar]:
    """Attention channels of each block, heads × head width."""
    bars = []
    for index, spec in enumerate(architecture.blocks):
        entry = plan.block(index)
        kept = 0 if entry.removed else spec.num_heads * (entry.head_dim or spec.head_dim)
        bars.append(Bar(spec.num_heads * spec.head_dim, kept, entry.removed is not None, spec.num_heads))
    return bars


def mlp_bars(plan: CompressionPlan, architecture: Architecture) -> list[Bar]:
    """Hidden nodes of each block's MLP."""
    bars = []
    for index, spec in enumerate(architecture.blocks):
        entry = plan.block(index)
        gone = entry.removed == "block"
        bars.append(Bar(spec.mlp_hidden, 0 if gone else entry.mlp_hidden or spec.mlp_hidden, gone))
    return bars


def block_bars(plan: CompressionPlan, architecture: Architecture) -> list[Bar]:
    """Channels of whole blocks, for models that have neither attention nor MLPs."""
    bars = []
    for index, spec in enumerate(architecture.blocks):
        gone = plan.block(index).removed is not None
        bars.append(Bar(spec.embed_dim, 0 if gone else spec.embed_dim, gone))
    return bars


def draw_channels(plan: CompressionPlan, architecture: Architecture, family: Family) -> "Figure":
    """Two panels, attention and MLP (one for a ResNet), with removed layers crossed out and merges marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("MLP hidden nodes", mlp_bars(plan, architecture)),
        ("attention channels\n(heads × head width)", attention_bars(plan, architecture)),
    ]
    panels = [(name, bars) for name, bars in panels if any(bar.before for bar in bars)]
    panels = panels or [("block channels", block_bars(plan, architecture))]
    depth = architecture.depth
    figure = Figure(figsize=(max(6.0, 1.6 + 0.5 * depth), 0.9 + 2.3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0])
    for axis, (name, bars) in zip(axes, panels, strict=True):
        _draw_bars(axis, bars)
        axis.set_ylabel(name, fontsize=9)
    _mark_merges(axes, plan, architecture)
    axes[-1].set_xticks(range(depth))
    axes[-1].set_xlim(-0.6, depth - 0.4)
    axes[-1].set_xlabel("block", fontsize=9)
    figure.suptitle(f"{plan.model} ({family.name}): channels kept in each block", fontsize=10)
    figure.legend(handles=_legend(plan, [bar for _, bars in panels for bar in bars]), loc="outside lower center",
                  ncols=4, fontsize=8, frameon=False)  # fmt: skip
    return figure


def _draw_bars(axis: Any, bars: Sequence[Bar]) -> None:
    places = range(len(bars))
    axis.bar(places, [bar.before for bar in bars], width=0.8, color=_GONE)
    axis.bar(places, [bar.after for bar in bars], width=0.8, color=_KEPT)
    top = max(bar.before for bar in bars)
    for place, bar in enumerate(bars):
        if bar.removed:
            axis.plot(place, max(0.5 * bar.before, 0.08 * top), "x", color=_REMOVED, markersize=11, markeredgewidth=2)
            continue
        narrowed = bar.after < bar.before
        color, weight = (_KEPT, "bold") if narrowed else (_UNCUT, "normal")
        axis.annotate(bar.label, (place, bar.after), xytext=(0, 2), textcoords="offset points", ha="center",
                      fontsize=7, color=color, weight=weight)  # fmt: skip
    axis.set_ylim(0, 1.14 * top)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _mark_merges(axes: Sequence[Any], plan: CompressionPlan, architecture: Architecture) -> None:
    """A line between the two blocks, with the grid before and after."""
    before = list(grids(architecture.grid, plan.merges, architecture.depth))
    for position in sorted({merge.after for merge in plan.merges}):
        for axis in axes:
            axis.axvline(position - 0.5, color=_MERGE, linestyle="--", linewidth=1.2)
        height, width = before[position].shape
        axes[0].annotate(f"{height}×{width}", (position - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, 1),
                         textcoords="offset points", fontsize=7, color=_MERGE, va="bottom")  # fmt: skip


def _legend(plan: CompressionPlan, bars: Sequence[Bar]) -> list[Any]:
    """Entries for what the chart shows, and no others."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(color=_KEPT, label="kept"), Patch(color=_GONE, label="cut")]
    if any(bar.removed for bar in bars):
        entries.append(Line2D([], [], color=_REMOVED, marker="x", linestyle="none", markeredgewidth=2, label="removed"))
    if plan.merges:
        entries.append(Line2D([], [], color=_MERGE, linestyle="--", label="tokens merge; grid after it"))
    return entries
