"""A frontier as a picture: error against the MACs that are left and, where it was measured, against latency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcvit.frontiers.result import FrontierResult, Point, describe

_BEST, _BEATEN, _ORIGINAL = "#1f5fa8", "#a8a8a8", "#404040"


def plot_frontier(result: FrontierResult, path: Path) -> None:
    """Draws one panel, or two where latency was measured, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = sorted(result.points, key=lambda point: point.macs)
    rows = [point.row for point in points if point.row is not None]
    figure = Figure(figsize=(10.5 if rows else 6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if rows else 1, squeeze=False, sharey=True)[0]
    _draw(panels[0], result, points, [100 * (1 - point.macs_reduction) for point in points])
    panels[0].set_xlabel(f"MACs kept (%), {result.about['macs_convention']} convention")
    panels[0].set_ylabel(_error_in_words(result))
    if rows:
        _draw(panels[1], result, points, [100 / row.speedup for row in rows])
        for row, point in zip(rows, points, strict=True):
            low, high = row.speedup_ci95
            panels[1].plot([100 / high, 100 / low], [_height(point)] * 2, "|-", color=_ORIGINAL, zorder=1)
        panels[1].set_xlabel("Latency kept (%), bars: 95 % interval")
        figure.supxlabel(describe(rows), fontsize=8)
    figure.suptitle(f"{result.model}, compressed with {result.about['data']['images']} images", fontsize=11)
    figure.savefig(path, format="png", dpi=150)


def _draw(axes: Any, result: FrontierResult, points: Sequence[Point], costs: Sequence[float]) -> None:
    """One panel; `costs` are of the points, in their order."""
    pairs = sorted(zip(costs, points, strict=True), key=lambda pair: (pair[0], pair[1].loss))
    # From the cheapest on, a point is among the best where none before it loses as little.
    best = [
        (cost, point)
        for number, (cost, point) in enumerate(pairs)
        if all(point.loss < earlier.loss for _, earlier in pairs[:number])
    ]
    beaten = [pair for pair in pairs if pair not in best]
    for chosen, style, color, label in (
        (best, "o-", _BEST, "best for its cost"),
        (beaten, "o", _BEATEN, "beaten by a cheaper one"),
    ):
        if chosen:
            axes.plot([cost for cost, _ in chosen], [_height(point) for _, point in chosen], style, color=color,
                      zorder=3, label=label)  # fmt: skip
    for cost, point in pairs:
        axes.annotate(f"−{100 * point.target:.3g} %", (cost, _height(point)), textcoords="offset points",
                      xytext=(0, 8), ha="center", fontsize=8, color=_ORIGINAL)  # fmt: skip
    if "top1" in result.original:
        axes.axhline(result.original["top1"], linestyle="--", color=_ORIGINAL, linewidth=1, label="original")
    elif all(point.error > 0 for point in points):
        axes.set_yscale("log")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _height(point: Point) -> float:
    return point.error if point.top1 is None else point.top1


def _error_in_words(result: FrontierResult) -> str:
    if "top1" in result.original:
        return f"Top-1 accuracy (%), {result.original['images']} images"
    return f"{result.points[0].measure.title}, {result.about['scored_on']}"
