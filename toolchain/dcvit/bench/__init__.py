"""Latency of a model folder against the model it was made from, measured so that it can be trusted."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from dcvit.artifacts import BENCH, DEFAULT_BATCH, Precision, check_batch, check_precision
from dcvit.bench.machine import Machine, this_machine
from dcvit.bench.result import BenchResult, BenchRow, row_of
from dcvit.bench.rounds import Limits, run_rounds
from dcvit.cost import count_macs
from dcvit.data import seeded
from dcvit.errors import InputError
from dcvit.exporting.records import engine_records
from dcvit.exporting.temporary import export_for, temporary_folder
from dcvit.folder import ModelFolder
from dcvit.model import build
from dcvit.plan import CompressionPlan
from dcvit.progress import say
from dcvit.runtimes import Runtime, available_cores, runtime_named
from dcvit.subject import open_shapes

__all__ = ["BenchResult", "BenchRow", "Limits", "Machine", "benchmark"]


def benchmark(
    folder: ModelFolder | Path | str,
    against: Path | str | None = None,
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    batch: int = DEFAULT_BATCH,
    precision: Precision = "fp32",
    runs: int | None = None,
    max_seconds: float | None = None,
) -> BenchResult:
    """Times a folder's model and another one in turn, in one process, and writes `bench.json` into the folder.

    Args:
        folder: A model folder that holds what the runtimes run (see `export`).
        against: A model folder, or a timm name, which gets the folder's model_kwargs and random weights (they do not
            change the latency). By default the folder's own model, uncompressed.
        runtimes: Names out of `dcvit.runtimes.RUNTIMES`.
        batch: Images in every batch.
        precision: Of both models.
        runs: Exactly so many rounds (the papers' protocol is 500); by default as many as make the 95 % interval of the
            speed-up no wider than ±1 %.
        max_seconds: Time limit for each runtime; by default 60 where `runs` is not given, else none.

    Raises:
        InputError: If the folder is not whole, a runtime cannot run here or lacks its file, or the two models take
            images of different sizes.
    """
    check_batch(batch)
    check_precision(precision)
    limits = Limits(runs, 60.0 if max_seconds is None and runs is None else max_seconds)
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    chosen = [runtime_named(name) for name in dict.fromkeys(runtimes)]
    for runtime in chosen:
        runtime.file(folder, batch, precision)  # a missing one is found before any time is spent
    machine = this_machine()
    with _all_cores(), _baseline(folder, against) as (other, name, temporary):
        _check_same_input(folder, other)
        rows = []
        for runtime in chosen:
            if temporary:
                say(f"preparing {name} for {runtime.name}")
                export_for(runtime, other, batch, precision, _compute_capabilities(folder, runtime, batch, precision))
            rows.append(_compare(runtime, other, folder, batch, precision, limits))
        result = BenchResult(folder.path, name, _macs(folder), _macs(other), tuple(rows), machine)
    text = json.dumps(result.to_json(), indent=2) + "\n"
    folder.add(BENCH, lambda aside: _write(aside, text))
    return result


def _compare(
    runtime: Runtime,
    baseline: ModelFolder,
    candidate: ModelFolder,
    batch: int,
    precision: Precision,
    limits: Limits,
) -> BenchRow:
    images = torch.randn(
        batch, *candidate.manifest.preprocessing.input_size, generator=torch.Generator().manual_seed(0)
    )
    sessions = runtime.open(baseline, batch, precision), runtime.open(candidate, batch, precision)
    for session in sessions:
        session.load(images)
    rounds = run_rounds(sessions[0].execute, sessions[1].execute, limits, f"timing with {runtime.name}")
    device, threads = sessions[1].device, sessions[1].threads
    return row_of(rounds, runtime=runtime.name, batch=batch, precision=precision, device=device, threads=threads)


@contextmanager
def _all_cores() -> Iterator[None]:
    """Gives PyTorch as many threads as the other runtimes have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(available_cores())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _baseline(folder: ModelFolder, against: Path | str | None) -> Iterator[tuple[ModelFolder, str, bool]]:
    """The model to compare with, what to call it, and whether its folder is a temporary one."""
    if against is not None and ModelFolder.is_one(against):
        yield ModelFolder(against), str(against), False
        return
    plan = folder.plan.original()
    if against is not None:
        plan = CompressionPlan(model=str(against), model_kwargs=folder.plan.model_kwargs)
    with seeded(0):
        model = build(plan)
    size = open_shapes(plan.model, plan.model_kwargs).architecture.input_size
    preprocessing = folder.manifest.preprocessing.model_copy(update={"input_size": size})
    with temporary_folder(model, plan, preprocessing) as temporary:
        yield temporary, f"{plan.model} (uncompressed, random weights)", True


def _check_same_input(folder: ModelFolder, other: ModelFolder) -> None:
    ours, theirs = (item.manifest.preprocessing.input_size for item in (folder, other))
    if ours != theirs:
        raise InputError(
            f"--against: {other.plan.model} takes images of {list(theirs)} and {folder.path} of {list(ours)}; "
            "their latencies are not comparable"
        )


def _compute_capabilities(
    folder: ModelFolder, runtime: Runtime, batch: int, precision: Precision
) -> tuple[str, ...] | None:
    """Both engines are built for the same GPUs."""
    if runtime.artifact != "engine":
        return None
    return engine_records(folder)[runtime.file(folder, batch, precision).name].compute_capabilities


def _macs(folder: ModelFolder) -> int:
    return count_macs(build(folder.plan, device="meta"), folder.manifest.preprocessing.input_size).total


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
