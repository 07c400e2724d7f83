"""Many targets from one set of trials: a model folder for each, and what each costs and loses, side by side."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dcvit.bench import BenchRow
from dcvit.bench.machine import this_machine
from dcvit.compression import prepare, read_options
from dcvit.data import Images, open_source
from dcvit.errors import InputError, TargetError
from dcvit.evaluation import evaluate as accuracy
from dcvit.files import base_name, json_text, whole_folder
from dcvit.folder.lock import running
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.frontiers.curves import MACS, REDUCTIONS, SPEEDUPS, Curve, Size, timed_curves
from dcvit.frontiers.plot import plot_frontier
from dcvit.frontiers.result import FRONTIER, PLOT, FrontierResult, Point, mark_pareto
from dcvit.hardware import accelerator
from dcvit.methods.base import MethodSettings
from dcvit.methods.run import Compressed, Compressor
from dcvit.methods.speedup import DEFAULT_RUNTIME, Measure, measuring
from dcvit.methods.target import ANY_SHARE, Target
from dcvit.output import leaving_nothing_behind
from dcvit.pictures.matplotlib_needed import MISSING, can_draw
from dcvit.progress import say
from dcvit.subject import Subject
from dcvit.variant import Precision
from dcvit.versions import package_versions

__all__ = ["REDUCTIONS", "SPEEDUPS", "FrontierResult", "Point", "frontier"]


def frontier(
    model: str | Path | nn.Module,
    data: Images,
    *,
    out: str | Path,
    reductions: Sequence[float] | None = None,
    speedups: Sequence[float] | None = None,
    runtimes: Sequence[str] = (),
    latency_tables: Sequence[str | Path] = (),
    precision: Precision | None = None,
    batch: int | None = None,
    threads: int | None = None,
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
    steps. A method that trains on many images trains every size anew. A runtime has sizes of its own, for what a cut
    saves there is not what it saves elsewhere; the damages that they are solved with are measured once for all.

    Args:
        model: A timm name, a model folder, or a timm module in memory.
        data: A folder of images, a tar of one, or `digits`.
        out: The folder to write: a model folder for each point, `frontier.json` and `frontier.png`, all or nothing.
        reductions: Shares of the MACs to remove; by default those of 0.1, 0.2, … 0.7 that can be reached, or none
            where other options say what is to be found.
        speedups: How many times faster, as a table of each runtime predicts; by default those of ×1.1 to ×3 that can
            be reached, in the runtimes that are given, or in ONNX Runtime on the CPU.
        runtimes: In which sizes are to be found by speed: a curve for each.
        latency_tables: Files of `dcvit-tool latency -o`, of other machines if need be: a curve for each, too.
        precision: That `runtimes` compute in; by default fp32.
        batch: Images in every batch of theirs; by default 64.
        threads: CPU threads of theirs; by default all cores.
        max_drops: Points of top-1, or without labels percent of the classes, that may be lost: for each the smallest
            model that loses no more.
        validation: Images that these are measured on; by default a fifth of the data is held out.
        target: Merges, widths and the convention, without a reduction or a speed-up.
        bench: Whether to measure latency: of sizes of a runtime there, of others in ONNX Runtime on the CPU (batch 64,
            fp32).
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
        raise InputError(
            "a frontier has many sizes: give them as --macs-reduction, --speedup or --max-drop, repeated, and the "
            "runtimes of --speedup as --runtime"
        )
    if speedups and not (runtimes or latency_tables):
        runtimes = (DEFAULT_RUNTIME,)
    curves = timed_curves(runtimes, latency_tables, precision, batch, threads)
    drops = sorted(set(max_drops or ()))
    asked = _asked(reductions, speedups, drops, curves)
    with ExitStack() as stack:
        stack.enter_context(running(out))
        finished = (out / FRONTIER).is_file()
        judged = validation, min(drops, default=None)
        compressor = prepare(model, data, out, target, settings, run, finished=finished, judged=judged, **asked)
        subject = compressor.run.subject
        stack.enter_context(leaving_nothing_behind(out))
        labelled = None if evaluate is None else open_source(evaluate, "test", class_map=run.class_map)
        sizes: list[Size] = []
        if reductions or not (drops or curves):
            sizes += _of_macs(compressor, target, reductions)
        tables = {curve.name: _prediction(compressor, curve, target) for curve in curves}
        for curve in curves:
            sizes += _of_speed(compressor, curve, target, speedups)
        sizes += [Size.of_loss(Curve(MACS), target, drop) for drop in drops]
        measures = _measures(stack, subject, sizes) if bench else {}
        top1: dict[str, Any] = {}
        if labelled is not None:
            whole = stack.enter_context(temporary_folder(subject.model, subject.plan, subject.preprocessing))
            found = accuracy(whole.path, labelled)
            top1 = {"top1": found.top1, "images": found.images}
        aside = stack.enter_context(_writing(out))
        points, original = [], top1
        made: dict[str, Compressed] = {}
        for number, size in enumerate(sizes):
            say(f"{number + 1} of {len(sizes)}: {size.words}")
            after = made.get(size.curve.name) if size.share is not None else None
            now = made[size.curve.name] = compressor.compress(size.target, after=after)
            manifest = compressor.manifest(now, size.target)
            ModelFolder.create(aside / size.folder, now.model, now.plan, manifest, texts=now.texts)
            row = measures[size.curve.name](now.plan) if size.curve.name in measures else None
            accurate = None if labelled is None else accuracy(aside / size.folder, labelled).top1
            predicted = {curve.name: _prediction(compressor, curve, target, now)["after_ms"] for curve in curves}
            points.append(_point(size, now, row, accurate, predicted))
            original = top1 | {"macs": now.summary.macs_before, "params": now.summary.params_before}
        result = FrontierResult(
            folder=out,
            model=subject.plan.model,
            points=mark_pareto(points),
            original=original
            | ({"predicted_ms": {name: t["before_ms"] for name, t in tables.items()}} if tables else {}),
            about={
                "macs_convention": target.macs_convention,
                "data": compressor.fingerprint(),
                "scored_on": compressor.scored_on,
                "evaluated_on": None if labelled is None else base_name(labelled.name),
                "seed": run.seed,
                "settings": compressor.settings.model_dump(mode="json"),
                "versions": package_versions(),
                "curves": {name: _of_table(found) for name, found in tables.items()},
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


def _asked(
    reductions: Sequence[float] | None,
    speedups: Sequence[float] | None,
    drops: Sequence[float],
    curves: Sequence[Curve],
) -> dict[str, Any]:
    """What the command has beside the options of `compress`, by option: a resumed run must be given the same."""
    asked: dict[str, Any] = {"--macs-reduction": None if reductions is None else sorted(set(reductions))}
    if drops:
        asked["--max-drop"] = list(drops)
    if curves:
        asked["--speedup"] = None if speedups is None else sorted(set(speedups))
        asked["--runtime"] = [
            {name: value if isinstance(value, int) else str(value) for name, value in curve.where.items() if value}
            for curve in curves
        ]
    return asked


def _of_macs(compressor: Compressor[Any], target: Target, reductions: Sequence[float] | None) -> list[Size]:
    """Sizes by MACs, all of them found to be within reach before any is trained for.

    Raises:
        InputError: If one that was asked for is not, or none is.
    """
    sizes = [Size.of_macs(Curve(MACS), target, share) for share in sorted(set(reductions or REDUCTIONS))]
    return _reachable(compressor, sizes, chosen=bool(reductions))


def _of_speed(
    compressor: Compressor[Any], curve: Curve, target: Target, speedups: Sequence[float] | None
) -> list[Size]:
    """Sizes of a runtime, all of them found to be within reach before any is trained for.

    Raises:
        InputError: If one that was asked for is not, or none is.
    """
    sizes = [Size.of_speed(curve, target, each) for each in sorted(set(speedups or SPEEDUPS))]
    return _reachable(compressor, sizes, chosen=bool(speedups))


def _reachable(compressor: Compressor[Any], sizes: Sequence[Size], *, chosen: bool) -> list[Size]:
    reached: list[Size] = []
    refused: InputError | None = None
    for size in sizes:
        try:
            compressor.plan(size.target)
        except TargetError as error:
            refused = error
            if size.curve.timed and error.reach is not None:
                least, most = (1 / (1 - share) for share in error.reach)
                refused = TargetError(f"{size.words}: out of reach; cutting blocks takes ×{least:.2f} to ×{most:.2f}")
        except InputError as error:
            refused = error
        else:
            reached.append(size)
            continue
        if chosen:
            raise refused
        say(f"left out: {refused}")
    if not reached and refused is not None:
        raise refused
    return reached


def _prediction(
    compressor: Compressor[Any], curve: Curve, target: Target, made: Compressed | None = None
) -> dict[str, Any]:
    """What a curve's table says of a model, or of the given one.

    Raises:
        InputError: If the method does not solve in milliseconds, or the table does not fit the model.
    """
    plan = compressor.run.subject.plan if made is None else made.plan
    found = compressor.predicted(curve.target(target, ANY_SHARE), plan)
    if found is None:
        raise InputError("sizes by speed are for the solver (`--method dcvit --search solver`), on a model whose "
                         "attention can go; give --macs-reduction, and --bench to measure their latency")  # fmt: skip
    return found


def _of_table(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("before_ms", "after_ms", "speedup")}


def _measures(stack: ExitStack, subject: Subject, sizes: Sequence[Size]) -> dict[str, Measure]:
    """What times the sizes of each curve that this machine can time."""
    original, found = subject.plan.original(), dict[str, Measure]()
    for size in sizes:
        where = size.curve.where
        if size.curve.name not in found and where.get("latency_table") is None:
            setting = (where["runtime"], size.target.variant, where["threads"]) if where else ()
            found[size.curve.name] = stack.enter_context(measuring(original, subject.preprocessing, *setting))
    return found


def _point(
    size: Size, made: Compressed, row: BenchRow | None, top1: float | None, predicted: dict[str, float]
) -> Point:
    return Point(
        folder=size.folder,
        target=made.metrics["max_drop"]["macs_reduction"] if size.share is None else size.share,
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
        curve=size.curve.name,
        predicted_ms=predicted,
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
