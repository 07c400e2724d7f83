"""What fp16, bf16 and int8 cost and gain: the CIFAR-10 teacher and two compressed versions of it, in every runtime.

    python benchmarks/precisions.py --data DATA --folders FOLDERS -o benchmarks/results/precisions.json
    python benchmarks/precisions.py --data DATA --folders FOLDERS -o benchmarks/results/precisions.json --bench

DATA holds `cifar10/train-0.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`. FOLDERS keeps the
three model folders and their exported files between runs. The first command measures top-1 on all images of `test.tar`;
the second, on a quiet machine, the latency of batches of 64 against fp32 of the same model in ONNX Runtime and in
PyTorch, in turn. A row is written as soon as it is measured, and what the file holds already is not measured again.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dcvit.artifacts import Precision
from dcvit.bench.machine import this_machine
from dcvit.bench.rounds import Limits, run_rounds
from dcvit.bench.statistics import Latency, speedup, speedup_interval
from dcvit.compression import compress
from dcvit.data import open_source
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.files import whole_file
from dcvit.folder import ModelFolder
from dcvit.manifest import Manifest
from dcvit.runtimes import RUNTIMES, runtime_named
from dcvit.subject import open_subject
from few_shot import MODEL, MODEL_KWARGS

BATCH = 64
RAN: list[tuple[str, Precision]] = [
    ("torch", "fp32"),
    ("torch", "fp16"),
    ("torch", "bf16"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
]
BASELINES: list[tuple[str, Precision]] = [("onnxruntime", "fp32"), ("torch", "fp32")]
Make = Callable[[Path, Path], None]


def teacher(data: Path, out: Path) -> None:
    """The model itself."""
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=_checkpoint(data))
    manifest = Manifest(model=MODEL, method="none", plan_digest="", seed=0, preprocessing=subject.preprocessing)
    ModelFolder.create(out, subject.model, subject.plan, manifest)


def a_third_less(data: Path, out: Path) -> None:
    """A third of the MACs less, by the default method, from 500 images."""
    compress(
        MODEL,
        data / "cifar10" / "train-0.tar",
        out=out,
        model_kwargs=MODEL_KWARGS,
        checkpoint=_checkpoint(data),
        macs_reduction=0.33,
        samples=500,
    )


def merged(data: Path, out: Path) -> None:
    """Tokens merged after blocks 4 and 8, nothing trained."""
    compress(
        MODEL,
        out=out,
        model_kwargs=MODEL_KWARGS,
        checkpoint=_checkpoint(data),
        merge="horizontal@4,vertical@8",
        size_aware=True,
        recover="none",
    )


MODELS: dict[str, Make] = {"teacher": teacher, "a third less": a_third_less, "merged": merged}


class Some:
    """Images of a source, evenly spread over it."""

    def __init__(self, path: Path, count: int | None) -> None:
        self._all = open_source(path, "test")
        self.name, self.classes = self._all.name, self._all.classes
        self._chosen = np.linspace(0, len(self._all) - 1, count or len(self._all)).round().astype(int)

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, index: int) -> tuple[bytes, int]:
        return self._all.read(int(self._chosen[index]))

    def filename(self, index: int) -> str:
        return self._all.filename(int(self._chosen[index]))


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--folders", type=click.Path(path_type=Path), required=True, help="Where the model folders are kept.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, default=list(MODELS))
@click.option("--limit", type=int, help="Images to count on, for a trial. [default: all]")
@click.option("--bench", is_flag=True, help="Measure latencies instead of accuracies; needs a quiet machine.")
@click.option("--max-seconds", default=20.0, show_default=True, help="Of timing, for each pair.")
def main(
    data: Path, folders: Path, out: Path, models: tuple[str, ...], limit: int | None, bench: bool, max_seconds: float
) -> None:
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"accuracy": [], "latency": []}
    for model in models:
        folder = _folder(model, data, folders)
        images = Some(data / "cifar10" / "test.tar", limit)
        kind, rows = ("latency", _latencies) if bench else ("accuracy", _accuracies)
        done = [row for row in found[kind] if row["model"] == model and row.get("images") in (None, len(images))]
        for row in rows(model, folder, images, max_seconds, done):
            found[kind].append(row)
            found |= {"machine": this_machine().to_json()}
            with whole_file(out) as aside:
                aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            click.echo(json.dumps(row))


def _folder(model: str, data: Path, folders: Path) -> ModelFolder:
    """The model's folder with the exported files that all of `RAN` need; made if it is not there."""
    path = folders / model.replace(" ", "-")
    if not ModelFolder.is_one(path):
        MODELS[model](data, path)
    folder = ModelFolder(path)
    if f"model.b{BATCH}.int8.onnx" not in folder.manifest.exports:  # the last one
        export(folder, BATCH, "fp32")
        export(folder, BATCH, "fp16")
        export(folder, BATCH, "int8", data=data / "cifar10" / "train-1.tar")
    return folder


def _accuracies(
    model: str, folder: ModelFolder, images: Some, max_seconds: float, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    del max_seconds
    for runtime, precision in _missing(done, ("runtime", "precision"), [*RAN]):
        result = evaluate(folder.path, images, runtime=runtime, precision=precision, batch=BATCH)
        yield {
            "model": model,
            "runtime": runtime,
            "precision": precision,
            "top1": result.top1,
            "images": result.images,
        }


def _latencies(
    model: str, folder: ModelFolder, images: Some, max_seconds: float, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    del images
    pairs = [(*ran, *baseline) for ran in RAN for baseline in BASELINES if ran != baseline]
    keys = ("runtime", "precision", "against_runtime", "against_precision")
    batch = torch.randn(BATCH, *folder.manifest.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    for runtime, precision, against, against_precision in _missing(done, keys, pairs):
        before = runtime_named(against).open(folder, BATCH, against_precision)
        after = runtime_named(runtime).open(folder, BATCH, precision)
        for session in (before, after):
            session.load(batch)
        rounds = run_rounds(
            before.execute, after.execute, Limits(max_seconds=max_seconds), f"{model}, {runtime} {precision}"
        )
        low, high = speedup_interval(rounds.baseline_ms, rounds.candidate_ms)
        yield {
            "model": model,
            "runtime": runtime,
            "precision": precision,
            "against_runtime": against,
            "against_precision": against_precision,
            "batch": BATCH,
            "median_ms": Latency.of(rounds.candidate_ms).median_ms,
            "against_median_ms": Latency.of(rounds.baseline_ms).median_ms,
            "speedup": speedup(rounds.baseline_ms, rounds.candidate_ms),
            "speedup_ci95": [low, high],
            "runs": len(rounds.baseline_ms),
            "threads": after.threads,
            "device": after.device,
        }


def _missing(
    done: list[dict[str, Any]], keys: tuple[str, ...], wanted: list[tuple[Any, ...]]
) -> Iterator[tuple[Any, ...]]:
    """Those that can be measured here and are not measured yet."""
    measured = {tuple(row[key] for key in keys) for row in done}
    for case in wanted:
        runtime = RUNTIMES[case[0]]
        if case not in measured and runtime.unavailable() is None and case[1] in runtime.precisions:
            yield case


def _checkpoint(data: Path) -> Path:
    return data / "teacher" / "deit_tiny_cifar10.safetensors"


if __name__ == "__main__":
    main()
