"""Few-shot compression on CIFAR-10: our search, DC-ViT, PRACTISE and random blocks, on equal images and steps.

    python benchmarks/few_shot.py --data DATA -o benchmarks/results/few_shot.json

DATA holds `cifar10/train-0.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`. A row is written as
soon as it is measured, and rows that the file holds already are not measured again. Accuracy is top-1 on all images
of `test.tar`, through PyTorch in fp32; no method sees them. `plot_few_shot.py` makes the table and the plot.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from dcvit.bench.machine import this_machine
from dcvit.compression import compress
from dcvit.evaluation import evaluate
from dcvit.files import whole_file
from dcvit.methods.few_shot.proposal import propose
from dcvit.methods.few_shot.settings import FewShotSettings, PractiseSettings, SearchSettings
from dcvit.methods.target import Target
from dcvit.subject import open_shapes
from dcvit.versions import package_versions

MODEL = "deit_tiny_patch16_224"
MODEL_KWARGS = {
    "img_size": 32,
    "patch_size": 4,
    "num_classes": 10,
    "pretrained_cfg_overlay": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616], "crop_pct": 1.0},
}
SYNTHESIS_STEPS = 300


@dataclass(frozen=True)
class Row:
    """One compression: what was asked for. `steps` are for each compressed block; all methods of a row get as many."""

    method: str
    reduction: float
    samples: int
    seed: int
    steps: int


@dataclass(frozen=True)
class Study:
    data: Path
    cache: Path

    def run(self, row: Row) -> dict[str, Any]:
        target, settings = METHODS[row.method](row)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = compress(
                MODEL,
                self.data / "cifar10" / "train-0.tar",
                out=Path(folder) / "out",
                target=target,
                settings=settings,
                samples=row.samples,
                seed=row.seed,
                model_kwargs=MODEL_KWARGS,
                checkpoint=self.data / "teacher" / "deit_tiny_cifar10.safetensors",
                cache=self.cache,
            )
            seconds = time.perf_counter() - started
            accuracy = evaluate(result.folder, self.data / "cifar10" / "test.tar", batch=250)
        blocks = {
            block.index: (block.removed, block.head_dim, block.mlp_hidden) for block in result.summary.plan.blocks
        }
        return {
            **asdict(row),
            "top1": accuracy.top1,
            "images": accuracy.images,
            "macs_reduction": result.summary.macs_reduction,
            "seconds": round(seconds, 1),
            "recovery_steps": _steps(settings, result.metrics),
            "blocks": blocks,
            "machine": this_machine().kind,
        }

    def teacher(self) -> float:
        return evaluate(
            MODEL,
            self.data / "cifar10" / "test.tar",
            batch=250,
            model_kwargs=MODEL_KWARGS,
            checkpoint=self.data / "teacher" / "deit_tiny_cifar10.safetensors",
        ).top1


def _blocks_of_the_paper(row: Row) -> int:
    """k of DC-ViT's structure at this reduction: what the step budget of a row is counted by."""
    target = Target(macs_reduction=row.reduction, width_multiple=1)
    return propose(open_shapes(MODEL, MODEL_KWARGS), target).structure().units


def _ours(row: Row) -> tuple[Target, SearchSettings]:
    # One training, as long as all trainings of the paper's recovery together; the trials of the paper come on top.
    return Target(macs_reduction=row.reduction), SearchSettings(steps=row.steps * _blocks_of_the_paper(row))


def _ours_untrained(row: Row) -> tuple[Target, SearchSettings]:
    return Target(macs_reduction=row.reduction), SearchSettings(steps=0)


def _paper(row: Row) -> tuple[Target, SearchSettings]:
    settings = SearchSettings.paper().model_copy(update={"steps": row.steps, "synthesis_steps": SYNTHESIS_STEPS})
    return Target(macs_reduction=row.reduction, width_multiple=1), settings


def _paper_with_our_training(row: Row) -> tuple[Target, SearchSettings]:
    settings = SearchSettings(search="trials", nodes="random", steps=row.steps)
    return Target(macs_reduction=row.reduction, width_multiple=1), settings


def _practise(row: Row) -> tuple[Target, PractiseSettings]:
    # Its fine-tuning is as long as DC-ViT's trainings together (see `practise`).
    # The width multiple decides k, by which the steps are counted; PRACTISE has no widths.
    target = Target(macs_reduction=row.reduction, width_multiple=1)
    return target, PractiseSettings(steps=row.steps)


def _random_blocks(row: Row) -> tuple[Target, SearchSettings]:
    target = Target(macs_reduction=row.reduction, width_multiple=1)
    subject = open_shapes(MODEL, MODEL_KWARGS)
    proposal = propose(subject, target)
    order = np.random.default_rng(row.seed).permutation(list(proposal.units)).tolist()
    entries = [entry for unit in proposal.chosen([tuple(unit) for unit in order]) for entry in unit]
    return Target(plan=subject.plan.with_blocks(*entries)), SearchSettings.paper().model_copy(
        update={"steps": row.steps, "metric": "train"}
    )


METHODS: dict[str, Callable[[Row], tuple[Target, FewShotSettings]]] = {
    "ours": _ours,
    "ours, untrained": _ours_untrained,
    "DC-ViT": _paper,
    "DC-ViT, our training": _paper_with_our_training,
    "PRACTISE": _practise,
    "random blocks": _random_blocks,
}
MAIN = ("ours", "DC-ViT", "PRACTISE", "random blocks")
"""Methods that are compared in every case; the others are parts of them, compared in one."""


def _steps(settings: FewShotSettings, metrics: dict[str, Any]) -> int:
    """Optimiser steps of the recovery, trials not counted."""
    if "fine_tuning_steps" in metrics:
        return int(metrics["fine_tuning_steps"])
    if "trials" not in metrics:
        return settings.steps
    return settings.steps * (len(metrics["losses"]) - len(metrics["trials"]))


def rows(steps: int) -> list[Row]:
    """Three seeds at 16.6 %, few images there too, larger reductions, and at one of them what each part is worth."""
    cases = [
        (0.166, 500, 0),
        (0.331, 500, 0),
        (0.5, 500, 0),
        (0.248, 500, 0),
        (0.166, 500, 1),
        (0.166, 500, 2),
        (0.166, 50, 0),
    ]
    main = [Row(method, *case, steps) for case in cases for method in METHODS if method in MAIN]
    return main + [Row(method, 0.331, 500, 0, steps) for method in METHODS if method not in MAIN]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/few_shot_cache"), show_default=True)
@click.option("--steps", default=24, show_default=True, help="For each block that DC-ViT compresses, and each trial.")
@click.option("--part", type=(int, int), default=(0, 1), help="I N: only every N-th row, for N processes side by side.")
def main(data: Path, out: Path, cache: Path, steps: int, part: tuple[int, int]) -> None:
    study = Study(data, cache)
    wanted = rows(steps)[part[0] :: part[1]]
    if not out.exists():
        versions, machine = package_versions(), this_machine().to_json()
        save(out, {"teacher_top1": study.teacher(), "versions": versions, "machine": machine, "rows": []})
    done = {tuple(row[name] for name in Row.__dataclass_fields__) for row in json.loads(out.read_text())["rows"]}
    for row in wanted:
        if tuple(asdict(row).values()) in done:
            continue
        found = study.run(row)
        report = json.loads(out.read_text())  # another process may have added rows meanwhile
        report["rows"].append(found)
        save(out, report)
        click.echo(f"{row}: top-1 {found['top1']:.2f} ({report['teacher_top1']:.2f}), {found['seconds']} s")


def save(out: Path, report: dict[str, Any]) -> None:
    with whole_file(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
