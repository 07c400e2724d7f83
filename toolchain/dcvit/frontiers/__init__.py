"""Many targets from one set of trials: a model folder for each, and what each costs and loses, side by side."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dcvit.bench import BenchRow
from dcvit.bench.machine import this_machine
from dcvit.compression import prepare, read_options
from dcvit.data import Images, open_source
from dcvit.errors import InputError
from dcvit.evaluation import evaluate as accuracy
from dcvit.files import base_name, json_text, whole_folder
from dcvit.folder.lock import running
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.frontiers.plot import plot_frontier
from dcvit.frontiers.result import FRONTIER, PLOT, FrontierResult, Point, mark_pareto
from dcvit.hardware import accelerator
from dcvit.methods.base import MethodSettings
from dcvit.methods.run import Compressed, Compressor
from dcvit.methods.speedup import Measure, measuring
from dcvit.methods.target import Target
from dcvit.output import leaving_nothing_behind
from dcvit.pictures.matplotlib_needed import MISSING, can_draw
from dcvit.progress import say
from dcvit.versions import package_versions

__all__ = ["REDUCTIONS", "FrontierResult", "Point", "frontier"]

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Shares of the MACs to remove, as far as they can be reached."""


def frontier(
    model: str | Path | nn.Module,
    data: Images,
    *,
    out: str | Path,
    reductions: Sequence[float] | None = None,
    max_drops: Sequence[float] | None = None,
    validation: Images | None = None,
    target: Target | None = None,
    bench: bool = False,
    evaluate: Images | None = None,
    settings: MethodSettings | None = None,
    **options: Any,
) -> FrontierResult:
    """Compresses a model to many sizes; what the targets share is measured once.

    With the solver each size is cut from the one before: its blocks only lose more, and it trains an eighth of the
    steps. A method that trains on many images trains every size anew.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: A folder of images, a tar of one, or `digits`.
        out: The folder to write: a model folder for each point, `frontier.json` and `frontier.png`, all or nothing.
        reductions: Shares of the MACs to remove; by default those of 0.1, 0.2, … 0.7 that can be reached, or none
            where `max_drops` says what is to be found.
        max_drops: Points of top-1, or without labels percent of the classes, that may be lost: for each the smallest
            model that loses no more.
        validation: Images that these are measured on; by default a fifth of the data is held out.
        target: Merges, widths and the convention, without a reduction or a speed-up.
        bench: Whether to measure latency in ONNX Runtime on the CPU (batch 64, fp32).
        evaluate: Labelled images to measure top-1 on.
        settings: Of the method; they say which one it is. By default `SearchSettings()`.
        options: Fields of `Target` and of `RunSettings`, by name.

    Raises:
        InputError: If any of this cannot be; nothing is left behind.
    """
    started = time.perf_counter()
    out = Path(out)
    target, run = read_options(target, options)
    if target != target.at(None):
        raise InputError("a frontier has many reductions: give them as --macs-reduction, repeated, and no speed-up")
    drops = sorted(set(max_drops or ()))
    asked: dict[str, Any] = {"--macs-reduction": None if reductions is None else sorted(set(reductions))}
    asked |= {"--max-drop": drops} if drops else {}
    with ExitStack() as stack:
        stack.enter_context(running(out))
        finished = (out / FRONTIER).is_file()
        judged = validation, min(drops, default=None)
        compressor = prepare(model, data, out, target, settings, run, finished=finished, judged=judged, **asked)
        subject = compressor.run.subject
        stack.enter_context(leaving_nothing_behind(out))
        labelled = None if evaluate is None else open_source(evaluate, "test", class_map=run.class_map)
        targets = _reachable(compressor, target, reductions) if reductions or not drops else []
        targets += [_losing(target, drop) for drop in drops]
        measure: Measure | None = None
        if bench:
            measure = stack.enter_context(measuring(subject.plan.original(), subject.preprocessing))
        top1: dict[str, Any] = {}
        if labelled is not None:
            whole = stack.enter_context(temporary_folder(subject.model, subject.plan, subject.preprocessing))
            found = accuracy(whole.path, labelled)
            top1 = {"top1": found.top1, "images": found.images}
        aside = stack.enter_context(_writing(out))
        points, original = [], top1
        made: Compressed | None = None
        for number, each in enumerate(targets):
            name, words = _called(each)
            say(f"{number + 1} of {len(targets)}: {words}")
            made = compressor.compress(each, after=made if each.max_drop is None else None)
            ModelFolder.create(aside / name, made.model, made.plan, compressor.manifest(made, each))
            row = None if measure is None else measure(made.plan)
            accurate = None if labelled is None else accuracy(aside / name, labelled).top1
            points.append(_point(name, each, made, row, accurate))
            original = top1 | {"macs": made.summary.macs_before, "params": made.summary.params_before}
        result = FrontierResult(
            folder=out,
            model=subject.plan.model,
            points=mark_pareto(points),
            original=original,
            about={
                "macs_convention": target.macs_convention,
                "data": compressor.fingerprint(),
                "scored_on": compressor.scored_on,
                "evaluated_on": None if labelled is None else base_name(labelled.name),
                "seed": run.seed,
                "settings": compressor.settings.model_dump(mode="json"),
                "versions": package_versions(),
            },
            machine=this_machine() if bench else None,
            seconds=time.perf_counter() - started,
        )
        kept = result.to_json() | {"folder": base_name(out)}
        (aside / FRONTIER).write_text(json_text(kept, indent=2) + "\n", encoding="utf-8")
        if can_draw():
            plot_frontier(result, aside / PLOT)
        else:
            say(f"no {PLOT}: {MISSING}")
        accelerator().wait_for_everyone()  # some may still read the checkpoints, which go away now
    return result


def _reachable(compressor: Compressor[Any], target: Target, reductions: Sequence[float] | None) -> list[Target]:
    """The targets, all of them found to be within reach before any is trained for.

    Raises:
        InputError: If one that was asked for is not, or none is.
    """
    reached: list[Target] = []
    refused: InputError | None = None
    for share in sorted(set(reductions or REDUCTIONS)):
        try:
            compressor.plan(target.at(share))
        except InputError as error:
            if reductions:
                raise
            refused = error
            say(f"left out: {error}")
        else:
            reached.append(target.at(share))
    if not reached and refused is not None:
        raise refused
    return reached


def _losing(target: Target, max_drop: float) -> Target:
    return Target.model_validate(dict(target) | {"max_drop": max_drop})


def _called(target: Target) -> tuple[str, str]:
    """The folder of a target's model, and the target in words."""
    if target.max_drop is not None:
        return f"d{target.max_drop:g}", f"at most {target.max_drop:g} points lost"
    return f"r{target.macs_reduction:g}", f"−{target.macs_reduction:.1%} MACs"


def _point(name: str, target: Target, made: Compressed, row: BenchRow | None, top1: float | None) -> Point:
    return Point(
        folder=name,
        target=target.macs_reduction or made.metrics["max_drop"]["macs_reduction"],
        macs_reduction=made.summary.macs_reduction,
        macs=made.summary.macs_after,
        params=made.summary.params_after,
        blocks_compressed=made.summary.blocks_compressed,
        kl=made.metrics.get("kl"),
        feature_error=made.metrics.get("feature_error"),
        top1=top1,
        row=row,
        seconds=made.metrics["seconds"],
        plan_digest=made.plan.digest,
    )


@contextmanager
def _writing(out: Path) -> Iterator[Path]:
    """A folder to fill that takes its place at `out` in the end; what any but the first process writes is dropped."""
    if accelerator().is_main_process:
        with whole_folder(out, overwrite=True) as aside:
            yield aside
    else:
        with tempfile.TemporaryDirectory(prefix="dcvit-") as dropped:
            yield Path(dropped)
