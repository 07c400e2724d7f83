"""`dcvit-tool bench`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import click
from pydantic import Field

from dcvit.cli.command import Command
from dcvit.cli.fields import takes, was_given
from dcvit.cli.task import TaskOption, check_task
from dcvit.flags import Argument, Flag, flags_of
from dcvit.variant import DEFAULT_BATCH, Precision, Variant

_OF_THE_BASELINE = (
    "against", "runtimes", "batches", "precision", "against_precision", "with_preprocessing", "threads",
)  # fmt: skip
_NOT_IN_THE_GATE = ("runs", "protocol", "memory")
_OF_THE_GATE = ("update", "undecided", "tolerance")


class Options(TaskOption):
    """What is timed, against what, and for how long."""

    folder: Annotated[Path, Argument()]
    batches: Annotated[tuple[int, ...], Flag("--batch", default=f"{DEFAULT_BATCH}, or what is exported")] = Field(
        default=(), description="Images in every batch; repeatable: 1 for latency, 64 for throughput."
    )
    precision: Annotated[Precision | None, Flag(default="fp32, or what is exported")] = Field(
        default=None, description="Of the computation."
    )
    with_preprocessing: Annotated[bool | None, Flag(default="what is exported")] = Field(
        default=None, description="Time the exported files that take pixels."
    )
    against: Annotated[str | None, Flag(default="the folder's model, uncompressed")] = Field(
        default=None, description="Another model folder or a timm name."
    )
    runtimes: Annotated[tuple[str, ...], Flag("--runtime", default="onnxruntime, or a GPU's fastest")] = Field(
        default=(), description="A runtime that `dcvit-tool doctor` lists; repeatable."
    )
    against_precision: Annotated[Precision | None, Flag(default="the same")] = Field(
        default=None, description="Of the other model."
    )
    threads: Annotated[int | None, Flag(default="all cores")] = Field(
        default=None, ge=1, description="CPU threads of each model."
    )
    protocol: Annotated[Literal["default", "paper"], Flag()] = Field(
        default="default", description="Medians of as many runs as needed, or means of 500 as in the papers."
    )
    runs: Annotated[int | None, Flag(default="until ±1 %, or 500")] = Field(
        default=None, description="Exactly so many runs of each."
    )
    max_seconds: Annotated[float | None, Flag(default="60, or none with --runs")] = Field(
        default=None, description="Time limit for each runtime and batch."
    )
    memory: Annotated[bool, Flag(default="memory")] = Field(
        default=True, description="Measure peak memory in fresh processes."
    )
    baseline: Annotated[Path | None, Flag("--check", metavar="BASELINE", path="file")] = Field(
        default=None,
        description="The regression gate: exit status 1 if the speed-up has fallen below this file's.",
    )
    update: Annotated[bool, Flag()] = Field(default=False, description="With --check: measure and write BASELINE.")
    undecided: Annotated[Literal["pass", "fail"], Flag()] = Field(
        default="fail", description="With --check: what a speed-up counts as that is too near to the limit to tell."
    )
    tolerance: Annotated[float | None, Flag(default="0.05, or as it was")] = Field(
        default=None, description="With --update: share it may fall by."
    )


@click.command("bench", cls=Command)
@takes(Options)
def command(given: Options) -> Any:
    """Measure latency against the original model, interleaved, and write bench.json into the folder.

    The speed-up is the ratio of the median times, with a 95 % interval. Weights do not matter: an uncompressed
    model is timed with random ones.

    With --check the speed-up is compared with a baseline instead, which says how to measure it.
    """
    check_task(given.folder, given.task)
    _check_flags(given)
    if given.baseline is None:
        from dcvit.bench import benchmark

        return benchmark(
            given.folder,
            given.against,
            runtimes=given.runtimes or None,
            batch=given.batches or None,
            precision=given.precision,
            baseline_precision=given.against_precision,
            protocol=given.protocol,
            runs=given.runs,
            max_seconds=given.max_seconds,
            threads=given.threads,
            memory=given.memory,
            with_preprocessing=given.with_preprocessing,
        )
    from dcvit.bench.check import check, update
    from dcvit.bench.pair import Setting

    seconds = 60.0 if given.max_seconds is None else given.max_seconds
    if not given.update:
        return check(given.folder, given.baseline, max_seconds=seconds, undecided=given.undecided)
    (runtime,), (batch,) = given.runtimes or ("onnxruntime",), given.batches or (DEFAULT_BATCH,)
    variant = Variant.of(batch, given.precision or "fp32", with_preprocessing=given.with_preprocessing or False)
    setting = Setting.of(runtime, variant, given.against_precision, given.threads)
    return update(given.folder, given.baseline, setting, given.against, tolerance=given.tolerance, max_seconds=seconds)


def _check_flags(given: Options) -> None:
    """Raises a usage error for flags that would have no effect."""
    useless: tuple[str, ...]
    if given.baseline is None:
        useless, why = _OF_THE_GATE, "goes with --check"
    elif given.update:
        useless, why = (*_NOT_IN_THE_GATE, "undecided"), "has no effect on a baseline"
    else:
        useless, why = (*_OF_THE_BASELINE, *_NOT_IN_THE_GATE, "tolerance"), "with --check is what the baseline says"
    options = {field.name: field.option for field in flags_of(Options)}
    for name in useless:
        if was_given(name):
            raise click.UsageError(f"{options[name]} {why}")
    if given.update and (len(given.runtimes) > 1 or len(given.batches) > 1):
        raise click.UsageError("a baseline is of one --runtime and one --batch")
