"""`dcvit-tool frontier`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.methods import method_options, read

_EACH_SIZE_SAYS = {"macs_reduction", "speedup", "runtime", "preset"}


@click.command("frontier", cls=Command)
@click.argument("model")
@click.option("--data", required=True, help="A folder of images, a tar of one, or 'digits'.")
@click.option(
    "--macs-reduction",
    "reductions",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    metavar="R",
    help="Share of the MACs to remove; repeatable. [default: 0.1, 0.2 … 0.7, as far as they can be reached]",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--bench", is_flag=True, help="Measure latency in ONNX Runtime on the CPU (batch 64, fp32).")
@click.option("--evaluate", metavar="DATA", help="Labelled images to measure top-1 on: class folders, a tar, 'digits'.")
@method_options(without=_EACH_SIZE_SAYS)
def command(
    model: str, data: str, reductions: tuple[float, ...], out: Path, bench: bool, evaluate: str | None, **flags: Any
) -> Any:
    """Compress to many sizes, what they share measured once: a table, a plot and a model folder for each size.

    MODEL is a timm name or a model folder. OUT holds r0.1/, r0.2/ …, frontier.json and frontier.png; `dcvit-tool
    report OUT` makes an HTML page of them all.
    """
    asked = read(model, flags, without=_EACH_SIZE_SAYS)
    from dcvit.frontiers import frontier

    return frontier(
        model,
        data,
        out=out,
        reductions=reductions or None,
        target=asked.target,
        bench=bench,
        evaluate=evaluate,
        settings=asked.settings,
        **dict(asked.run),
    )
