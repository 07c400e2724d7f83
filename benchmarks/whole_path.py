"""The main job on the CIFAR-10 teacher, from its checkpoint to a measured latency, every step through the public API.

    python benchmarks/whole_path.py --data DATA -o benchmarks/results/whole_path.json

DATA holds `cifar10/train-0.tar`, `cifar10/test.tar` and `teacher/deit_tiny_cifar10.safetensors`.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click

import dcvit
from dcvit.files import whole_file
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--macs-reduction", default=0.166, show_default=True)
@click.option("--samples", default=500, show_default=True)
@click.option("--max-seconds", default=60.0, show_default=True)
def main(data: Path, out: Path, macs_reduction: float, samples: int, max_seconds: float) -> None:
    checkpoint = data / "teacher" / "deit_tiny_cifar10.safetensors"
    teacher = {"model_kwargs": MODEL_KWARGS, "checkpoint": checkpoint}
    test = data / "cifar10" / "test.tar"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "small"
        started = time.perf_counter()
        made = dcvit.compress(
            MODEL,
            data / "cifar10" / "train-0.tar",
            out=folder,
            macs_reduction=macs_reduction,
            samples=samples,
            **teacher,
        )
        seconds = time.perf_counter() - started
        exports = [dcvit.export(folder), dcvit.export(folder, precision="fp16", trt=True)]
        verified = dcvit.verify(folder, test)
        accuracy = {"original, torch fp32": dcvit.evaluate(MODEL, test, **teacher).top1}
        for runtime, precision in (("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")):
            found = dcvit.evaluate(folder, test, runtime=runtime, precision=precision)
            accuracy[f"compressed, {runtime} {precision}"] = found.top1
        accuracy["original, onnxruntime fp32"] = dcvit.evaluate(MODEL, test, runtime="onnxruntime", **teacher).top1
        timed = dcvit.benchmark(folder, max_seconds=max_seconds)
    summary = made.summary
    report: dict[str, Any] = {
        "model": MODEL,
        "samples": samples,
        "compress_seconds": round(seconds, 1),
        "macs": [summary.macs_before, summary.macs_after],
        "params": [summary.params_before, summary.params_after],
        "top1": accuracy,
        "images": found.images,
        "verify": {"passed": verified.passed, "checks": [check.to_json() for check in verified.checks]},
        "engine": exports[1].engine and exports[1].engine.about,
        "bench": timed.to_json() | {"folder": "temporary"},
        "versions": package_versions(),
    }
    with whole_file(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps({key: report[key] for key in ("top1", "macs", "engine")}, indent=1))


if __name__ == "__main__":
    main()
