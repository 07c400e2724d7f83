"""`dcvit-tool bench`."""

from pathlib import Path
from typing import Any, get_args

import click

from dcvit.cli.command import Command
from dcvit.cli.task import checked_task_option
from dcvit.variant import Precision

_OF_THE_BASELINE = (
    "against", "runtimes", "batch", "precision", "against_precision", "with_preprocessing", "threads",
)  # fmt: skip
_NOT_IN_THE_GATE = ("runs", "protocol", "memory")
_OF_THE_GATE = ("update", "undecided", "tolerance")


@click.command("bench", cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", help="Another model folder or a timm name. [default: the folder's model, uncompressed]")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=["onnxruntime"],
    show_default=True,
    help="A runtime that `dcvit-tool doctor` lists; repeatable.",
)
@click.option("--batch", type=int, default=64, show_default=True, help="Images in every batch.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
@click.option(
    "--against-precision", type=click.Choice(get_args(Precision)), help="Of the other model. [default: the same]"
)
@click.option("--with-preprocessing", is_flag=True, help="Time the exported files that take pixels.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each model. [default: all cores]")
@click.option(
    "--protocol",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="Medians of as many runs as needed, or means of 500 as in the papers.",
)
@click.option("--runs", type=int, help="Exactly so many runs of each. [default: until ±1 %, or 500]")
@click.option("--max-seconds", type=float, help="Time limit for each runtime. [default: 60, or none with --runs]")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory in fresh processes.")
@click.option(
    "--check",
    "baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="BASELINE",
    help="The regression gate: exit status 1 if the speed-up has fallen below this file's.",
)
@click.option("--update", is_flag=True, help="With --check: measure and write BASELINE.")
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    default="fail",
    show_default=True,
    help="With --check: what a speed-up counts as that is too near to the limit to tell.",
)
@click.option("--tolerance", type=float, help="With --update: share it may fall by. [default: 0.05, or as it was]")
@checked_task_option
def command(folder: Path, baseline: Path | None, update: bool, **given: Any) -> Any:
    """Measure latency against the original model, interleaved, and write bench.json into the folder.

    The speed-up is the ratio of the median times, with a 95 % interval. Weights do not matter: an uncompressed
    model is timed with random ones.

    With --check the speed-up is compared with a baseline instead, which says how to measure it.
    """
    _check_flags(click.get_current_context(), baseline, update=update)
    if baseline is None:
        from dcvit.bench import benchmark

        del given["undecided"], given["tolerance"]
        return benchmark(folder, baseline_precision=given.pop("against_precision"), **given)
    from dcvit.bench.check import check
    from dcvit.bench.check import update as write_baseline
    from dcvit.bench.pair import Setting

    seconds = 60.0 if given["max_seconds"] is None else given["max_seconds"]
    if not update:
        return check(folder, baseline, max_seconds=seconds, undecided=given["undecided"])
    (runtime,) = given["runtimes"]
    asked = (given[name] for name in ("batch", "precision", "against_precision", "threads"))
    setting = Setting.of(runtime, *asked, with_preprocessing=given["with_preprocessing"])
    return write_baseline(
        folder, baseline, setting, given["against"], tolerance=given["tolerance"], max_seconds=seconds
    )


def _check_flags(ctx: click.Context, baseline: Path | None, *, update: bool) -> None:
    """Raises a usage error for flags that would have no effect."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE}
    flags = {param.name: param.opts[0] for param in ctx.command.params if param.name}
    useless: tuple[str, ...]
    if baseline is None:
        useless, why = _OF_THE_GATE, "goes with --check"
    elif update:
        useless, why = (*_NOT_IN_THE_GATE, "undecided"), "has no effect on a baseline"
    else:
        useless, why = (*_OF_THE_BASELINE, *_NOT_IN_THE_GATE, "tolerance"), "with --check is what the baseline says"
    for name in useless:
        if name in given:
            raise click.UsageError(f"{flags[name]} {why}")
    if update and len(ctx.params["runtimes"]) != 1:
        raise click.UsageError("a baseline is of one --runtime")
