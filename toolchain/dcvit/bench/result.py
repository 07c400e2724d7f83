"""What a benchmark found."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.bench.best_runtime import Search
from dcvit.bench.machine import Machine
from dcvit.bench.memory import Memory
from dcvit.bench.rounds import Stopped
from dcvit.bench.side_by_side import SideBySide, table
from dcvit.bench.statistics import Latency, Protocol, Verdict, verdict
from dcvit.bench.warm_up import WarmUp
from dcvit.variant import Precision


@dataclass(frozen=True)
class Measured:
    """What was measured, with which files.

    Attributes:
        file: Of the folder, that the runtime ran.
        sha256: Of that file.
        against: The other model, in words.
        baseline_precision: Of the other model.
        macs: Multiply-accumulates of the folder's model for one image.
        baseline_macs: Those of the other model.
        with_preprocessing: Whether both models took pixels and normalised them.
    """

    file: str
    sha256: str
    against: str
    baseline_precision: Precision
    macs: int
    baseline_macs: int
    with_preprocessing: bool = False

    @property
    def macs_ratio(self) -> float:
        """How many times fewer MACs: what the speed-up would be if time followed MACs."""
        return self.baseline_macs / self.macs


@dataclass(frozen=True)
class BenchRow:
    """Two models in one runtime.

    Attributes:
        device: What computed; with `threads` on a CPU.
        latency: Of the folder's model.
        baseline: Of the model it is compared with.
        speedup: Ratio of the medians (of the means with the protocol of the papers), above 1 where the folder's model
            is faster.
        speedup_ci95: Its 95 % interval.
        runs: Rounds; each model ran once in each.
        stopped: What ended the measurement.
        protocol: `default` (medians, until the interval is tight) or `paper` (means of 500 runs).
        warm_up: How the untimed runs before ended.
        measured: With which files; None for a row of a model that is in no folder.
        memory: Peak memory of the folder's model; None where it was not measured.
        baseline_memory: That of the other one.
    """

    runtime: str
    batch: int
    precision: Precision
    device: str
    threads: int | None
    latency: Latency
    baseline: Latency
    speedup: float
    speedup_ci95: tuple[float, float]
    runs: int
    stopped: Stopped
    protocol: Protocol = "default"
    warm_up: WarmUp | None = None
    measured: Measured | None = None
    memory: Memory | None = None
    baseline_memory: Memory | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the folder's model is faster, slower, or neither can be said."""
        return verdict(self.speedup_ci95)

    @property
    def images_per_second(self) -> float:
        """Throughput of the folder's model at this batch."""
        return 1000 * self.batch / self.latency.of_protocol(self.protocol)

    @property
    def baseline_images_per_second(self) -> float:
        """Throughput of the other model."""
        return 1000 * self.batch / self.baseline.of_protocol(self.protocol)

    @property
    def efficiency(self) -> float | None:
        """The speed-up as a share of the one that the MACs promise."""
        return None if self.measured is None else self.speedup / self.measured.macs_ratio

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read, all times in ms for one batch, memory in MiB."""
        keys: dict[str, Any] = {
            "runtime": self.runtime,
            "batch": self.batch,
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            **vars(self.latency),
            **{f"baseline_{key}": value for key, value in vars(self.baseline).items()},
            "speedup": self.speedup,
            "speedup_ci95": list(self.speedup_ci95),
            "verdict": self.verdict,
            "runs": self.runs,
            "stopped": self.stopped,
            "protocol": self.protocol,
            "images_per_second": self.images_per_second,
            "baseline_images_per_second": self.baseline_images_per_second,
        }
        if self.warm_up is not None:
            keys["warm_up"] = {"runs": self.warm_up.runs, "steady": self.warm_up.steady}
        if self.memory is not None and self.baseline_memory is not None:
            keys |= {"peak_memory_mib": self.memory.peak_mib, "baseline_peak_memory_mib": self.baseline_memory.peak_mib}
            keys["memory_of"] = self.memory.where
        if self.measured is not None:
            keys |= vars(self.measured) | {"macs_ratio": self.measured.macs_ratio, "efficiency": self.efficiency}
        return keys


@dataclass(frozen=True)
class BenchResult:
    """A model folder against another model, in one or more runtimes on one machine.

    Attributes:
        against: The other model, in words.
        macs: Multiply-accumulates of the folder's model for one image.
        baseline_macs: Those of the other model.
        searches: How the runtimes were chosen, where they were not given.
    """

    folder: Path
    against: str
    macs: int
    baseline_macs: int
    rows: tuple[BenchRow, ...]
    machine: Machine
    searches: tuple[Search, ...] = ()

    @property
    def macs_ratio(self) -> float:
        """How many times fewer MACs: what the speed-up would be if time followed MACs."""
        return self.baseline_macs / self.macs

    @property
    def side_by_side(self) -> list[SideBySide]:
        """Latency at the smallest batch beside throughput at the largest, where several were measured."""
        return SideBySide.of([row.to_json() for row in self.rows])

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read; MACs and the machine stand beside every latency."""
        machine = self.machine.to_json()
        return {
            "folder": str(self.folder),
            "against": self.against,
            "results": [row.to_json() | {"machine": machine} for row in self.rows],
            "fastest_runtime": [search.to_json() for search in self.searches],
            "latency_and_throughput": [each.to_json() for each in self.side_by_side],
            "machine": machine,
        }

    def lines(self) -> Iterable[Any]:
        """One table of times and one of what follows from them, then what they were measured on."""
        from rich.table import Table

        yield f"{self.folder} against {self.against}"
        times = Table()
        for column in ("runtime", "batch", "precision", "device", ""):
            times.add_column(column)
        for column in ("p50 ms", "p95", "p99", "mean", "images/s", "MiB"):
            times.add_column(column, justify="right")
        ratios = Table()
        for column in (
            "runtime",
            "batch",
            "precision",
            "speed-up [95 %]",
            "verdict",
            "MACs",
            "speed-up ÷ MACs ratio",
            "runs",
        ):
            ratios.add_column(column)
        for row in self.rows:
            times.add_row(*_setting(row), "original", *_times(row.baseline, row.baseline_images_per_second),
                          _mib(row.baseline_memory))  # fmt: skip
            times.add_row("", "", "", "", "this", *_times(row.latency, row.images_per_second), _mib(row.memory))
            low, high = row.speedup_ci95
            ratios.add_row(
                row.runtime,
                str(row.batch),
                row.precision,
                f"×{row.speedup:.3f} [{low:.3f}, {high:.3f}]",
                row.verdict,
                f"{self.baseline_macs / 1e6:,.1f} → {self.macs / 1e6:,.1f} M (×{self.macs_ratio:.3f})",
                f"{row.speedup / self.macs_ratio:.2f}",
                f"{row.runs} ({row.stopped})",
            )
        yield times
        yield ratios
        if found := self.side_by_side:
            yield table(found)
        yield from self._notes()

    def _notes(self) -> Iterable[str]:
        yield from map(str, self.searches)
        what = {"default": "medians", "paper": "means (the papers' protocol)"}[self.rows[0].protocol]
        yield f"times: one forward pass of a batch, both models in turn in random order; speed-up: ratio of the {what}"
        if (memory := self.rows[0].memory) is not None:
            yield f"MiB: peak memory ({memory.where}) that a fresh process needs to load the model and run it"
        yield f"measured on {self.machine.gpu or self.machine.cpu}, {self.machine.cores} CPU cores"
        if unsteady := [row.runtime for row in self.rows if row.warm_up is not None and not row.warm_up.steady]:
            yield f"times had not come to rest after the warm-up: {', '.join(unsteady)}"
        if self.machine.busy:
            yield f"the machine was busy (load {self.machine.load:.1f}): trust the ratios more than the times"


def _setting(row: BenchRow) -> tuple[str, ...]:
    device = row.device if row.threads is None else f"{row.device}, {row.threads} thread{'s' * (row.threads > 1)}"
    precision: str = row.precision
    if row.measured is not None and row.measured.baseline_precision != row.precision:
        precision = f"{row.precision} (original {row.measured.baseline_precision})"
    if row.measured is not None and row.measured.with_preprocessing:
        precision += ", from pixels"
    return row.runtime, str(row.batch), precision, device


def _times(latency: Latency, images_per_second: float) -> tuple[str, ...]:
    times = (latency.median_ms, latency.p95_ms, latency.p99_ms, latency.mean_ms)
    return *(f"{time:.2f}" for time in times), f"{images_per_second:,.0f}"


def _mib(memory: Memory | None) -> str:
    return "–" if memory is None else f"{memory.peak_mib:,.0f}"
