"""Are latencies predicted, is a plan that is solved in milliseconds faster, and are targets in time met?

    python benchmarks/milliseconds.py --part prediction -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py --part currencies --data DATA -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py --part targets -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py -o benchmarks/results/milliseconds.json --page docs/milliseconds.md

On a quiet machine: a busy one spoils tables. `prediction` draws random plans (blocks and attention gone, heads and MLPs
narrower, every third with merges), predicts each speed-up over the original from a table, and measures it, seven plans
and the original in turn. `currencies` cuts the CIFAR-10 teacher of DATA (`teacher/`, `cifar10/train-0.tar` to fit on,
`train-1.tar` to judge on; nothing is trained) to sizes that MACs and milliseconds decide, and times all plans of one
runtime in turn. `targets` compresses DeiT-Tiny to speed-ups and latencies, and runs a fresh `bench` on each. A row is
written as soon as it is measured; rows that the file holds are not measured again.
"""

import json
import random
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from dcvit.bench import benchmark
from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.data import open_source
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.methods.accuracy_target import Judge
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.pricing.measure import measured_table, time_plans
from dcvit.pricing.probes import Style
from dcvit.subject import Subject, open_shapes, open_subject, original_of
from dcvit.variant import Precision, Variant
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save

CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "CIFAR-10 teacher": (MODEL, MODEL_KWARGS, 64),
    "DeiT-Tiny": ("deit_tiny_patch16_224", {}, 64),
    "DeiT-Small": ("deit_small_patch16_224", {}, 16),
    "ViT-B": ("vit_base_patch16_224", {}, 4),
}
"""timm name, arguments, and the batch that is timed."""

WHERE: list[tuple[str, Precision]] = [
    ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "bf16"), ("torch", "fp32"),
]  # fmt: skip
PLANS = 30
AT_ONCE = 7
STYLE = Style(("horizontal", "vertical"))

REDUCTIONS = (0.4, 0.5, 0.6, 0.7, 0.8)
SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 4.0)
SAMPLES = 500
JUDGED = 2000

TARGETS: list[dict[str, Any]] = [{"speedup": 1.3}, {"speedup": 1.7}, {"latency": 0.5}]
"""A latency is given as a share of the original's."""


def random_plan(subject: Subject, seed: int) -> CompressionPlan:
    """Some blocks cut in some way, the first one whole, and in every third plan one or two merges."""
    order, entries = random.Random(seed), []
    spec = subject.architecture.blocks[0]
    touched = order.uniform(0.3, 1.0)
    for index in range(1, subject.architecture.depth):
        kind = order.choice(["block", "attention", "heads", "mlp", "both", "both"])
        if order.random() > touched:
            continue
        width = order.randrange(spec.mlp_hidden // 16, spec.mlp_hidden, 8) // 8 * 8
        head_dim = order.randrange(16, spec.head_dim, 8)
        if kind == "block":
            entries.append(BlockPlan(index=index, removed="block"))
        elif kind == "attention":
            entries.append(BlockPlan(index=index, removed="attention", mlp_hidden=width))
        else:
            heads, mlp = kind != "mlp", kind != "heads"
            entries.append(
                BlockPlan(index=index, head_dim=head_dim if heads else None, mlp_hidden=width if mlp else None)
            )
    plan = subject.plan.with_blocks(*entries)
    if seed % 3:
        return plan
    left = [index for index in range(1, subject.architecture.depth) if plan.block(index).removed != "block"]
    places = sorted(order.sample(left, min(len(left), order.choice([1, 2]))))
    merges = (Merge(after=place, axis=axis) for place, axis in zip(places, STYLE.axes, strict=False))
    return plan.replace(merges=tuple(merges))


def prediction(case: str, runtime: str, precision: Precision) -> dict[str, Any]:
    """Predicted and measured speed-ups of random plans."""
    model, kwargs, batch = CASES[case]
    subject, variant = open_shapes(model, kwargs), Variant.of(batch, precision)
    table = measured_table(subject, runtime, variant, style=STYLE)
    original = original_of(subject.plan)

    def ms(plan: CompressionPlan) -> float:
        return table.predict(plan, subject.family.tokens(original, plan))

    plans = [random_plan(subject, seed) for seed in range(PLANS)]
    found = []
    for start in range(0, PLANS, AT_ONCE):
        part = plans[start : start + AT_ONCE]
        timed = time_plans(subject, [subject.plan, *part], runtime, variant)
        for plan, ratio in zip(part, timed.ratios, strict=True):
            predicted, measured = ms(subject.plan) / ms(plan), 1 / ratio.value
            found.append(
                {"predicted": predicted, "measured": measured, "ci95": [1 / ratio.high, 1 / ratio.low],
                 "merges": len(plan.merges), "error": measured / predicted - 1}
            )  # fmt: skip
    return {
        "case": case, "runtime": runtime, "precision": precision, "batch": batch, "table_seconds": table.seconds,
        "original_ms": timed.base_ms, "plans": found,
    }  # fmt: skip


def currencies(data: Path, runtime: str, precision: Precision) -> dict[str, Any]:
    """Models of MACs and of milliseconds, all judged on the same images and timed in turn."""
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=data / "teacher/deit_tiny_cifar10.safetensors")
    variant = Variant.of(64, precision)
    judge = Judge(open_source(f"{data}/cifar10/train-1.tar", "train"), "train-1.tar", subject)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "sizes"
        result = frontier(
            subject.model, f"{data}/cifar10/train-0.tar", out=out, reductions=REDUCTIONS, speedups=SPEEDUPS,
            runtimes=(runtime,), precision=precision, samples=SAMPLES, settings=SearchSettings(steps=0),
            model_kwargs=None, cache=Path(tempfile.gettempdir()) / "dcvit-milliseconds",
        )  # fmt: skip
        points = {point.folder: point for point in result.points}
        folders = {name: ModelFolder(out / name) for name in points}
        lost = {name: judge.judge(folder.load(), subject.model) for name, folder in folders.items()}
        plans = {name: folder.plan for name, folder in folders.items()}
    rows, names = [], list(plans)
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        timed = time_plans(subject, [subject.plan, *(plans[name] for name in part)], runtime, variant)
        for name, ratio in zip(part, timed.ratios, strict=True):
            point = points[name]
            rows.append(
                {"folder": name, "curve": point.curve, "macs_reduction": point.macs_reduction, "kl": point.kl,
                 "agreement": lost[name].agreement, "drop": lost[name].drop, "speedup": 1 / ratio.value,
                 "ci95": [1 / ratio.high, 1 / ratio.low],
                 "predicted": result.original["predicted_ms"][runtime] / point.predicted_ms[runtime]}
            )  # fmt: skip
    return {"runtime": runtime, "precision": precision, "batch": 64, "rows": rows}


def targets(runtime: str, precision: Precision) -> Iterator[dict[str, Any]]:
    """What is asked for, what `compress` says it came to, and what a fresh bench measures."""
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "small"
            where = {"runtime": runtime, "precision": precision}
            wanted = dict(target)
            if "latency" in target:
                subject = open_shapes("deit_tiny_patch16_224")
                whole = time_plans(subject, [subject.plan, subject.plan], runtime, Variant.of(64, precision)).base_ms
                wanted = {"latency": target["latency"] * whole}
            started = time.perf_counter()
            made = compress("deit_tiny_patch16_224", out=folder, recover="none", weights="random", **wanted, **where)
            spent = time.perf_counter() - started
            if runtime != "torch":
                export(folder, precision=precision)
            row = benchmark(folder, runtimes=[runtime], precision=precision, max_seconds=90).rows[0]
            asked = target.get("speedup") or 1 / target["latency"]
            yield {
                **where, **target, "batch": 64, "seconds": spent, "said": made.metrics["speedup"]["speedup"],
                "bench": row.speedup, "ci95": list(row.speedup_ci95), "latency_ms": row.latency.median_ms,
                "wanted_ms": wanted.get("latency"), "error": row.speedup / asked - 1,
            }  # fmt: skip


def at_equal_agreement(rows: Sequence[dict[str, Any]], runtime: str) -> list[tuple[float, float, float]]:
    """KL of each size that MACs decided, its speed-up, and that of the milliseconds' curve at the same KL."""
    curves = {
        curve: sorted((row["kl"], row["speedup"]) for row in rows if row["curve"] == curve)
        for curve in ("macs", runtime)
    }
    logs, speeds = np.log([kl for kl, _ in curves[runtime]]), [speed for _, speed in curves[runtime]]
    found = []
    for kl, speed in curves["macs"]:
        if logs[0] <= np.log(kl) <= logs[-1]:
            found.append((kl, speed, float(np.interp(np.log(kl), logs, speeds))))
    return found


def head(*columns: str) -> str:
    """The first lines of a table."""
    return "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|"


def tables(report: dict[str, Any]) -> Iterator[str]:
    """Markdown of each part that there is."""
    if rows := report.get("prediction"):
        yield "## Predicted and measured\n"
        yield head("model", "runtime", "batch", "table, s", "median error", "largest", "next", "with merges, median")
        for row in rows:
            errors = sorted((abs(plan["error"]) for plan in row["plans"]), reverse=True)
            merged = [abs(plan["error"]) for plan in row["plans"] if plan["merges"]]
            where = f"{row['runtime']} {row['precision']}"
            yield (
                f"| {row['case']} | {where} | {row['batch']} | {row['table_seconds']:.0f} | "
                f"{median(errors):.1%} | {errors[0]:.1%} | {errors[1]:.1%} | {median(merged):.1%} |"
            )
        yield ""
    if rows := report.get("currencies"):
        yield "## Solved in MACs, and in milliseconds\n"
        yield head("runtime", "size", "MACs", "KL", "same class", "speed-up [95 %]", "predicted")
        for row in rows:
            for size in sorted(row["rows"], key=lambda size: size["kl"]):
                low, high = size["ci95"]
                yield (
                    f"| {row['runtime']} {row['precision']} | {size['folder']} | −{size['macs_reduction']:.1%} | "
                    f"{size['kl']:.2g} | {size['agreement']:.2f} % | ×{size['speedup']:.2f} [{low:.2f}, {high:.2f}] | "
                    f"×{size['predicted']:.2f} |"
                )
        yield "\nAt the KL of each size that MACs decided, how fast a plan of the milliseconds' curve is:\n"
        yield head("runtime", "KL", "solved in MACs", "solved in milliseconds", "gain")
        for row in rows:
            for kl, macs, ms in at_equal_agreement(row["rows"], row["runtime"]):
                where = f"{row['runtime']} {row['precision']}"
                yield f"| {where} | {kl:.2g} | ×{macs:.2f} | ×{ms:.2f} | {ms / macs - 1:+.1%} |"
        yield ""
    if rows := report.get("targets"):
        yield "## Targets in time\n"
        yield head("runtime", "asked for", "said by compress", "fresh bench [95 %]", "off by", "seconds")
        for row in rows:
            asked = f"×{row['speedup']}" if "speedup" in row else f"{row['wanted_ms']:.0f} ms"
            low, high = row["ci95"]
            came = f"×{row['bench']:.3f} [{low:.3f}, {high:.3f}]"
            came += f", {row['latency_ms']:.0f} ms" if "speedup" not in row else ""
            where = f"{row['runtime']} {row['precision']}"
            yield f"| {where} | {asked} | ×{row['said']:.3f} | {came} | {row['error']:+.1%} | {row['seconds']:.0f} |"
        yield ""


def page(report: dict[str, Any]) -> str:
    machine = report["about"]["machine"]
    words = (
        "Cuts are solved by what each saves in a table of latencies (`dcvit-tool latency`). Here is how well such "
        "tables predict, what solving in milliseconds gains over MACs, and whether targets in time are met. Written by "
        f"`benchmarks/milliseconds.py`, which says how each part is measured, on {machine['cpu']}, {machine['cores']} "
        "cores. Errors are of speed-ups, measured against predicted; models are timed in turn with the original, and "
        "ratios are of medians of 7 to 40 rounds. Of prediction the goal was a median error of at most 3 % and none "
        "above 8 %; of targets, within 3 %."
    )
    return f"# Milliseconds, predicted and met\n\n{textwrap.fill(words, 120)}\n\n" + "\n".join(tables(report))


@click.command()
@click.option("--part", type=click.Choice(["prediction", "currencies", "targets"]), multiple=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--runtime", "runtimes", multiple=True, help="NAME:PRECISION; by default four of a CPU.")
@click.option("--data", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Markdown to write.")
def main(
    part: tuple[str, ...],
    cases: tuple[str, ...],
    runtimes: tuple[str, ...],
    data: Path | None,
    out: Path,
    page_path: Path | None,
) -> None:
    """Measures what has not been measured yet."""
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if part:
        report["about"] = {"machine": this_machine().to_json(), "versions": package_versions()}
    where: list[tuple[str, Any]] = [tuple(each.split(":")) for each in runtimes] or list(WHERE)  # type: ignore[misc]

    def done(kind: str, **known: Any) -> bool:
        return any(known.items() <= row.items() for row in report.get(kind, []))

    def keep(kind: str, row: dict[str, Any]) -> None:
        report.setdefault(kind, []).append(row)
        save(out, report)
        click.echo(json.dumps({key: value for key, value in row.items() if key not in ("plans", "rows")}))

    for runtime, precision in where:
        here = {"runtime": runtime, "precision": precision}
        for case in cases if "prediction" in part else ():
            if not done("prediction", case=case, **here):
                keep("prediction", prediction(case, runtime, precision))
        if "currencies" in part and not done("currencies", **here):
            if data is None:
                raise click.UsageError("--part currencies needs --data")
            keep("currencies", currencies(data, runtime, precision))
        if "targets" in part and not done("targets", **here):
            for row in targets(runtime, precision):
                keep("targets", row)
    if page_path is not None:
        page_path.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
