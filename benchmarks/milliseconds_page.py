"""The page of `milliseconds.py`: its rows as tables."""

import textwrap
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from at_agreement import at_agreement

AGREEMENTS = {"CIFAR-10 teacher": (99.5, 99.0, 97.0), "ViT-S/14": (95.0, 90.0, 80.0)}
"""By teacher, in percent: images of the same class, or what is left of the features' variance."""


def where(row: dict[str, Any]) -> str:
    """Runtime and precision, with a mark where weights were timm's first ones."""
    return f"{row['runtime']} {row['precision']}{' †' if row.get('first_weights') else ''}"


def head(*columns: str) -> str:
    """The first lines of a table."""
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def gains(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of the table at equal agreement: a runtime and an agreement each, that both curves reach."""

    def case(row: dict[str, Any]) -> tuple[str, str, str, int, str]:
        return row["teacher"], row["runtime"], where(row), row["batch"], row["way"]

    for each in dict.fromkeys(map(case, rows)):
        teacher, runtime, here, batch, way = each
        drawn = [row["rows"] for row in rows if case(row) == each]
        for agreement in AGREEMENTS[teacher]:
            pairs = [[at_agreement(_curve(sizes, name), agreement) for name in ("macs", runtime)] for sizes in drawn]
            both = [(macs, ms) for macs, ms in pairs if macs is not None and ms is not None]
            if both:
                columns = zip(
                    *((f"×{macs:.2f}", f"×{ms:.2f}", f"{ms / macs - 1:+.1%}") for macs, ms in both), strict=True
                )
                cells = (teacher, here, str(batch), way, f"{agreement:g} %", *map(", ".join, columns))
                yield "| " + " | ".join(cells) + " |"


def _curve(sizes: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(size["speedup"], size["agreement"]) for size in sizes if size["curve"] == name]


def tables(report: dict[str, Any]) -> Iterator[str]:
    """Markdown of each part that there is."""
    if rows := report.get("prediction"):
        yield "## Predicted and measured\n"
        yield head("model", "runtime", "batch", "table, s", "median error", "largest", "next", "with merges, median")
        for row in rows:
            errors = sorted((abs(plan["error"]) for plan in row["plans"]), reverse=True)
            merged = [abs(plan["error"]) for plan in row["plans"] if plan["merges"]]
            yield (
                f"| {row['case']} | {where(row)} | {row['batch']} | {row['table_seconds']:.0f} | "
                f"{median(errors):.1%} | {errors[0]:.1%} | {errors[1]:.1%} | {median(merged):.1%} |"
            )
        yield ""
    if rows := report.get("currencies"):
        yield "## Solved in MACs, and in milliseconds\n"
        yield head(
            "model", "runtime", "batch", "solved in", "seed", "size", "MACs", "agrees", "speed-up [95 %]", "predicted"
        )
        for row in rows:
            for size in sorted(row["rows"], key=lambda size: size["macs_reduction"]):
                low, high = size["ci95"]
                cells = (
                    row["teacher"], where(row), row["batch"], row["way"], row["seed"], size["folder"],
                    f"−{size['macs_reduction']:.1%}", f"{size['agreement']:.2f} %",
                    f"×{size['speedup']:.2f} [{low:.2f}, {high:.2f}]", f"×{size['predicted']:.2f}",
                )  # fmt: skip
                yield "| " + " | ".join(map(str, cells)) + " |"
        yield (
            "\nAgreement is of images with the teacher's class, or of the variance of pooled features where there is "
            "no head. Speed-ups at equal agreement, and what sizes of milliseconds "
            "gain over those of MACs, seed by seed:\n"
        )
        yield head("model", "runtime", "batch", "solved in", "agrees", "of MACs", "of milliseconds", "gain")
        yield from gains(rows)
        yield ""
    if rows := report.get("targets"):
        yield "## Targets in time\n"
        yield "A latency is asked for as a share of the original's, and that is what it is off by.\n"
        yield head("runtime", "asked for", "said by compress", "fresh bench [95 %]", "off by", "seconds")
        for row in rows:
            asked = f"×{row['speedup']}" if "speedup" in row else f"{row['wanted_ms']:.0f} ms"
            low, high = row["ci95"]
            came = f"×{row['bench']:.3f} [{low:.3f}, {high:.3f}]"
            came += f", {row['latency_ms']:.0f} ms" if "speedup" not in row else ""
            off = f"{row['error']:+.1%} | {row['seconds']:.0f} |"
            yield f"| {where(row)} | {asked} | ×{row['said']:.3f} | {came} | {off}"
        yield ""


def machines(report: dict[str, Any]) -> list[str]:
    """Where the rows were measured: each part's machine, in words."""
    found: dict[str, list[str]] = {}
    for part in ("prediction", "currencies", "targets"):
        for row in report.get(part, []):
            machine = row["machine"]
            parts = found.setdefault(f"{machine['cpu']}, {machine['cores']} cores", [])
            if part not in parts:
                parts.append(part)
    return [f"{' and '.join(parts)} on {machine}" for machine, parts in found.items()]


def page(report: dict[str, Any]) -> str:
    words = (
        "Cuts are solved by what each saves in a table of latencies (`dcvit-tool latency`). Here is how well such "
        "tables predict, what solving in milliseconds gains over MACs, and whether targets in time are met. Written by "
        f"`benchmarks/milliseconds.py`, which says how each part is measured: {', '.join(machines(report))}. Errors "
        "are of speed-ups, measured against predicted; models are timed in turn with the original, and ratios are of "
        "medians. Of prediction the goal was a median error of at most 3 % and none above 8 %, and a table of "
        "DeiT-Tiny in 180 s, which int8 misses where merges are timed, as here (245 s now, and 157 s without); "
        "of targets, within 3 %; of currencies, that milliseconds are never slower, and ×1.1 somewhere. Rows solved in "
        "`milliseconds` are of a solver that knew no other currency; those in `either` of today's, which compares "
        "both. Rows with † are older: their weights were timm's first ones, with biases of 0, which ONNX Runtime "
        "leaves out, and with them kernels that trained models have. At every size of the ViT-S/14, and of the "
        "CIFAR-10 teacher at batch 1, MACs served, so both plans are all but the same, and what they differ by is "
        "noise. What has no row has not been measured, and is open: other models in prediction, OpenVINO in bf16, "
        "more seeds, and ×1.1 where no row shows it."
    )
    return f"# Milliseconds, predicted and met\n\n{textwrap.fill(words, 120)}\n\n" + "\n".join(tables(report))
