"""What fp16, bf16 and int8 cost and gain: the CIFAR-10 teacher and two compressed versions of it, in every runtime.

    python benchmarks/precisions.py --data DATA --folders FOLDERS -o benchmarks/results/precisions.json
    python benchmarks/precisions.py --data DATA --folders FOLDERS -o benchmarks/results/precisions.json --bench
    python benchmarks/precisions.py --data DATA --folders FOLDERS -o benchmarks/results/precisions.json --engines
    python benchmarks/precisions.py -o benchmarks/results/precisions.json --table docs/precisions.md

DATA holds `cifar10/train-0.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`. FOLDERS keeps the
three model folders and their exported files between runs. The first command measures top-1 on all images of `test.tar`;
the second, on a quiet machine, the latency of batches of 64, in turn with the uncompressed model in ONNX Runtime at
fp32 and with the same model at fp32 in the same runtime. The third builds int8 and fp8 engines with TensorRT-RTX, and
measures top-1 of the ONNX files that they are built from, computed on the CPU operator by operator. A row is written as
soon as it is measured, and what the file holds already is not measured again. The fourth writes the tables that close
the page.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dcvit.bench.machine import this_machine
from dcvit.bench.rounds import Limits, run_rounds
from dcvit.bench.statistics import Latency, speedup, speedup_interval
from dcvit.compression import compress
from dcvit.data import open_source
from dcvit.errors import InputError
from dcvit.evaluation import evaluate
from dcvit.exporting import calibration_from, export
from dcvit.exporting.explicit import FP8_CAPABILITY
from dcvit.exporting.targets import engine_target
from dcvit.files import whole_file
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import RUNTIMES, available_cores, runtime_named
from dcvit.subject import open_subject
from dcvit.variant import Precision, Variant
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
ENGINES: tuple[Precision, ...] = ("int8", "fp8")
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")
ORIGINAL = "teacher"
FIGURES = "## Figures\n"
"""What follows this line of the page is written from the results."""
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


MODELS: dict[str, Make] = {ORIGINAL: teacher, "a third less": a_third_less, "merged": merged}


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
@click.option("--data", type=click.Path(path_type=Path, exists=True))
@click.option("--folders", type=click.Path(path_type=Path), help="Where the model folders are kept.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True, default=list(MODELS))
@click.option("--limit", type=int, help="Images to count on, for a trial. [default: all]")
@click.option("--bench", is_flag=True, help="Measure latencies instead of accuracies; needs a quiet machine.")
@click.option("--engines", is_flag=True, help="Build int8 and fp8 engines, and measure what their files lose.")
@click.option("--max-seconds", default=20.0, show_default=True, help="Of timing, for each pair.")
@click.option("--table", type=click.Path(path_type=Path, exists=True), help="A page to write the results into.")
def main(
    data: Path | None,
    folders: Path | None,
    out: Path,
    models: tuple[str, ...],
    limit: int | None,
    bench: bool,
    engines: bool,
    max_seconds: float,
    table: Path | None,
) -> None:
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"accuracy": [], "latency": []}
    if table:
        text = table.read_text(encoding="utf-8").split(FIGURES)[0]
        table.write_text(text + FIGURES + "\n" + "\n".join(_lines(found)) + "\n", encoding="utf-8")
        return
    if data is None or folders is None:
        raise click.UsageError("give --data and --folders, or --table")
    for model in models:
        folder = _folder(model, data, folders)
        torch.set_num_threads(available_cores())  # as many as the other runtimes take
        if bench:
            kind, done = "latency", [row for row in found["latency"] if row["model"] == model]
            rows = _latencies(model, folder, _folder(ORIGINAL, data, folders), max_seconds, done)
        elif engines:
            kind, done = "engines", [row for row in found.setdefault("engines", []) if row["model"] == model]
            rows = _engines(model, folder, Some(data / "cifar10" / "test.tar", limit), data, done)
        else:
            images = Some(data / "cifar10" / "test.tar", limit)
            done = [row for row in found["accuracy"] if (row["model"], row["images"]) == (model, len(images))]
            kind, rows = "accuracy", _accuracies(model, folder, images, done)
        for row in rows:
            found[kind].append(row)
            found |= {f"{kind}_machine": this_machine().to_json()}
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


def _accuracies(model: str, folder: ModelFolder, images: Some, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for runtime, precision in _missing(done, ("runtime", "precision"), [*RAN]):
        result = evaluate(folder.path, images, runtime=runtime, precision=precision, batch=BATCH)
        yield {
            "model": model,
            "runtime": runtime,
            "precision": precision,
            "top1": result.top1,
            "images": result.images,
        }


def _engines(
    model: str, folder: ModelFolder, images: Some, data: Path, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The file of each precision, what it loses, and the GPUs that TensorRT-RTX builds an engine for or refuses."""
    for precision in ENGINES:
        if precision in [row["precision"] for row in done]:
            continue
        calibration = calibration_from(folder.manifest, data / "cifar10" / "train-1.tar")
        refused, built = {}, []
        for capability in CAPABILITIES:
            try:
                engine_target("tensorrt-rtx", (capability,), FP8_CAPABILITY if precision == "fp8" else None)
                built.append(capability)
            except InputError as error:
                refused[capability] = str(error)
        result = export(
            folder, BATCH, precision, data=calibration, evaluate=images, max_drop=100, trt=True,
            flavor="tensorrt-rtx", compute_capabilities=tuple(built),
        )  # fmt: skip
        found, quantization = result.record.evaluation, result.record.quantization
        assert found is not None
        assert quantization is not None
        assert result.engine is not None
        yield {
            "model": model,
            "precision": precision,
            "top1": found.top1,
            "top1_fp32": found.top1_fp32,
            "agreement": found.agreement,
            "images": found.images,
            "layers": len(quantization.layers),
            "in_float": len(quantization.in_float),
            "cosine": quantization.agreement,
            "onnx_bytes": result.onnx.bytes,
            "engine_bytes": result.engine.bytes,
            "built_for": built,
            "refused": refused,
        }


def _latencies(
    model: str, folder: ModelFolder, original: ModelFolder, max_seconds: float, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    common = (ORIGINAL, "onnxruntime", "fp32")
    pairs = [(*ran, *against) for ran in RAN for against in dict.fromkeys((common, (model, ran[0], "fp32")))]
    pairs = [pair for pair in pairs if pair[2:] != (model, *pair[:2])]
    keys = ("runtime", "precision", "against", "against_runtime", "against_precision")
    batch = torch.randn(BATCH, *folder.manifest.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    for runtime, precision, against, against_runtime, against_precision in _missing(done, keys, pairs):
        other = original if against == ORIGINAL else folder
        before = runtime_named(against_runtime).open(other, Variant.of(BATCH, against_precision))
        after = runtime_named(runtime).open(folder, Variant.of(BATCH, precision))
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
            "against": against,
            "against_runtime": against_runtime,
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


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """A table for each model, and what it was measured on."""
    for model in MODELS:
        top1 = {(row["runtime"], row["precision"]): row["top1"] for row in found["accuracy"] if row["model"] == model}
        yield f"**{model[0].upper()}{model[1:]}**\n"
        columns = ("runtime", "precision", "top-1, %", "against fp32 there",
                   "speed-up over the teacher, ONNX Runtime fp32", "speed-up over fp32 there")  # fmt: skip
        yield f"| {' | '.join(columns)} |\n|---|---|---:|---:|---|---|"
        for (runtime, precision), share in top1.items():
            difference = "" if precision == "fp32" else f"{share - top1[runtime, 'fp32']:+.2f}"
            ratios = [
                _ratio(found["latency"], model, runtime, precision, *against)
                for against in ((ORIGINAL, "onnxruntime"), (model, runtime))
            ]
            yield "| " + " | ".join((runtime, precision, f"{share:.2f}", difference, *ratios)) + " |"
        yield ""
    yield from _engine_lines(found.get("engines", []))
    for kind in ("accuracy", "latency", "engines"):
        if machine := found.get(f"{kind}_machine"):
            names = [
                name
                for name in ("torch", "onnxruntime-gpu", "openvino", "tensorrt-rtx-cu12")
                if name in machine["versions"]
            ]
            versions = ", ".join(f"{name} {machine['versions'][name]}" for name in names)
            yield f"{kind.capitalize()}: {machine['cpu']}, {machine['cores']} cores; {versions}.  "
    if not found["latency"]:
        yield "Latencies are not measured yet."


def _engine_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A table of the files that engines are built from."""
    if not rows:
        return
    yield "**Files that engines are built from**\n"
    columns = ("model", "precision", "top-1, %", "against fp32", "same class as fp32, %", "layers",
               "cosine of the logits", "ONNX file, MB", "engine built for", "refused for")  # fmt: skip
    yield f"| {' | '.join(columns)} |\n|---|---|---:|---:|---:|---:|---:|---:|---|---|"
    for row in rows:
        cells = (
            row["model"], row["precision"], f"{row['top1']:.2f}", f"{row['top1'] - row['top1_fp32']:+.2f}",
            f"{row['agreement']:.2f}", f"{row['layers']} of {row['layers'] + row['in_float']}", f"{row['cosine']:.4f}",
            f"{row['onnx_bytes'] / 1e6:.1f}", ", ".join(row["built_for"]), ", ".join(row["refused"]) or "–",
        )  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _ratio(rows: list[dict[str, Any]], model: str, runtime: str, precision: str, against: str, other: str) -> str:
    """A speed-up over the fp32 of some model in some runtime, with its interval."""
    if (model, runtime, precision) == (against, other, "fp32"):
        return "1"
    wanted = (model, runtime, precision, against, other)
    keys = ("model", "runtime", "precision", "against", "against_runtime")
    for row in rows:
        if tuple(row[key] for key in keys) == wanted:
            low, high = row["speedup_ci95"]
            return f"×{row['speedup']:.3f} [{low:.3f}, {high:.3f}], {row['runs']} rounds"
    return ""


def _checkpoint(data: Path) -> Path:
    return data / "teacher" / "deit_tiny_cifar10.safetensors"


if __name__ == "__main__":
    main()
