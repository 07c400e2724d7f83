"""A frontier as a picture: error against the MACs that are left, and against latency, predicted and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.frontiers.curves import MACS
from dcvit.frontiers.result import FrontierResult, Point, describe_all, table_in_words

_COLOURS = ("#1f5fa8", "#c2620e", "#3d8a5f", "#8a5a9e")
_BEATEN, _ORIGINAL = "#a8a8a8", "#404040"


@dataclass(frozen=True)
class _Panel:
    """One way to count what a model costs.

    Attributes:
        label: Of the axis.
        costs: Share of the original's that each point keeps, in percent, by folder.
        intervals: 95 % intervals of the same.
    """

    label: str
    costs: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def plot_frontier(result: FrontierResult, path: Path) -> None:
    """Draws a panel of MACs, one for each runtime that sizes were solved in, and one of measured latency."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(result)
    figure = Figure(figsize=(6 if len(panels) == 1 else 5.25 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        _draw(axes, result, panel)
        axes.set_xlabel(panel.label)
    figure.axes[0].set_ylabel(_error_in_words(result))
    told = describe_all(point.row for point in result.points if point.row is not None)
    told += [f"{name}: {table_in_words(where)}" for name, where in result.about.get("curves", {}).items()]
    if told:
        figure.supxlabel("\n".join(told), fontsize=8)
    figure.suptitle(f"{result.model}, compressed with {result.about['data']['images']} images", fontsize=11)
    figure.savefig(path, format="png", dpi=150)


def _panels(result: FrontierResult) -> list[_Panel]:
    points = result.points
    counted = {point.folder: 100 * (1 - point.macs_reduction) for point in points}
    panels = [_Panel(f"MACs kept (%), {result.about['macs_convention']} convention", counted, {})]
    for curve, whole in result.original.get("predicted_ms", {}).items():
        costs = {point.folder: 100 * point.predicted_ms[curve] / whole for point in points}
        panels.append(_Panel(f"Latency kept in {curve} (%), predicted", costs, {}))
    rows = {point.folder: point.row for point in points if point.row is not None}
    if rows:
        intervals = {name: (100 / row.speedup_ci95[1], 100 / row.speedup_ci95[0]) for name, row in rows.items()}
        where = "Latency kept (%), bars: 95 % interval"
        panels.append(_Panel(where, {name: 100 / row.speedup for name, row in rows.items()}, intervals))
    return panels


def _draw(axes: Any, result: FrontierResult, panel: _Panel) -> None:
    curves = list(dict.fromkeys(point.curve for point in result.points))
    for number, curve in enumerate(curves):
        points = [point for point in result.points if point.curve == curve and point.folder in panel.costs]
        _draw_curve(axes, points, panel, _COLOURS[number % len(_COLOURS)], curve if len(curves) > 1 else None)
    for point in result.points:
        if point.folder in panel.costs:
            axes.annotate(point.label, (panel.costs[point.folder], _height(point)), textcoords="offset points",
                          xytext=(0, 8), ha="center", fontsize=8, color=_ORIGINAL)  # fmt: skip
    if "top1" in result.original:
        axes.axhline(result.original["top1"], linestyle="--", color=_ORIGINAL, linewidth=1, label="original")
    elif all(point.error > 0 for point in result.points):
        axes.set_yscale("log")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_curve(axes: Any, points: Sequence[Point], panel: _Panel, colour: str, name: str | None) -> None:
    """One curve of a panel; `name` where there are others."""
    ordered = sorted(points, key=lambda point: (panel.costs[point.folder], point.loss))
    # From the cheapest on, a point is among the best where none before it loses as little.
    best = [
        point for number, point in enumerate(ordered) if all(point.loss < earlier.loss for earlier in ordered[:number])
    ]
    beaten = [point for point in ordered if point not in best]
    solved = "solved in MACs" if name == MACS else f"solved in ms of {name}"
    for chosen, style, shade, label in (
        (best, "o-", colour, "best for its cost" if name is None else solved),
        (beaten, "o", _BEATEN, "beaten by a cheaper one" if name is None else None),
    ):
        if chosen:
            costs = [panel.costs[point.folder] for point in chosen]
            axes.plot(costs, [_height(point) for point in chosen], style, color=shade, zorder=3, label=label)
    for point in points:
        if point.folder in panel.intervals:
            axes.plot(panel.intervals[point.folder], [_height(point)] * 2, "|-", color=_ORIGINAL, zorder=1)


def _height(point: Point) -> float:
    return point.error if point.top1 is None else point.top1


def _error_in_words(result: FrontierResult) -> str:
    if "top1" in result.original:
        return f"Top-1 accuracy (%), {result.original['images']} images"
    return f"{result.points[0].measure.title}, {result.about['scored_on']}"
