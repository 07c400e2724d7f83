"""The tables of a report, as columns and cells of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcvit.bench.side_by_side import SideBySide
from dcvit.folder.records import error_measure
from dcvit.reporting.accuracy import Accuracy
from dcvit.reporting.facts import Facts
from dcvit.reporting.latency import setting_of
from dcvit.reporting.words import change, ms, points, si, signed, size, speedup


@dataclass(frozen=True)
class Column:
    """A column's heading, and `n` for numbers or `hide-narrow` for what a phone can do without."""

    name: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under columns."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class FileChecks(Table):
    """The checks of one exported file.

    Attributes:
        failed: How many do not hold.
        worst: How near to its tolerance the largest difference from PyTorch comes, in words.
    """

    failed: int = 0
    worst: str = ""


def summary_table(facts: Facts) -> Table:
    """Costs, accuracy and latency, before and after."""
    costs, row = facts.summary, facts.headline
    rows: list[tuple[str, ...]] = [
        ("MACs", si(costs.macs_before), si(costs.macs_after), change(costs.macs_before, costs.macs_after)),
        ("parameters", si(costs.params_before), si(costs.params_after),
         change(costs.params_before, costs.params_after)),
        _tokens(facts),
    ]  # fmt: skip
    before, after = facts.before_and_after
    if after is not None:
        name = f"{after.name}, {after.data}"
        rows.append((name, f"{before.value:.2f}\u00a0%" if before else "–", f"{after.value:.2f}\u00a0%",
                     points(before.value, after.value) if before else "–"))  # fmt: skip
    if row is not None:
        rows.append((f"latency, batch {row['batch']}", ms(row["baseline_median_ms"]), ms(row["median_ms"]),
                     speedup(row)))  # fmt: skip
        if "images_per_second" in row:
            old, new = row["baseline_images_per_second"], row["images_per_second"]
            rows.append(("images a second", si(old), si(new), change(old, new)))
        if "peak_memory_mib" in row:
            memory = row["baseline_peak_memory_mib"], row["peak_memory_mib"]
            rows.append(("peak memory", *(f"{mib:,.0f} MiB" for mib in memory), change(*memory)))
    columns = (Column(""), Column("before", "n"), Column("after", "n"), Column("change", "n"))
    return Table(columns, rows)


def _tokens(facts: Facts) -> tuple[str, str, str, str]:
    """Of the last block; on average over the blocks the change."""
    before, after = facts.tokens_before, facts.summary.tokens
    return "tokens into the last block", f"{before[-1]:,}", f"{after[-1]:,}", change(before[-1], after[-1])


def block_table(facts: Facts) -> Table:
    """Every block in numbers."""
    depth = facts.depth
    merged: dict[int, list[str]] = {}
    for merge in facts.plan.merges:
        merged.setdefault(merge.after - 1, []).append(merge.axis)
    columns = [Column("block"), Column("tokens", "n"), *(Column(name, "n") for name, _ in depth.panels)]
    rows = []
    for index, tokens in enumerate(depth.tokens):
        widths = [
            "removed" if bar.removed else f"{bar.label} of {bar.before}" if bar.after < bar.before else bar.label
            for bar in (bars[index] for _, bars in depth.panels)
        ]
        after = [", ".join(merged.get(index, ["–"]))] if facts.plan.merges else []
        rows.append((str(index), f"{tokens.after:,}", *widths, *after))
    if facts.plan.merges:
        columns.append(Column("merges after it"))
    return Table(tuple(columns), rows)


def damage_table(facts: Facts) -> Table | None:
    """The solver's examination in numbers."""
    if not facts.damage:
        return None
    head_dims = sorted({width for block in facts.damage for width, _ in block.heads}, reverse=True)
    hidden = sorted({width for block in facts.damage for width, _ in block.mlp}, reverse=True)
    names = ["no attention", *(f"heads {width}" for width in head_dims), *(f"MLP {width}" for width in hidden)]
    rows = []
    for block in facts.damage:
        heads, mlp = dict(block.heads), dict(block.mlp)
        cells = [block.attention, *map(heads.get, head_dims), *map(mlp.get, hidden)]
        rows.append((str(block.block), *("–" if kl is None else f"{kl:.2g}" for kl in cells)))
    return Table((Column("block"), *(Column(name, "n") for name in names)), rows)


def accuracy_table(rows: list[Accuracy]) -> Table:
    """Accuracy per runtime and precision."""
    columns = (
        Column("model"),
        Column("file", "file wrap hide-narrow"),
        Column("runtime"),
        Column("accuracy [95 %]", "n wrap"),
        Column("change [95 %]", "n wrap"),
        Column("images", "hide-narrow"),
    )
    cells = [
        ("original" if row.original else "this model", row.file, _ran(row), _accurate(row), _changed(row, rows),
         f"{row.images:,} of {row.data}")
        for row in rows
    ]  # fmt: skip
    return Table(columns, cells)


def _ran(row: Accuracy) -> str:
    return f"{row.runtime} {row.precision}, {row.device}" if row.device else f"{row.runtime} {row.precision}"


def _accurate(row: Accuracy) -> str:
    interval = "" if row.interval is None else f" [{row.interval[0]:.2f},\u00a0{row.interval[1]:.2f}]"
    return f"{row.name} {row.value:.2f}\u00a0%{interval}" + (f", {row.note}" if row.note else "")


def _changed(row: Accuracy, rows: Sequence[Accuracy]) -> str:
    """The change on the images of the original's row; its interval is paired where each image's verdict was kept."""
    original = next((each for each in rows if each.original and each.data == row.data), None)
    if row.original or original is None or original.images != row.images:
        return ""
    interval = row.change_from(original)
    told = "" if interval is None else f" [{signed(interval[0])},\u00a0{signed(interval[1])}]"
    return points(original.value, row.value) + told


def comparison_table(facts: Facts) -> Table:
    """What each precision loses, as measured at export."""
    columns = (Column("file", "file"), Column("top-1", "n"), Column("fp32", "n hide-narrow"), Column("same class", "n"),
               Column("drop (limit)", "n"), Column("on", "hide-narrow"))  # fmt: skip
    rows = [
        (row.file, *("–" if value is None else f"{value:.2f}\u00a0%" for value in (row.top1, row.top1_fp32)),
         f"{row.agreement:.2f} %", f"{row.drop:.2f} ({row.max_drop:g})",
         f"{row.images:,} images of {row.data}, {row.runtime}")
        for row in facts.comparisons
    ]  # fmt: skip
    return Table(columns, rows)


def parity_tables(facts: Facts) -> list[tuple[str, FileChecks]]:
    """The checks of each exported file."""
    by_file: dict[str, list[dict[str, Any]]] = {}
    for check in facts.checks:
        by_file.setdefault(check["name"].split(":")[0], []).append(check)
    return [(file, _checks(file, found)) for file, found in by_file.items()]


def _checks(file: str, found: list[dict[str, Any]]) -> FileChecks:
    rows = []
    for check in found:
        numbers = ""
        if check["max_abs_error"] is not None:
            limit = "" if check["tolerance"] is None else f" (at most {check['tolerance']:.1e})"
            numbers = f"off by {check['max_abs_error']:.1e}{limit}; "
        name = check["name"].removeprefix(file).lstrip(": ")
        rows.append((name, "holds" if check["passed"] else "FAILED", numbers + check["detail"]))
    shares = [
        check["max_abs_error"] / check["tolerance"]
        for check in found
        if None not in (check["max_abs_error"], check["tolerance"] or None)
    ]
    return FileChecks(
        columns=(Column("check"), Column(""), Column("found", "wrap")),
        rows=rows,
        failed=sum(not check["passed"] for check in found),
        worst=f"off by at most {max(shares):.0%} of the tolerance".replace("%", "\u00a0%") if shares else "",
    )


def bench_table(facts: Facts) -> Table:
    """One row for each comparison."""
    columns = (
        Column("measured in"),
        Column("file", "file wrap hide-narrow"),
        Column("p50", "n"),
        Column("p95", "n hide-narrow"),
        Column("p99", "n hide-narrow"),
        Column("speed-up [95 %]", "n wrap"),
        Column("÷ MACs ratio", "n"),
    )
    rows = []
    for row in facts.bench:
        threads = "" if row["threads"] is None else f", {row['threads']} threads"
        times = (f"{row['baseline_' + key]:,.4g} → {row[key]:,.4g}" for key in ("median_ms", "p95_ms", "p99_ms"))
        where = f"{setting_of(row)}, {row['device']}{threads}, {row['runs']} runs"
        efficiency = "–" if row.get("efficiency") is None else f"{row['efficiency']:.2f}"
        alike = ", no difference" if row["verdict"] == "no difference" else ""
        rows.append((where, row.get("file", ""), *times, speedup(row) + alike, efficiency))
    return Table(columns, rows)


def batches_table(facts: Facts) -> Table:
    """Latency at the smallest batch beside throughput at the largest; no row where one batch was measured."""
    columns = (Column("runtime"), Column("precision"), Column("latency", "n"), Column("throughput", "n"))
    return Table(columns, [each.cells() for each in SideBySide.of(facts.bench)])


def file_table(facts: Facts) -> Table:
    """Every file of the folder with its size and sha256; the report itself is left out."""
    columns = (Column("file", "file"), Column("size", "n"), Column("sha256", "hide-narrow"))
    rows = [
        (name, size(entry.bytes), entry.sha256[:16] + "…")
        for name, entry in facts.manifest.files.items()
        if not name.endswith(".html")
    ]
    return Table(columns, rows)


def point_table(frontier: dict[str, Any]) -> Table:
    """The models of a frontier, the original first."""
    before = frontier["original"]
    accurate, timed = "top1" in before, any("bench" in point for point in frontier["points"])
    predicted = before.get("predicted_ms", {})
    measure = error_measure(frontier["points"][0])
    columns = [Column("model"), Column("MACs", "n"), Column("parameters", "n")]
    columns += (
        [Column("top-1", "n")] * accurate
        + [Column(measure.column, "n hide-narrow" if accurate else "n")]
        + [Column(f"{curve}, predicted", "n") for curve in predicted]
        + [Column("speed-up [95 %]", "n")] * timed
    )
    first = ["original", si(before["macs"]), si(before["params"])]
    first += ([f"{before['top1']:.2f}\u00a0%"] if accurate else []) + ["0"]
    first += [f"{ms:.2f}\u00a0ms" for ms in predicted.values()] + ["–"] * timed
    rows = [tuple(first)]
    for point in frontier["points"]:
        cells = [point["folder"], f"{si(point['macs'])} ({change(before['macs'], point['macs'])})"]
        cells.append(f"{si(point['params'])} ({change(before['params'], point['params'])})")
        cells += [f"{point['top1']:.2f}\u00a0%" if "top1" in point else "–"] * accurate + [f"{measure.of(point):.2g}"]
        cells += [f"{point['predicted_ms'][curve]:.2f}\u00a0ms (×{whole / point['predicted_ms'][curve]:.2f})"
                  for curve, whole in predicted.items()]  # fmt: skip
        cells += [speedup(point["bench"]) if "bench" in point else "–"] * timed
        rows.append(tuple(cells))
    return Table(tuple(columns), rows)
