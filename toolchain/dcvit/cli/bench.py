"""`dcvit-tool bench`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command


@click.command("bench", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", help="Another model folder or a timm name. [default: the folder's model, uncompressed]")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=["onnxruntime"],
    show_default=True,
    help="torch, onnxruntime (on the CPU), onnxruntime-cuda, tensorrt or tensorrt-rtx; repeatable.",
)
@click.option("--batch", type=int, default=64, show_default=True, help="Images in every batch.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option(
    "--runs", type=int, help="Exactly so many runs of each (the papers' protocol: 500). [default: until ±1 %]"
)
@click.option("--max-seconds", type=float, help="Time limit for each runtime. [default: 60, or none with --runs]")
def command(
    folder: Path,
    against: str | None,
    runtimes: tuple[str, ...],
    batch: int,
    precision: Any,
    runs: int | None,
    max_seconds: float | None,
) -> Any:
    """Measure latency against the original model, interleaved, and write bench.json into the folder.

    The speed-up is the ratio of the median times, with a 95 % interval. Weights do not matter: an uncompressed
    model is timed with random ones.
    """
    from dcvit.bench import benchmark

    return benchmark(
        folder,
        against,
        runtimes=runtimes,
        batch=batch,
        precision=precision,
        runs=runs,
        max_seconds=max_seconds,
    )
