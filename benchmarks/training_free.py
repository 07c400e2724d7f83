"""Merging without training: what the CIFAR-10 teacher keeps, with and without size-aware attention.

    python benchmarks/training_free.py --data DATA -o benchmarks/results/training_free.json

DATA holds `cifar10/train-0.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`. For each ratio of MACs
some schedules are fixed, and the chooser finds another on training images, without their labels. No weight changes.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

import dcvit
from dcvit.data import draw_few_shot, open_source
from dcvit.files import whole_file
from dcvit.methods.merges.search import MergeSearch, choose_merges
from dcvit.plan import merges_text
from dcvit.stages import StageStore
from dcvit.subject import Subject, open_subject
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS

SCHEDULES = {
    1.3: ("horizontal@6", "vertical@6"),
    1.7: ("horizontal@4,vertical@8", "vertical@4,horizontal@8"),
}
"""Fixed schedules, by the ratio of MACs that they come close to."""


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--images", default=256, show_default=True, help="For the chooser.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, help="Of PyTorch.")
def main(data: Path, out: Path, images: int, seed: int, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = data / "teacher" / "deit_tiny_cifar10.safetensors"
    teacher = {"model_kwargs": MODEL_KWARGS, "checkpoint": checkpoint}
    test = data / "cifar10" / "test.tar"
    subject = open_subject(MODEL, **teacher)
    few = draw_few_shot(open_source(data / "cifar10" / "train-0.tar", "train"), images, seed)
    original = dcvit.evaluate(MODEL, test, **teacher)
    click.echo(f"uncompressed: top-1 {original.top1:.2f} %")
    rows: list[dict[str, Any]] = []
    searches = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = StageStore(Path(temporary) / "store")
        calibration = few.tensor(subject.preprocessing)
        for ratio, fixed in SCHEDULES.items():
            search = _search(subject, calibration, 1 - 1 / ratio, store)
            searches[f"{ratio:g}"] = search.to_json()
            for merge, chosen in _schedules(fixed, search):
                row: dict[str, Any] = {"ratio": ratio, "merge": merge, "chosen": chosen}
                for aware in (True, False):
                    folder = Path(temporary) / f"{merge}-{aware}"
                    made = dcvit.compress(MODEL, out=folder, merge=merge, size_aware=aware, recover="none", **teacher)
                    found = dcvit.evaluate(folder, test)
                    row["macs_ratio"] = made.summary.macs_before / made.summary.macs_after
                    row["tokens"] = made.summary.tokens
                    row["top1_size_aware" if aware else "top1_plain"] = found.top1
                click.echo(json.dumps(row))
                rows.append(row)
    report = {
        "model": MODEL,
        "top1_uncompressed": original.top1,
        "test_images": original.images,
        "precision": "fp32",
        "runtime": "torch",
        "device": original.device,
        "calibration": few.fingerprint | {"source": "cifar10/train-0.tar"},
        "rows": rows,
        "searches": searches,
        "versions": package_versions(),
    }
    with whole_file(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")


def _search(subject: Subject, images: torch.Tensor, macs_reduction: float, store: StageStore) -> MergeSearch:
    plan = subject.plan.replace(size_aware_attention=True)
    return choose_merges(subject.model, subject.family, plan, images, macs_reduction=macs_reduction, store=store)


def _schedules(fixed: tuple[str, ...], search: MergeSearch) -> Iterator[tuple[str, bool]]:
    chosen = merges_text(search.merges)
    yield from ((merge, merge == chosen) for merge in fixed)
    if chosen not in fixed:
        yield chosen, True


if __name__ == "__main__":
    main()
