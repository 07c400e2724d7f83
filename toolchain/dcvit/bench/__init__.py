"""Latency of a model folder against the model it was made from, measured so that it can be trusted.

`benchmarks/README.md` has the protocol, and why each part of it is as it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dcvit.bench.best_runtime import Search, fastest
from dcvit.bench.history import write_history
from dcvit.bench.machine import Machine, this_machine
from dcvit.bench.memory import peak_memory
from dcvit.bench.pair import Pair, Setting, macs_of, pair_of
from dcvit.bench.result import BenchResult, BenchRow, Measured
from dcvit.bench.rounds import Limits, run_rounds
from dcvit.bench.statistics import Latency, Protocol, speedup, speedup_interval
from dcvit.folder.model_folder import ModelFolder
from dcvit.progress import say
from dcvit.runtimes import limited_to, runtime_named
from dcvit.runtimes.choice import choose_variant
from dcvit.variant import DEFAULT_BATCH, Precision, Variant

__all__ = ["BenchResult", "BenchRow", "Limits", "Machine", "benchmark"]


def benchmark(
    folder: ModelFolder | Path | str,
    against: Path | str | None = None,
    *,
    runtimes: Sequence[str] | None = None,
    batch: int | Sequence[int] | None = None,
    precision: Precision | None = None,
    baseline_precision: Precision | None = None,
    protocol: Protocol = "default",
    runs: int | None = None,
    max_seconds: float | None = None,
    threads: int | None = None,
    memory: bool = False,
    with_preprocessing: bool | None = None,
) -> BenchResult:
    """Times a folder's model and another one in turn, in one process, and writes `bench.json` into the folder.

    Rows of earlier runs stay in the file while they are of the same files.

    Args:
        folder: A model folder that holds what the runtimes run (see `export`).
        against: A model folder, or a timm name, which gets the folder's model_kwargs and random weights (as if trained,
            if the folder's are). By default the folder's own model, uncompressed.
        runtimes: Names out of `dcvit.runtimes.RUNTIMES`. None takes ONNX Runtime on a CPU, and on a GPU the fastest of
            those that run there and find their file in the folder.
        batch: Images in every batch, or several such numbers; by default 64, or that of the exported file that is there
            (the newest).
        precision: Of the folder's model; by default fp32, or that of the exported file that is there.
        baseline_precision: Of the other model; by default the same.
        protocol: `default`, medians; or `paper`, means of 500 runs.
        runs: Exactly so many rounds; by default 500 with the protocol of the papers, else as many as make the 95 %
            interval of the speed-up no wider than ±1 %.
        max_seconds: Time limit for each runtime and batch; by default 60 where the number of runs is open, else none.
        threads: CPU threads of each model; by default one for each core that this process may use.
        memory: Measure peak memory too, each model in a process of its own (some seconds).
        with_preprocessing: Time the exported files that take pixels, or those that do not; those of the other model do
            so too. By default what is there.

    Raises:
        InputError: If the folder is not whole, a runtime cannot run here or lacks its file, or the two models take
            images of different sizes.
        CheckFailedError: If a model cannot be run in a process of its own.
    """
    limits = Limits.of(protocol, runs, max_seconds)
    folder = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    wishes: dict[str, Any] = {"precision": precision, "with_preprocessing": with_preprocessing}
    batches = dict.fromkeys([batch] if batch is None or isinstance(batch, int) else batch)
    searches: tuple[Search, ...] = ()
    if runtimes is None and torch.cuda.is_available():
        given = {name: wish for name, wish in wishes.items() if wish is not None}
        searches = tuple(fastest(folder, Variant.of(each or DEFAULT_BATCH, **given)) for each in batches)
        pairs = [(search.runtime, search.variant) for search in searches]
    else:
        pairs = [
            (name, choose_variant(runtime_named(name), folder, batch=each, **wishes))
            for name in dict.fromkeys(runtimes or ("onnxruntime",))
            for each in batches
        ]
    settings = [Setting.of(runtime, variant, baseline_precision, threads) for runtime, variant in pairs]
    for setting in settings:
        setting.file(folder)  # a missing one is found before any time is spent
    machine = this_machine()
    with limited_to(threads), pair_of(folder, against) as pair:
        for setting in settings:
            pair.prepare(setting)
        macs = macs_of(pair.candidate), macs_of(pair.baseline)
        rows = tuple(_compare(pair, setting, limits, macs, memory=memory) for setting in settings)
    result = BenchResult(folder.path, pair.against, *macs, rows, machine.measured(), searches)
    write_history(folder, result)
    return result


def _compare(pair: Pair, setting: Setting, limits: Limits, macs: tuple[int, int], *, memory: bool) -> BenchRow:
    baseline, candidate = pair.open(setting)
    rounds = run_rounds(
        baseline.execute, candidate.execute, limits, f"timing with {setting.runtime}, batch {setting.variant.batch}"
    )
    times, file = (rounds.baseline_ms, rounds.candidate_ms), setting.file(pair.candidate).name
    row = BenchRow(
        runtime=setting.runtime,
        batch=setting.variant.batch,
        precision=setting.variant.precision,
        device=candidate.device,
        threads=candidate.threads,
        latency=Latency.of(rounds.candidate_ms),
        baseline=Latency.of(rounds.baseline_ms),
        speedup=speedup(*times, limits.protocol),
        speedup_ci95=speedup_interval(*times, limits.protocol),
        runs=len(rounds.baseline_ms),
        stopped=rounds.stopped,
        protocol=limits.protocol,
        warm_up=rounds.warm_up,
        measured=Measured(
            file,
            pair.candidate.manifest.files[file].sha256,
            pair.against,
            setting.baseline_precision,
            *macs,
            setting.variant.with_preprocessing,
        ),
    )
    if not memory:
        return row
    say(f"peak memory with {setting.runtime}, batch {setting.variant.batch}, each model in a fresh process")
    return replace(
        row,
        memory=peak_memory(pair.candidate.path, setting.runtime, setting.variant, setting.threads),
        baseline_memory=peak_memory(pair.baseline.path, setting.runtime, setting.baseline_variant, setting.threads),
    )
