"""How fast a trained model becomes by each method at equal agreement with the original, no step trained.

    python benchmarks/peers/agreement.py --data DATA -o benchmarks/results/peers_agreement.json   # on a quiet machine

The CIFAR-10 teacher of DATA (`teacher/`, `cifar10/train-0.tar` to fit on) is cut to some sizes by each method; how many
images of `cifar10/test.tar` have the class that the teacher gives them is counted, and all models are timed in one
interleaved run: ONNX Runtime fp32 on the CPU, batch 64, with the weights that they have. `--page` puts the table into
`docs/peers.md`.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # `few_shot`, `real_vit` and `peers`, however this file is started

import real_vit
from at_agreement import at_agreement
from dcvit.bench.machine import this_machine
from dcvit.bench.statistics import speedup, speedup_interval
from dcvit.cost import count_macs
from dcvit.data import open_source
from dcvit.exporting.onnx import write_onnx
from dcvit.methods.accuracy_target import Judge
from dcvit.methods.cait.proposal import propose_jointly, stand_in_merges
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.target import Target
from dcvit.plan import Axis, Merge
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.subject import Subject, open_subject
from dcvit.types import TimmModule
from dcvit.variant import Variant
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save
from peers.compare import interleaved
from peers.page import put
from peers.pruned import prune
from peers.tome import ToMe

LEVELS = (99.0, 97.0, 95.0, 90.0)
"""Percent of the images with the teacher's class."""
SAMPLES = 500


def _merged(study: real_vit.Study, after: float) -> TimmModule:
    axis: Axis = "horizontal"
    return cut_by_norm(study.subject, study.subject.plan.replace(merges=(Merge(after=int(after), axis=axis),)))


def _uniform(study: real_vit.Study, share: float) -> TimmModule:
    """Heads and MLPs equally narrow, least norm gone, nothing refitted."""
    target, whole = Target(macs_reduction=share, merge="none"), CaitSettings(trim=False)
    merges = stand_in_merges(study.subject, target, whole)
    return cut_by_norm(study.subject, propose_jointly(study.subject, target, whole, merges, trained=True).uniform())


METHODS: dict[str, tuple[str, tuple[float, ...], Callable[[real_vit.Study, float], TimmModule]]] = {
    "DC-ViT (ours)": ("MACs less", (0.65, 0.73, 0.8, 0.85), real_vit.Study.ours),
    "uniform MLPs, ridge": ("MACs less", (0.15, 0.3, 0.4, 0.5), real_vit.Study.uniform),
    "uniform widths": ("MACs less", (0.1, 0.2, 0.35), _uniform),
    "merging (ours)": ("after block", (10, 8, 6), _merged),
    "ToMe": ("r", (1, 2, 3, 4), lambda study, r: ToMe(study.subject.model, r)),
    "Torch-Pruning": ("share", (4 / 64, 10 / 64, 20 / 64),
                      lambda study, share: prune(study.subject.model, share, round_to=4)),
}  # fmt: skip
"""What a size of each is, the sizes, and how one is made."""


def measure(
    subject: Subject, data: Path, methods: Sequence[str], runs: int, max_seconds: float, judged: str = "test"
) -> dict[str, Any]:
    machine = this_machine()
    judge = Judge(open_source(data / "cifar10" / f"{judged}.tar", judged.split("-")[0]), f"{judged}.tar", subject)
    size = subject.architecture.input_size
    macs = count_macs(subject.model, size).total
    images = torch.randn(64, *size, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        study = real_vit.Study(subject, data / "cifar10" / "train-0.tar", SAMPLES, 0, place / "store")

        def session(model: TimmModule, name: str) -> OrtSession:
            write_onnx(model.eval(), place / f"{name}.onnx", subject.preprocessing, Variant.of(64), {})
            opened = OrtSession(place / f"{name}.onnx")
            opened.load(images)
            return opened

        sessions = {"original": session(subject.model, "original")}
        for method in methods:
            _, sizes, make = METHODS[method]
            for each in sizes:
                model = make(study, each)
                key = f"{method} {each:g}"
                sessions[key] = session(model, str(len(sessions)))
                rows.append(
                    {"method": method, "size": each, "key": key, "macs_ratio": macs / count_macs(model, size).total,
                     "agreement": judge.judge(model, subject.model).agreement}
                )  # fmt: skip
                click.echo(json.dumps(rows[-1]), err=True)
        times = interleaved({key: each.execute for key, each in sessions.items()}, runs, max_seconds)
    for row in rows:
        key = row.pop("key")
        row["speedup"] = speedup(times["original"], times[key])
        row["ci95"] = list(speedup_interval(times["original"], times[key]))
    return {
        "rows": rows, "images": len(judge.source), "rounds": len(times["original"]),
        "threads": sessions["original"].threads, "machine": machine.measured().to_json(), "busy": machine.busy,
        "versions": package_versions(),
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Markdown: a line for each method, its speed-up at each agreement, and all of its sizes."""
    lines = [
        "| method | " + " | ".join(f"at {level:g} %" for level in LEVELS) + " | sizes: MACs, agreement, speed-up |",
        "|---" * (len(LEVELS) + 2) + "|",
    ]
    for method in METHODS:
        rows = [row for row in report["rows"] if row["method"] == method]
        if not rows:
            continue
        points = [(1.0, 100.0), *((row["speedup"], row["agreement"]) for row in rows)]
        found = [at_agreement(points, level) for level in LEVELS]
        cells = [f"> ×{max(points)[0]:.2f}" if speed is None else f"×{speed:.2f}" for speed in found]
        sizes = "; ".join(
            f"×{row['macs_ratio']:.2f}, {row['agreement']:.2f} %, ×{row['speedup']:.2f} "
            f"[{row['ci95'][0]:.2f}, {row['ci95'][1]:.2f}]" for row in rows
        )  # fmt: skip
        lines.append(f"| {method} | {' | '.join(cells)} | {sizes} |")
    machine = report["machine"]
    busy = f"; the machine was busy (load {machine['load']:.1f})" if report["busy"] else ""
    return "\n".join(lines) + (
        f"\n\nThe same teacher, its own weights, nothing trained: what a method alone leaves. Agreement is of "
        f"{report['images']:,} test images with the teacher's class, PyTorch fp32; a speed-up at equal agreement is "
        f"read off a line between two sizes, the original among them. Ours and the ridge fit on {SAMPLES} unlabelled "
        "images; the others see none. Torch-Pruning and `uniform widths` narrow heads and MLPs alike, by norm; merging "
        "is one horizontal merge by the mean. ONNX Runtime fp32, batch 64, "
        f"{report['rounds']} interleaved rounds of all models, {machine['cpu']}, {report['threads']} threads{busy}. "
        "Each peer is made for training behind it, as the tables above have it; this one says what it costs to go "
        "without. Written by `benchmarks/peers/agreement.py`.\n"
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True, default=list(METHODS))
@click.option("--judged", default="test", show_default=True, help="The tar of cifar10/ to judge on.")
@click.option("--runs", default=40, show_default=True, help="Rounds, at most.")
@click.option("--max-seconds", default=300.0, show_default=True, help="Of timing, in all.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="With the table; such as docs/peers.md.")
def main(
    data: Path, out: Path, methods: tuple[str, ...], judged: str, runs: int, max_seconds: float, page_path: Path | None
) -> None:
    if "Torch-Pruning" in methods and find_spec("torch_pruning") is None:
        raise click.ClickException("torch-pruning is not there; `pip install 'dcvit-tool[bench]'`, or name --method")
    checkpoint = data / "teacher/deit_tiny_cifar10.safetensors"
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=checkpoint)
    report = measure(subject, data, methods, runs, max_seconds, judged)
    save(out, report)
    if page_path is not None:
        put(page_path, "agreement", table(report))
    click.echo(table(report))


if __name__ == "__main__":
    main()
