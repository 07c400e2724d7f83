"""What static token merging is worth: batch-64 latency of DeiT with merges against DeiT without, ONNX Runtime fp32.

    python benchmarks/merging_latency.py -o benchmarks/results/merging_latency.json

Random weights (they do not change the latency), both models in turn in one run; about two minutes a model on two cores.
"""

import json
import tempfile
from pathlib import Path

import click

from dcvit.bench import benchmark
from dcvit.compression import compress
from dcvit.exporting import export
from dcvit.files import whole_file
from dcvit.manifest import package_versions
from dcvit.runtimes.flavors import installed


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--model", "models", multiple=True, default=["deit_tiny_patch16_224"], show_default=True)
@click.option("--merge", default="horizontal@4,vertical@8", show_default=True)
@click.option("--max-seconds", default=120.0, show_default=True)
def main(out: Path, models: tuple[str, ...], merge: str, max_seconds: float) -> None:
    found = {}
    for model in models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "merged"
            compress(model, out=folder, merge=merge, recover="none", weights="random")
            export(folder)
            engine = export(folder, precision="fp16", trt=True).engine if installed("tensorrt-rtx") else None
            timed = benchmark(folder, max_seconds=max_seconds)
        for line in timed.lines():
            click.echo(line if isinstance(line, str) else json.dumps(timed.rows[0].to_json(), indent=1))
        found[model] = {
            "merge": merge,
            "bench": timed.to_json() | {"folder": "temporary"},
            "engine": engine and engine.about,
        }
    with whole_file(out) as aside:
        aside.write_text(json.dumps({"models": found, "versions": package_versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
