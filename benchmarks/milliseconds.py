"""Are latencies predicted, is a plan that is solved in milliseconds faster, and are targets in time met?

    python benchmarks/milliseconds.py --part prediction -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py --part currencies --data DATA -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py --part targets -o benchmarks/results/milliseconds.json
    python benchmarks/milliseconds.py -o benchmarks/results/milliseconds.json --page docs/milliseconds.md

On a quiet machine: a busy one spoils tables. `prediction` draws random plans (blocks and attention gone, heads and MLPs
narrower, every third with merges), predicts each speed-up over the original from a table, and measures it, eight plans
and the original in turn. `currencies` cuts a trained model of DATA (`teacher/`, or the backbone without a head in
`dinov2/`; `cifar10/train-0.tar` to fit on, `train-1.tar` to judge on; nothing is trained) to sizes that MACs and
milliseconds decide, and times all plans of one runtime in turn. `targets` compresses DeiT-Tiny to speed-ups and
latencies, and runs a fresh `bench` on each. A row is written as soon as it is measured, with its machine; rows that the
file holds are not measured again, wherever they were measured.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from dcvit.bench import benchmark
from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.data import draw_few_shot, open_source
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.methods.accuracy_target import Judge
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.milliseconds import predicted
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.pricing.kept import table_for
from dcvit.pricing.measure import measured_table, time_plans
from dcvit.pricing.probes import Style
from dcvit.subject import Subject, open_shapes, open_subject, original_of
from dcvit.types import TimmModule
from dcvit.variant import Precision, Variant
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save
from milliseconds_page import page
from real_vit import agreement, features_of

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
AT_ONCE = 8
STYLE = Style(("horizontal", "vertical"))


@dataclass(frozen=True)
class Teacher:
    """A trained model that the currencies are compared on.

    Attributes:
        weights: Below DATA.
        batch: That is timed.
        samples: Images that cuts are fitted on.
        reductions: Sizes that are asked for in MACs; those of milliseconds are predicted to be as fast.
    """

    model: str
    kwargs: dict[str, Any]
    weights: str
    batch: int
    samples: int
    reductions: tuple[float, ...]


TEACHERS = {
    "CIFAR-10 teacher": Teacher(
        MODEL, MODEL_KWARGS, "teacher/deit_tiny_cifar10.safetensors", 64, 500, (0.55, 0.65, 0.73, 0.8)
    ),
    "ViT-S/14": Teacher(
        "vit_small_patch14_dinov2", {"img_size": 224, "num_classes": 0}, "dinov2/vit_small_dinov2_focus.safetensors",
        16, 64, (0.166, 0.33, 0.5),
    ),
}  # fmt: skip
JUDGED = 300
"""Images that features are compared on; a model with a head is judged on all of `train-1.tar`."""

SEEDS = (0, 1, 2)
WAY = "either"
"""How a target in time is solved: rows called `milliseconds` are older, of a solver that knew no other currency."""
TARGETS: list[dict[str, float]] = [{"speedup": 1.3}, {"speedup": 1.7}, {"latency": 0.5}]
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
        "doubts": list(table.doubts), "original_ms": timed.base_ms, "plans": found,
    }  # fmt: skip


def agreeing(data: Path, subject: Subject) -> Callable[[TimmModule], float]:
    """How far a model agrees with the original, in percent, on images that nothing was fitted to.

    Of images, those with the same class; where there is no head, of the variance of the pooled features, what is left.
    """
    source = open_source(f"{data}/cifar10/train-1.tar", "train")
    if subject.architecture.num_classes:
        judge = Judge(source, "train-1.tar", subject)
        return lambda model: judge.judge(model, subject.model).agreement
    images = draw_few_shot(source, JUDGED, 0, subject.architecture.input_size[0]).tensor(subject.preprocessing)
    wanted, _ = features_of(subject.model, subject, images)
    return lambda model: 100 * (1 - agreement(features_of(model, subject, images)[0], wanted)[1])


def currencies(data: Path, name: str, runtime: str, precision: Precision, batch: int, seed: int) -> dict[str, Any]:
    """Models of MACs, and of milliseconds that are predicted to be as fast, judged and timed on equal terms."""
    teacher = TEACHERS[name]
    model, where = teacher.model, {"model_kwargs": teacher.kwargs, "checkpoint": data / teacher.weights}
    subject = open_subject(model, **where)  # type: ignore[arg-type]
    variant = Variant.of(batch, precision)
    agrees = agreeing(data, subject)
    table = table_for(subject, runtime, variant, None, Style())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:

        def curve(name: str, **asked: Any) -> list[CompressionPlan]:
            out = Path(temporary) / name
            result = frontier(
                model, f"{data}/cifar10/train-0.tar", out=out, samples=teacher.samples, seed=seed,
                settings=SearchSettings(steps=0), cache=Path(tempfile.gettempdir()) / "dcvit-milliseconds",
                **where, **asked,
            )  # fmt: skip
            plans = []
            for point in result.points:
                folder = ModelFolder(out / point.folder)
                plans.append(folder.plan)
                rows.append(
                    {"folder": point.folder, "curve": name, "macs_reduction": point.macs_reduction,
                     "damage": point.error, "agreement": agrees(folder.load()),
                     "solved_in": folder.manifest.metrics.get("solved_in"),
                     "predicted": predicted(subject, folder.plan, table)["speedup"]}
                )  # fmt: skip
            return plans

        plans = curve("macs", reductions=teacher.reductions)
        speedups = [round(row["predicted"], 3) for row in rows]
        plans += curve(runtime, speedups=speedups, runtimes=(runtime,), precision=precision, batch=batch)
    for start in range(0, len(plans), AT_ONCE):
        timed = time_plans(subject, [subject.plan, *plans[start : start + AT_ONCE]], runtime, variant)
        for row, ratio in zip(rows[start : start + AT_ONCE], timed.ratios, strict=True):
            row |= {"speedup": 1 / ratio.value, "ci95": [1 / ratio.high, 1 / ratio.low]}
    known = {"teacher": name, "runtime": runtime, "precision": precision, "batch": batch, "seed": seed}
    return known | {"way": WAY, "doubts": list(table.doubts), "rows": rows}


def target_met(runtime: str, precision: Precision, target: dict[str, float]) -> dict[str, Any]:
    """What is asked for, what `compress` says it came to, and what a fresh bench measures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "small"
        where: dict[str, Any] = {"runtime": runtime, "precision": precision}
        wanted = dict(target)
        if "latency" in target:
            subject = open_shapes("deit_tiny_patch16_224")
            whole = time_plans(subject, [subject.plan, subject.plan], runtime, Variant.of(64, precision)).base_ms
            wanted = {"latency": target["latency"] * whole}
        started = time.perf_counter()
        made = compress("deit_tiny_patch16_224", out=folder, recover="none", weights="random", **wanted, **where)
        spent = time.perf_counter() - started
        if runtime != "torch":
            export(folder, precision=precision, data="digits" if precision == "int8" else None)
        row = benchmark(folder, runtimes=[runtime], precision=precision, max_seconds=90).rows[0]
        asked = target.get("speedup") or 1 / target["latency"]
        return {
            **where, **target, "batch": 64, "seconds": spent, "said": made.metrics["speedup"]["speedup"],
            "bench": row.speedup, "ci95": list(row.speedup_ci95), "latency_ms": row.latency.median_ms,
            "wanted_ms": wanted.get("latency"), "error": row.speedup / asked - 1,
        }  # fmt: skip


@click.command()
@click.option("--part", type=click.Choice(["prediction", "currencies", "targets"]), multiple=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--teacher", "teachers", type=click.Choice(list(TEACHERS)), multiple=True, default=list(TEACHERS),
              help="Of currencies.")  # fmt: skip
@click.option("--runtime", "runtimes", multiple=True, help="NAME:PRECISION; by default four of a CPU.")
@click.option("--seed", "seeds", type=int, multiple=True, default=SEEDS, help="Of currencies.")
@click.option("--batch", type=click.IntRange(1), help="Of currencies; by default the teacher's.")
@click.option("--data", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Markdown to write.")
def main(
    part: tuple[str, ...],
    cases: tuple[str, ...],
    teachers: tuple[str, ...],
    runtimes: tuple[str, ...],
    seeds: tuple[int, ...],
    batch: int | None,
    data: Path | None,
    out: Path,
    page_path: Path | None,
) -> None:
    """Measures what has not been measured yet."""
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    here_is = {"machine": this_machine().to_json(), "versions": package_versions()}
    where: list[tuple[str, Any]] = [tuple(each.split(":")) for each in runtimes] or list(WHERE)  # type: ignore[misc]

    def done(kind: str, **known: Any) -> bool:
        return any(known.items() <= row.items() for row in report.get(kind, []))

    def keep(kind: str, row: dict[str, Any]) -> None:
        report.setdefault(kind, []).append(row | here_is)
        save(out, report)
        click.echo(json.dumps({key: value for key, value in row.items() if key not in ("plans", "rows")}))

    for runtime, precision in where:
        here = {"runtime": runtime, "precision": precision}
        for case in cases if "prediction" in part else ():
            if not done("prediction", case=case, **here):
                keep("prediction", prediction(case, runtime, precision))
        for teacher, seed in product(teachers, seeds) if "currencies" in part else ():
            if data is None:
                raise click.UsageError("--part currencies needs --data")
            images = batch or TEACHERS[teacher].batch
            if not done("currencies", teacher=teacher, seed=seed, batch=images, way=WAY, **here):
                keep("currencies", currencies(data, teacher, runtime, precision, images, seed))
        for target in TARGETS if "targets" in part else ():
            if not done("targets", **here, **target):
                keep("targets", target_met(runtime, precision, target))
    if page_path is not None:
        page_path.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
