"""What a frontier found."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dcvit.bench import BenchRow, Machine
from dcvit.errors import InputError, first_line
from dcvit.files import plain_name
from dcvit.folder.records import FEATURE_ERROR, KL, ErrorMeasure
from dcvit.frontiers.curves import MACS

FRONTIER, PLOT = "frontier.json", "frontier.png"
"""What lies beside the model folders."""


@dataclass(frozen=True)
class Point:
    """One compressed model.

    Attributes:
        folder: Of the model, in the frontier's folder.
        target: Share that was to be removed of what its curve counts.
        macs_reduction: Share that was removed.
        kl: Mean KL(original ‖ compressed) on few-shot images, in nats: the mimic error; None without a head.
        top1: Accuracy in percent, where labelled images were given.
        row: Latency against the uncompressed model, where it was measured.
        pareto: Whether no other point of its curve costs as little and loses less, or loses as little and costs less.
        feature_error: The mimic error of a model without a head, as a share.
        curve: What its size was solved in: `macs`, or the name of a runtime or table.
        predicted_ms: Of a batch, by curve in milliseconds: what the table of each says.
    """

    folder: str
    target: float
    macs_reduction: float
    macs: int
    params: int
    blocks_compressed: int
    kl: float | None
    top1: float | None
    row: BenchRow | None
    seconds: float
    plan_digest: str
    pareto: bool = True
    feature_error: float | None = None
    curve: str = MACS
    predicted_ms: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its target, in few letters."""
        return label_of(self.curve, self.target)

    @property
    def cost(self) -> float:
        """What its curve counts: MACs per image, or milliseconds of a batch."""
        return self.macs if self.curve == MACS else self.predicted_ms[self.curve]

    @property
    def error(self) -> float:
        """The mimic error, whichever the model has."""
        found = self.feature_error if self.kl is None else self.kl
        assert found is not None
        return found

    @property
    def measure(self) -> ErrorMeasure:
        """What `error` is."""
        return FEATURE_ERROR if self.kl is None else KL

    @property
    def loss(self) -> float:
        """What is to be small: the error in top-1 where it is known, else the mimic error."""
        return self.error if self.top1 is None else 100 - self.top1

    def to_json(self) -> dict[str, Any]:
        may_lack = ("row", "top1", "kl", "feature_error")
        plain = {key: value for key, value in asdict(self).items() if key not in may_lack}
        top1 = {} if self.top1 is None else {"top1": self.top1}
        bench = {} if self.row is None else {"bench": self.row.to_json()}
        return plain | {self.measure.key: self.error} | top1 | bench


@dataclass(frozen=True)
class FrontierResult:
    """Compressed models of one original, from the largest to the smallest.

    Attributes:
        original: MACs per image and parameters of the given model; its top-1 where it was measured.
        about: What the figures rest on: data, samples, seed, settings, versions.
        machine: That latency was measured on.
        seconds: Of all points, and what they share.
    """

    folder: Path
    model: str
    points: tuple[Point, ...]
    original: dict[str, Any]
    about: dict[str, Any]
    machine: Machine | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "model": self.model,
            "original": self.original,
            "points": [point.to_json() for point in self.points],
            **self.about,
            "machine": None if self.machine is None else self.machine.to_json(),
            "seconds": self.seconds,
        }

    def lines(self) -> Iterable[Any]:
        from rich.table import Table

        before, with_top1 = self.original, "top1" in self.original
        rows = [point.row for point in self.points if point.row is not None]
        measure, predicted = self.points[0].measure, before.get("predicted_ms", {})
        table = Table(title=f"{self.model}: MACs per image, {self.about['macs_convention']} convention")
        columns = ["folder", "MACs", "change", "params", measure.column, *["top-1"] * with_top1]
        columns += [f"{curve}: ms, predicted" for curve in predicted]
        for column in [*columns, *["ms", "speed-up [95 %]"] * bool(rows), "best of its size"]:
            table.add_column(column, justify="right")
        size = f"{before['macs'] / 1e6:,.1f} M", "", f"{before['params'] / 1e6:,.2f} M", "0"
        times = [f"{ms:.2f}" for ms in predicted.values()]
        if rows:  # of several runtimes, no one figure is the original's
            times += [f"{rows[0].baseline.median_ms:.2f}" if len(describe_all(rows)) == 1 else "", ""]
        table.add_row("original", *size, *([f"{before['top1']:.2f} %"] if with_top1 else []), *times, "")
        for point in self.points:
            cells = [point.folder, f"{point.macs / 1e6:,.1f} M", f"−{point.macs_reduction:.2%}"]
            cells += [f"{point.params / 1e6:,.2f} M", f"{point.error:.2g}"]
            if point.top1 is not None:
                cells.append(f"{point.top1:.2f} %")
            for curve, whole in predicted.items():
                cells.append(f"{point.predicted_ms[curve]:.2f} ×{whole / point.predicted_ms[curve]:.2f}")
            if point.row is not None:
                low, high = point.row.speedup_ci95
                cells.append(f"{point.row.latency.median_ms:.2f}")
                cells.append(f"×{point.row.speedup:.3f} [{low:.3f}, {high:.3f}]")
            elif rows:
                cells += ["–", "–"]
            table.add_row(*cells, "yes" if point.pareto else "no")
        yield table
        yield from describe_all(rows)
        for curve, where in self.about.get("curves", {}).items():
            yield f"{curve}: " + table_in_words(where)
        shown = f"; {self.folder / PLOT} shows it" if (self.folder / PLOT).is_file() else ""
        yield f"written to {self.folder} in {self.seconds:.1f} s{shown}"
        yield f"`dcvit-tool report {self.folder}` makes an HTML page of it, and one of each size"


def read_frontier(path: Path) -> dict[str, Any]:
    """The `frontier.json` of a folder, whose points are folders in it.

    Raises:
        InputError: If it cannot be read, or a point lies elsewhere.
    """
    file = path / FRONTIER
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for point in found["points"]:
            plain_name(point["folder"])
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}); make the frontier again") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return found


def describe_all(rows: Iterable[BenchRow]) -> list[str]:
    """What latencies were measured with, in words: a line for each setting."""
    by_setting: dict[tuple[Any, ...], list[BenchRow]] = {}
    for row in rows:
        by_setting.setdefault((row.runtime, row.precision, row.batch, row.device, row.threads), []).append(row)
    return [_describe(each) for each in by_setting.values()]


def table_in_words(where: Mapping[str, Any]) -> str:
    """What a table of latencies is of."""
    threads = "" if where["threads"] is None else f", {where['threads']} threads"
    return f"predicted for {where['runtime']} {where['precision']}, batch {where['batch']}{threads}, {where['machine']}"


def _describe(rows: Sequence[BenchRow]) -> str:
    row, runs = rows[0], sorted({row.runs for row in rows})
    threads = "" if row.threads is None else f", {row.threads} threads"
    times = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    return f"latency: {row.runtime} {row.precision}, batch {row.batch}, {row.device}{threads}; median of {times} runs"


def mark_pareto(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points, each with whether another one beats it."""
    return tuple(replace(point, pareto=not any(_beats(other, point) for other in points)) for point in points)


def _beats(one: Point, other: Point) -> bool:
    if one.curve != other.curve:
        return False
    figures, others = (one.cost, one.loss), (other.cost, other.loss)
    return figures != others and all(mine <= theirs for mine, theirs in zip(figures, others, strict=True))


def label_of(curve: str, share: float) -> str:
    """What was asked of a model, from the share that was to be removed of what its curve counts."""
    return f"−{100 * share:.3g} %" if curve == MACS else f"×{1 / (1 - share):.3g}"
