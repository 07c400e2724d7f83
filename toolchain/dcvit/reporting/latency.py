"""Figures of time: how the latencies of a benchmark are distributed."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcvit.reporting.svg import Drawing, Scale, tick_label, ticks

_BAND = 30


@dataclass(frozen=True)
class Times:
    """Times of one model in one comparison, in ms.

    Attributes:
        quantiles: Equally spaced from the smallest to the largest time; empty in results of an older version.
    """

    p50: float
    p95: float
    p99: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, row: dict[str, Any], prefix: str = "") -> "Times":
        """Reads one side of a row of `bench.json`; `prefix` is `baseline_` for the original."""
        p50, p95, p99 = (row[f"{prefix}{key}"] for key in ("median_ms", "p95_ms", "p99_ms"))
        return cls(p50, p95, p99, tuple(row.get(f"{prefix}quantiles_ms", ())))


def draw_latencies(rows: Sequence[dict[str, Any]], width: float) -> Drawing:
    """For each comparison the density of the original's times above that of this model's, from 0 on."""
    pairs = [(row, Times.of(row, "baseline_"), Times.of(row)) for row in rows]
    # The slowest hundredth of a model would squeeze all the rest: the axis ends at p99, and what is beyond is cut off.
    most = 1.04 * max(max(before.p99, after.p99) for _, before, after in pairs)
    each = 2 * _BAND + 46
    drawing = Drawing(width, each * len(pairs) + 30, "Distribution of the latency of each model")
    scale = Scale(0, most, 2, width - 6)
    marks = ticks(0, most, 7 if width > 500 else 4)
    for value in marks:
        drawing.line(scale(value), 20, scale(value), each * len(pairs) + 8, "grid")
        # The unit stands where there is always room for it.
        label, anchor = (tick_label(value), "middle") if value else ("0 ms", "start")
        drawing.text(scale(value), each * len(pairs) + 24, label, "tick", anchor)
    for place, (row, before, after) in enumerate(pairs):
        top = each * place
        drawing.text(2, top + 13, setting_of(row), "name")
        for number, (times, style) in enumerate(((before, "original"), (after, "this"))):
            _ridge(drawing, times, scale, top + 22 + (_BAND + 6) * number + _BAND, style)
    return drawing


def setting_of(row: dict[str, Any]) -> str:
    """What a row of `bench.json` was measured in."""
    other = row.get("baseline_precision", row["precision"])
    precision = row["precision"] if other == row["precision"] else f"{row['precision']} against {other}"
    pixels = " from pixels" if row.get("with_preprocessing") else ""
    return f"{row['runtime']} {precision}{pixels}, batch {row['batch']}"


def _ridge(drawing: Drawing, times: Times, scale: Scale, base: float, style: str) -> None:
    told = f"p50 {times.p50:.2f} ms, p95 {times.p95:.2f} ms, p99 {times.p99:.2f} ms"
    right = min(scale(times.p99), drawing.width - 6)
    if outline := _density(times, scale, base, right):
        drawing.path(outline, f"ridge {style}", closed=True)
    else:
        drawing.line(scale(times.p50), base - 4, right, base - 4, f"whisker {style}")
    drawing.line(2, base, drawing.width - 6, base, "grid")
    for value in (times.p95, times.p99):
        drawing.line(scale(value), base, scale(value), base - 8, f"mark {style}")
    drawing.rect(scale(times.p50) - 1.25, base - _BAND + 2, 2.5, _BAND - 2, f"median {style}", told)
    label = f"{times.p50:,.4g} ms"
    x, anchor = _beside(label, scale(times.quantiles[0] if times.quantiles else times.p50), right, drawing.width)
    drawing.text(x, base - 8, label, f"value {style}", anchor)


def _beside(label: str, left: float, right: float, width: float) -> tuple[float, str]:
    """Where a label stands that fits: left of a distribution, right of it, or above its thin beginning."""
    needed = 7.5 * len(label) + 8
    if left >= needed:
        return left - 8, "end"
    return (right + 6, "start") if right + needed <= width else (2, "start")


def _density(times: Times, scale: Scale, base: float, right: float) -> list[tuple[float, float]]:
    """Share of the times per pixel, from equally spaced quantiles: as much area between any two neighbours."""
    quantiles = times.quantiles
    if len(quantiles) < 3 or quantiles[-1] <= quantiles[0]:
        return []
    pixels = [scale(value) for value in quantiles]
    left, end = pixels[0] - 3, min(right, pixels[-1] + 3)
    count = max(24, int(end - left))
    width = max((pixels[int(0.75 * len(pixels))] - pixels[len(pixels) // 4]) / 2.5, 1.6)
    heights = []
    for step in range(count + 1):
        x = left + (end - left) * step / count
        heights.append((x, sum(max(0.0, 1 - ((x - pixel) / width) ** 2) for pixel in _between(pixels))))
    most = max(high for _, high in heights)
    return [(left, base), *((x, base - (_BAND - 4) * high / most) for x, high in heights), (end, base)]


def _between(pixels: Sequence[float]) -> list[float]:
    """Ten points between any two quantiles, so that sparse ones do not show as bumps."""
    return [a + (b - a) * (part + 0.5) / 10 for a, b in itertools.pairwise(pixels) for part in range(10)]
