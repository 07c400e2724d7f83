"""Figures of curves: a training, and a frontier of sizes."""

import math
from collections.abc import Sequence
from typing import Any

from dcvit.folder.records import error_measure
from dcvit.frontiers.curves import MACS
from dcvit.frontiers.result import label_of
from dcvit.reporting.svg import Drawing, Scale, power_label, tick_label, ticks

_LEFT, _RIGHT = 46, 10


def draw_training(records: Sequence[dict[str, Any]], width: float) -> Drawing:
    """Losses against steps and, where channels were pruned, the share of the widths that was left."""
    steps = [record["step"] for record in records]
    pruned = any(record.get("widths") for record in records)
    tall, top = 150, 22
    drawing = Drawing(width, top + tall + 26 + (tall + 6 if pruned else 0), "Loss of the training by its steps")
    across = Scale(min(steps), max(steps), _LEFT, width - _RIGHT)
    losses = {"loss": [record["loss"] for record in records]}
    parts = sorted({name for record in records for name in record["losses"]})
    if len(parts) > 1:
        losses |= {name: [record["losses"].get(name, math.nan) for record in records] for name in parts}
    _panel(drawing, across, steps, losses, top, tall, "loss")
    if pruned:
        first = next(record["widths"] for record in records if record.get("widths"))
        shares = {
            name: [100 * sum(record.get("widths", first)[name]) / (sum(first[name]) or 1) for record in records]
            for name in first
        }
        _panel(drawing, across, steps, shares, top + tall + 36, tall - 30, "channels left, %", named=True)
    for value in ticks(min(steps), max(steps), 6 if width > 500 else 4):
        drawing.text(across(value), drawing.height - 4, tick_label(value), "tick", "middle")
    drawing.text(4, drawing.height - 4, "step", "tick")
    return drawing


def _panel(
    drawing: Drawing,
    across: Scale,
    steps: Sequence[int],
    series: dict[str, list[float]],
    top: float,
    tall: float,
    name: str,
    *,
    named: bool = False,
) -> None:
    values = [value for line in series.values() for value in line if math.isfinite(value)] or [0.0]
    up = Scale(min(0.0, *values), max(values) or 1.0, top + tall, top)
    drawing.text(_LEFT, top - 9, name, "name")
    for value in ticks(up.low, up.high, 4):
        drawing.line(_LEFT, up(value), drawing.width - _RIGHT, up(value), "grid")
        drawing.text(_LEFT - 6, up(value) + 4, tick_label(value), "tick", "end")
    for number, (label, line) in enumerate(series.items()):
        points = [(across(step), up(value)) for step, value in zip(steps, line, strict=True) if math.isfinite(value)]
        drawing.path(points, f"curve line{min(3, number)}")
        if len(points) == 1:
            drawing.circle(*points[0], 3, f"dot-line{min(3, number)}")
        if named:
            drawing.text(points[-1][0], points[-1][1] - 5, label.replace("_", " "), f"tick of{min(1, number)}", "end")


def training_series(records: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the loss curves, in the order of their colours."""
    parts = sorted({name for record in records for name in record["losses"]})
    return ["loss", *(name.replace("_", " ") for name in parts)] if len(parts) > 1 else ["loss"]


def draw_pareto(frontier: dict[str, Any], by: str, here: str | None, width: float) -> Drawing:
    """Error or accuracy against what is kept of the cost.

    Args:
        frontier: `frontier.json`.
        by: `macs`, `latency` for the points that were measured, or a curve of the frontier: its predicted latency.
        here: The folder of the point to point out.
        width: Of the figure.
    """
    cost, word = _costs(frontier, by)
    points = [point for point in frontier["points"] if point["folder"] in cost]
    accuracy = "top1" in frontier["original"] and all("top1" in point for point in points)
    measure = error_measure(points[0] if points else {})
    height = {point["folder"]: point["top1"] if accuracy else measure.of(point) for point in points}
    top, tall = 24, 250
    drawing = Drawing(
        width, top + tall + 44, f"{'Top-1' if accuracy else 'Error'} of each model by the {word} it keeps"
    )
    drawing.text(_LEFT, 12, "top-1, %" if accuracy else measure.title, "name")
    across = Scale(max(0.0, min(cost.values()) - 6), max(100.0, *cost.values()) + 3, _LEFT, width - _RIGHT)
    up = _upright(frontier, list(height.values()), accuracy=accuracy, top=top, tall=tall)
    _frame(drawing, across, up, top, tall)
    drawing.text(width - _RIGHT, top + tall + 38, f"{word} kept, %", "name", "end")
    if accuracy:
        level = up(frontier["original"]["top1"])
        drawing.line(_LEFT, level, width - _RIGHT, level, "reference")
        drawing.diamond(across(100), level, 5, "attention", "the original")
    for number, curve in enumerate(curves_of(frontier)):
        colour = min(3, number)
        own = [point for point in points if point.get("curve", MACS) == curve]
        best = _best(own, cost, height, higher=accuracy)
        drawing.path([(across(cost[name]), up(height[name])) for name in best], f"curve line{colour}")
        for point in own:
            name = point["folder"]
            x, y = across(cost[name]), up(height[name])
            if by == "latency":
                low, high = point["bench"]["speedup_ci95"]
                drawing.line(across(100 / high), y, across(100 / low), y, "interval")
            told = f"{name}: {cost[name]:.1f} % of the {word}, " + (
                f"top-1 {height[name]:.2f} %" if accuracy else f"{measure.name} {height[name]:.3g}{measure.unit}"
            )
            if name == here:
                drawing.circle(x, y, 9, "ring")
            drawing.circle(x, y, 4.5, f"dot-line{colour}" if name in best else "point beaten", told)
            label = label_of(curve, point["target"])
            drawing.text(x, y - 12, label, "here" if name == here else "tick label", "middle")
    return drawing


def curves_of(frontier: dict[str, Any]) -> list[str]:
    """What the sizes of a frontier were solved in, in the order of their colours."""
    return list(dict.fromkeys(point.get("curve", MACS) for point in frontier["points"]))


def _costs(frontier: dict[str, Any], by: str) -> tuple[dict[str, float], str]:
    """Percent of the original's cost that points keep, by folder, and what that cost is."""
    points = frontier["points"]
    if by == MACS:
        return {point["folder"]: 100 * (1 - point["macs_reduction"]) for point in points}, "MACs"
    if by == "latency":
        return {each["folder"]: 100 / each["bench"]["speedup"] for each in points if "bench" in each}, "latency"
    whole = frontier["original"]["predicted_ms"][by]
    costs = {point["folder"]: 100 * point["predicted_ms"][by] / whole for point in points}
    return costs, f"predicted latency in {by}"


def _upright(frontier: dict[str, Any], values: list[float], *, accuracy: bool, top: float, tall: float) -> Scale:
    if accuracy:
        values = [*values, frontier["original"]["top1"]]
        room = 0.12 * (max(values) - min(values)) or 1.0
        return Scale(min(values) - room, min(100.0, max(values) + room), top + tall, top)
    positive = [value for value in values if value > 0] or [1e-6]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), top + tall, top, logarithmic=True)


def _frame(drawing: Drawing, across: Scale, up: Scale, top: float, tall: float) -> None:
    if up.logarithmic:
        exponents = range(round(math.log10(up.low)), round(math.log10(up.high)) + 1)
        marks = [(10.0**exponent, power_label(exponent)) for exponent in exponents]
    else:
        marks = [(value, tick_label(value)) for value in ticks(up.low, up.high, 5)]
    for value, label in marks:
        drawing.line(_LEFT, up(value), drawing.width - _RIGHT, up(value), "grid")
        drawing.text(_LEFT - 6, up(value) + 4, label, "tick", "end")
    for value in ticks(across.low, across.high, 7 if drawing.width > 500 else 5):
        drawing.text(across(value), top + tall + 18, tick_label(value), "tick", "middle")


def _best(
    points: Sequence[dict[str, Any]], cost: dict[str, float], height: dict[str, float], *, higher: bool
) -> list[str]:
    """From the cheapest on, those that lose less than every cheaper one."""
    best: list[str] = []
    sign = -1 if higher else 1
    for name in sorted((point["folder"] for point in points), key=lambda name: (cost[name], sign * height[name])):
        if not best or sign * height[name] < sign * height[best[-1]]:
            best.append(name)
    return best
