"""What the solver's examination costs: against depth, width, images and processes, exact and predicted.

    python benchmarks/examination.py --images DATA/cifar10/train-0.tar -o benchmarks/results/examination.json
    python benchmarks/examination.py -o benchmarks/results/examination.json --page docs/examination.md

On a quiet machine, with random weights, which take as long as trained ones. Every case runs in a process of its own, or
in two under `torchrun` with half of the cores each; what is timed is the examination alone, every cut of every block
with its refit, before any target is set. `--case` picks some. A row is written as soon as it is measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch

from dcvit.bench.machine import this_machine
from dcvit.data import open_source
from dcvit.hardware import accelerator
from dcvit.methods.few_shot.search import DcVitCompressor, possible_cuts
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.few_shot.solver import examined
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.stages import StageStore
from dcvit.subject import open_subject
from dcvit.versions import package_versions
from few_shot import save


@dataclass(frozen=True)
class Case:
    """What is examined, and how."""

    model: str
    kwargs: dict[str, Any]
    images: int
    way: str
    processes: int = 1
    kinds: Literal["all", "mlp"] = "all"

    @property
    def name(self) -> str:
        """For the command line."""
        size = ", ".join(f"{key} {value}" for key, value in self.kwargs.items())
        return f"{self.model} ({size}), {self.images} images, {self.way}, {self.kinds}, {self.processes}"


def _vit(depth: int, width: int, images: int, way: str, processes: int = 1) -> Case:
    kwargs = {"img_size": 112, "depth": depth, "embed_dim": width, "num_heads": width // 64}
    return Case("vit_small_patch16_224", kwargs, images, way, processes)


CASES = [
    *(_vit(depth, 192, 64, way) for depth in (6, 12, 24) for way in ("exact", "predicted")),
    *(_vit(12, width, 64, "predicted") for width in (384, 768)),
    *(_vit(12, 192, images, "predicted") for images in (128, 256)),
    *(_vit(12, 192, 64, way, 2) for way in ("exact", "predicted")),
    *(replace(_vit(12, 192, 64, way), kinds="mlp") for way in ("exact", "predicted")),
    Case("deit_small_patch16_224", {}, 256, "predicted"),
    Case("vit_base_patch16_224", {}, 256, "predicted"),
]


def examine(case: Case, images: Path) -> dict[str, float]:
    """Seconds, in this process or in all that share it, and how many cuts were weighed."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator().num_processes))
    subject = open_subject(case.model, model_kwargs=case.kwargs, weights="random")
    with tempfile.TemporaryDirectory() as place:
        run = Run(subject, open_source(images, "train"), case.images, 0, "mimic", StageStore(Path(place)))
        compressor = DcVitCompressor(run, SearchSettings(steps=0, examination=case.way))  # type: ignore[arg-type]
        job, proposal = compressor.job(Target(macs_reduction=0.3))
        cuts = possible_cuts(proposal)
        if case.kinds == "mlp":
            cuts = replace(cuts, narrower_heads=(), no_attention=(), gone=())
        accelerator().wait_for_everyone()
        started = time.perf_counter()
        found = examined(job, cuts, 8).damages.values()
        accelerator().wait_for_everyone()
        seconds = time.perf_counter() - started
    number = sum(len(each.mlp) + len(each.heads) + sum(gone is not None for gone in (each.attention, each.block))
                 for each in found)  # fmt: skip
    return {"seconds": seconds, "cuts": number}


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| model | images | cuts | examination | processes | seconds |", "|---|---|---|---|---|---|"]
    for row in report["rows"]:
        size = ", ".join(f"{key} {value}" for key, value in row["kwargs"].items() if key != "num_heads")
        model = f"{row['model']}{', ' + size if size else ''}"
        model += " †" if row.get("before_compaction") else ""
        before = row.get("seconds_before_compaction")
        seconds = f"{row['seconds']:.0f}" + (f" (before: {before:.0f})" if before else "")
        cells = (model, row["images"], row["cuts"], row["way"], row["processes"], seconds)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def page(report: dict[str, Any]) -> str:
    machine = report["about"]["machine"]
    words = (
        "Before a target is set, the default search measures what every cut of every block does, each with its "
        "closed-form refit. `--examination exact` runs the rest of the network for each, "
        "so its time grows with the square of the depth; `predicted` weighs a cut by what becomes of its own block, "
        "and grows with the depth. Under `torchrun` processes share the blocks. Written by "
        "`benchmarks/examination.py`: random weights, 224 pixels where none are named, one run each, "
        f"{machine['cores']} cores of {machine['cpu']}, so two processes have one each. Rows with † are "
        "older: since then, nodes that an MLP has given up are left out of what orders the others, so wide ones take "
        "less time; what was measured again has the older figure beside it."
    )
    return f"# What the examination costs\n\n{textwrap.fill(words, 120)}\n\n{table(report)}"


@click.command()
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="A folder of images, or a tar.")
@click.option("--case", "wanted", multiple=True, help="Names that contain this; by default all.")
@click.option("--one", type=int, hidden=True, help="This one, in this process.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Markdown to write.")
def main(images: Path | None, wanted: tuple[str, ...], one: int | None, out: Path, page_path: Path | None) -> None:
    """Measures what has not been measured yet."""
    if one is not None:
        assert images is not None
        found = examine(CASES[one], images)
        if accelerator().is_main_process:
            out.write_text(json.dumps(found))
        return
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": []}
    for number, case in enumerate(CASES):
        known = any(asdict(case).items() <= row.items() for row in report["rows"])
        if images is None or known or (wanted and not any(each in case.name for each in wanted)):
            continue
        with tempfile.TemporaryDirectory() as place:
            told = Path(place) / "seconds"
            start = [sys.executable, "-W", "ignore"]
            if case.processes > 1:
                start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.processes}"]
            script = [str(Path(__file__).resolve()), "--one", str(number), "--images", str(images), "-o", str(told)]
            subprocess.run([*start, *script], check=True)
            row = asdict(case) | json.loads(told.read_text())
        report["about"] = {"machine": this_machine().to_json(), "versions": package_versions()}
        report["rows"].append(row)
        save(out, report)
        click.echo(f"{case.name}: {row['seconds']:.0f} s")
    if page_path is not None:
        page_path.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
