"""`dcvit-tool frontier`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.fields import takes
from dcvit.cli.method_command import MethodCommand
from dcvit.cli.methods import method_options, read
from dcvit.flags import Argument, Flag
from dcvit.methods.target import MEASURED
from dcvit.variant import DEFAULT_BATCH, Precision

_EACH_SIZE_SAYS = {"macs_reduction", "preset", *MEASURED}


Share = Annotated[float, Field(gt=0, lt=1)]
Points = Annotated[float, Field(gt=0, lt=100)]
Speedup = Annotated[float, Field(gt=1)]


class Options(BaseModel):
    """What is compressed, on which images, to which sizes, and what is measured of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Argument()]
    data: Annotated[str, Flag()] = Field(description="A folder of images, a tar of one, or 'digits'.")
    reductions: Annotated[
        tuple[Share, ...],
        Flag("--macs-reduction", metavar="R", default="0.1, 0.2 … 0.7, as far as they can be reached"),
    ] = Field(default=(), description="Share of the MACs to remove; repeatable.")
    speedups: Annotated[
        tuple[Speedup, ...], Flag("--speedup", metavar="X", default="×1.1 to ×3, as far as they can be reached")
    ] = Field(
        default=(),
        description="How many times faster in each --runtime, as its table predicts; repeatable.",
    )
    runtimes: Annotated[tuple[str, ...], Flag("--runtime")] = Field(
        default=(),
        description="Sizes by their speed there: a curve for each runtime, of one search; repeatable.",
    )
    latency_tables: Annotated[tuple[Path, ...], Flag("--latency-table", path="file")] = Field(
        default=(), description="The same for a table of `dcvit-tool latency -o`, made on another machine if need be."
    )
    precision: Annotated[Precision | None, Flag(default="fp32")] = Field(
        default=None, description="That each --runtime computes in."
    )
    batch: Annotated[int | None, Flag(default=str(DEFAULT_BATCH))] = Field(
        default=None, ge=1, description="Images in every batch of each --runtime."
    )
    threads: Annotated[int | None, Flag(default="all cores")] = Field(
        default=None, ge=1, description="CPU threads of each --runtime."
    )
    max_drops: Annotated[tuple[Points, ...], Flag("--max-drop", metavar="POINTS")] = Field(
        default=(),
        description="The smallest model that loses at most so many points of top-1 (without labels: percent of the "
        "classes) on images that were not fitted to; repeatable.",
    )
    validation: Annotated[str | None, Flag(metavar="DATA", default="a fifth of --data is held out")] = Field(
        default=None, description="Images that --max-drop is measured on."
    )
    out: Annotated[Path, Flag(short="-o")] = Field(description="The folder to write.")
    bench: Annotated[bool, Flag()] = Field(
        default=False,
        description="Measure latency: of the sizes of a --runtime there, of others in ONNX Runtime on the CPU (batch "
        "64, fp32).",
    )
    evaluate: Annotated[str | None, Flag(metavar="DATA")] = Field(
        default=None, description="Labelled images to measure top-1 on: class folders, a tar, 'digits'."
    )


@click.command("frontier", cls=MethodCommand)
@takes(Options)
@method_options(without=_EACH_SIZE_SAYS)
def command(given: Options, **flags: Any) -> Any:
    """Compress to many sizes, what they share measured once: a table, a plot and a model folder for each size.

    MODEL is a timm name or a model folder. OUT holds r0.1/, r0.2/ … (with --runtime onnxruntime: onnxruntime-x1.5/ …),
    frontier.json and frontier.png; `dcvit-tool report OUT` makes an HTML page of them all.
    """
    asked = read(given.model, flags, without=_EACH_SIZE_SAYS)
    from dcvit.frontiers import frontier

    return frontier(
        given.model,
        given.data,
        out=given.out,
        reductions=given.reductions or None,
        speedups=given.speedups or None,
        runtimes=given.runtimes,
        latency_tables=given.latency_tables,
        precision=given.precision,
        batch=given.batch,
        threads=given.threads,
        max_drops=given.max_drops or None,
        validation=given.validation,
        target=asked.target,
        bench=given.bench,
        evaluate=given.evaluate,
        settings=asked.settings,
        **dict(asked.run),
    )
