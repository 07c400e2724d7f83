"""Where the time of a few-shot run goes, and what eight sizes cost beside one, on the CIFAR-10 teacher.

    python benchmarks/stages.py --data DATA -o benchmarks/results/stages.json [--before CHECKOUT]

DATA is as for `few_shot.py`. Every run is a fresh process with nothing cached, on one thread; the figure is its CPU
time, which other work on the machine hardly moves, from the start of Python to its end. With `--before`, an earlier
checkout of this repository runs the same beside it, in turn. Stages are wall time as `metrics.stages` gives it.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from dcvit.bench.machine import this_machine
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save

SIZES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65)
RUNS: dict[str, tuple[str, list[str]]] = {
    "one size, no training": ("compress", ["--macs-reduction", "0.5", "--steps", "0"]),
    "eight sizes, no training": ("frontier", [*(f"--macs-reduction={size}" for size in SIZES), "--steps", "0"]),
    "one size": ("compress", ["--macs-reduction", "0.5"]),
    "eight sizes": ("frontier", [f"--macs-reduction={size}" for size in SIZES]),
    "DC-ViT, 24 steps a block": ("compress", ["--recipe", "paper", "--macs-reduction", "0.331", "--steps", "24",
                                             "--metric", "train"]),
}  # fmt: skip
"""Commands by what they stand for; the earlier checkout must have them too."""


def run(checkout: Path, data: Path, name: str) -> dict[str, Any]:
    """One fresh process: CPU and wall seconds, and what the command reported."""
    command, flags = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            sys.executable, "-m", "dcvit.cli.main", command, MODEL, "--model-kwargs", json.dumps(MODEL_KWARGS),
            "--checkpoint", str(data / "teacher" / "deit_tiny_cifar10.safetensors"),
            "--data", str(data / "cifar10" / "train-0.tar"), "-o", f"{folder}/out", "--json", *flags,
        ]  # fmt: skip
        environment = os.environ | {
            "PYTHONPATH": f"{checkout / 'toolchain'}:{checkout / 'kernels'}",
            "OMP_NUM_THREADS": "1",
        }
        before = os.times()
        done = subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        after = os.times()
    if done.returncode:
        raise click.ClickException(f"{name} in {checkout}: {done.stderr.strip().splitlines()[-1]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    stages = json.loads(done.stdout).get("metrics", {}).get("stages", {})
    return {"cpu_seconds": round(spent, 1), "wall_seconds": round(after.elapsed - before.elapsed, 1), "stages": stages}


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--before", type=click.Path(path_type=Path, exists=True, file_okay=False), help="An earlier checkout.")
@click.option("--only", multiple=True, type=click.Choice(list(RUNS)), help="Some of the runs; repeatable.")
def main(data: Path, out: Path, before: Path | None, only: tuple[str, ...]) -> None:
    here = Path(__file__).resolve().parents[1]
    report: dict[str, Any] = {"machine": this_machine().to_json(), "versions": package_versions(), "runs": {}}
    if out.exists():
        report["runs"] = json.loads(out.read_text())["runs"]
    for name in only or RUNS:
        if name in report["runs"]:
            continue
        found = {"now": run(here, data.resolve(), name)}
        if before is not None:
            found["before"] = run(before.resolve(), data.resolve(), name)
        report["runs"][name] = found
        save(out, report)
        click.echo(f"{name}: " + ", ".join(f"{when} {each['cpu_seconds']} s of CPU" for when, each in found.items()))


if __name__ == "__main__":
    main()
