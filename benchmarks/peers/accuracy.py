"""The accuracy of peers whose latency `compare.py` measures, trained exactly as `benchmarks/cait.py` trains its rows.

    python benchmarks/peers/accuracy.py --data DATA --epochs 1 --lr 5e-4      # writes results/peers_accuracy.json
    python benchmarks/peers/accuracy.py --table docs/peers.md                 # with the rows of results/cait.json

DATA, images, recipe, order and number of epochs are those of `cait.py`, and MACs as close to the same as each peer can
come. All start from the teacher's weights: Torch-Pruning prunes it; of timm's smaller models the shallower one takes
some of its blocks, the narrower one some of its channels (`smaller.py`). `narrower, random start` is there to tell
whether that is worth anything. A row is written as soon as it is measured, and rows that the file holds already are not
measured again; one that was stopped goes on from its checkpoint. One epoch of one row takes about five minutes.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # `cait` and `peers`, however this file is started

from cait import Row, Study, top1
from dcvit.bench.machine import this_machine
from dcvit.evaluation import evaluate
from dcvit.model import create
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save
from peers import compare
from peers.page import put
from peers.pruned import prune
from peers.smaller import evenly, first_and_last, start_narrower, start_shallower
from peers.trained import Trained, trained

RESULTS = Path(__file__).parents[1] / "results"
WHOSE = {"control": "timm", "control, label-free": "timm"} | {
    name: whose for name, (whose, _, _) in compare.PEERS.items()
}


def _torch_pruning(sizes: compare.Study) -> compare.Made:
    model = sizes.subject.model
    shares = range(26, 35)
    share, made = sizes.closest({s / 64: partial(prune, model, s / 64, round_to=8) for s in shares})
    block = made.blocks[0]
    return f"{share:.0%}: heads of {block.attn.head_dim}, MLPs of {block.mlp.fc1.out_features}", made


def _shallower(sizes: compare.Study) -> compare.Made:
    return _of_blocks(sizes, evenly)


def _shallower_first_blocks(sizes: compare.Study) -> compare.Made:
    return _of_blocks(sizes, first_and_last)


def _of_blocks(sizes: compare.Study, choose: Callable[[int, int], list[int]]) -> compare.Made:
    model = sizes.subject.model
    whole = len(model.blocks)
    depths = {depth: partial(create, MODEL, MODEL_KWARGS | {"depth": depth}) for depth in range(2, whole)}
    depth, small = sizes.closest(depths)
    kept = choose(whole, int(depth))
    return f"{depth} of {whole} blocks: {', '.join(map(str, kept))}", start_shallower(model, small, kept)


def _narrower(sizes: compare.Study) -> compare.Made:
    setting, small = _narrow(sizes)
    return f"{setting}, largest norm", start_narrower(sizes.subject, small)


def _narrower_at_random(sizes: compare.Study) -> compare.Made:
    setting, small = _narrow(sizes)
    return f"{setting}, random weights", small


def _narrow(sizes: compare.Study) -> compare.Made:
    whole = sizes.subject.model.embed_dim
    dims = {dim: partial(create, MODEL, MODEL_KWARGS | {"embed_dim": dim}) for dim in range(whole // 2, whole, 6)}
    dim, small = sizes.closest(dims)
    return f"embed_dim {dim} of {whole}", small


STARTS: dict[str, Callable[[compare.Study], compare.Made]] = {
    "Torch-Pruning": _torch_pruning,
    "shallower": _shallower,
    "narrower": _narrower,
    "shallower, first blocks": _shallower_first_blocks,
    "narrower, random start": _narrower_at_random,
}


def run(study: Study, row: Row) -> dict[str, Any]:
    """Trains one peer; its top-1 before training stands beside that after."""
    began = time.perf_counter()
    torch.manual_seed(row.seed)
    subject = study.subject()
    setting, student = STARTS[row.method](compare.Study(subject, study.folders, row.macs_reduction))
    before = top1(student, subject, study.test)
    _, figures = study.train_alike(row, lambda _: student)
    seconds = round(time.perf_counter() - began, 1)
    return {**asdict(row), "setting": setting, "top1_untrained": before, **figures, "seconds": seconds}


def table(rows: list[Trained], report: dict[str, Any]) -> str:
    """Markdown: all trainings on all images, those of equal length together, the best first."""
    lines = [
        "| model | setting | epochs | peak lr | MACs | params | top-1 untrained | top-1 | against its control |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    most = max(row.images for row in rows)
    for row in sorted(rows, key=lambda row: (row.epochs, -row.top1)):
        if row.images < most:
            continue
        before = "" if row.untrained is None else f"{row.untrained:.2f}"
        drop = "" if row.drop is None or row.method.startswith("control") else f"{row.drop:+.2f}"
        lines.append(
            f"| {row.method} ({WHOSE.get(row.method, 'ours')}) | {row.setting or ''} | {row.epochs:g} | {row.lr:g} | "
            f"×{row.macs_ratio:.3f} | {row.params / 1e6:.2f} M | {before} | {row.spread} | {drop} |"
        )
    images = f"{most:,}"
    lines += [
        "",
        f"DeiT-Tiny at 32 × 32 (patch 4) trained on CIFAR-10, {report['teacher_top1']:.2f} % top-1, is what every row "
        f"starts from. All are trained alike: the same {images} images in the same order, half on labels and half on "
        "the teacher's outputs (label-free: on those alone); the control is the teacher itself, trained on with the "
        "same learning rate. Top-1 on "
        f"{report['test_images']:,} test images, PyTorch fp32; of several seeds the mean ± standard deviation (seeds). "
        "Peers are as close to the MACs of the others as their own steps allow.",
    ]
    looks = [f"{row.method} {row.top1:.2f} (loss {row.loss:.3f})" for row in rows if row.images < most]
    if looks:
        lines += ["", f"After a shorter look, fewer than {images} images: {'; '.join(looks)}."]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Needed to train.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=RESULTS / "peers_accuracy.json")
@click.option("--folders", type=click.Path(path_type=Path), default=Path("runs/peers"), show_default=True)
@click.option("--method", "methods", type=click.Choice(list(STARTS)), multiple=True, default=list(STARTS)[:3])
@click.option("--epochs", default=1.0, show_default=True)
@click.option("--shards", type=click.IntRange(1, 5), default=5, show_default=True, help="Of 10,000 images each.")
@click.option("--macs-reduction", default=0.47, show_default=True)
@click.option("--lr", default=5e-4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--table", "page", type=click.Path(path_type=Path), help="Write the table of what is there to this page.")
def main(
    data: Path | None, out: Path, folders: Path, methods: tuple[str, ...], epochs: float, shards: int,
    macs_reduction: float, lr: float, seed: int, page: Path | None,
) -> None:  # fmt: skip
    if data is None and page is None:
        raise click.UsageError("give --data DATA to train, or --table PAGE")
    if data is not None:
        for method in methods:
            _add(out, Study(data, folders), Row(method, macs_reduction, epochs, shards, lr, seed))
    if page is not None:
        report = json.loads(out.read_text())
        study = json.loads((RESULTS / "cait.json").read_text())
        put(page, "accuracy", table(trained(study["rows"] + report["rows"]), report))


def _add(out: Path, study: Study, row: Row) -> None:
    if not out.exists():
        teacher = evaluate(MODEL, study.test, batch=250, model_kwargs=MODEL_KWARGS, checkpoint=study.checkpoint)
        versions = package_versions() | {"torch-pruning": version("torch-pruning")}
        save(out, {"teacher_top1": teacher.top1, "test_images": teacher.images, "versions": versions,
                   "machine": this_machine().to_json(), "rows": []})  # fmt: skip
    report = json.loads(out.read_text())
    if any(asdict(row).items() <= done.items() for done in report["rows"]):
        return
    report["rows"].append(run(study, row))
    save(out, report)
    click.echo(f"{row}: top-1 {report['rows'][-1]['top1']:.2f} ({report['teacher_top1']:.2f})")


if __name__ == "__main__":
    main()
