"""What a benchmark found."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcvit.artifacts import Precision
from dcvit.bench.machine import Machine
from dcvit.bench.rounds import Rounds, Stopped
from dcvit.bench.statistics import Latency, speedup, speedup_interval


@dataclass(frozen=True)
class BenchRow:
    """Two models in one runtime.

    Attributes:
        device: What computed; with `threads` on a CPU.
        latency: Of the folder's model.
        baseline: Of the model it is compared with.
        speedup: Ratio of the medians, above 1 where the folder's model is faster.
        speedup_ci95: Its 95 % interval.
        runs: Rounds; each model ran once in each.
        stopped: What ended the measurement.
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

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read, all times in ms for one batch."""
        return {
            "runtime": self.runtime,
            "batch": self.batch,
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            **vars(self.latency),
            **{f"baseline_{key}": value for key, value in vars(self.baseline).items()},
            "speedup": self.speedup,
            "speedup_ci95": list(self.speedup_ci95),
            "runs": self.runs,
            "stopped": self.stopped,
        }


def row_of(
    rounds: Rounds, *, runtime: str, batch: int, precision: Precision, device: str, threads: int | None
) -> BenchRow:
    """The figures of a measurement."""
    times = rounds.baseline_ms, rounds.candidate_ms
    return BenchRow(
        runtime=runtime,
        batch=batch,
        precision=precision,
        device=device,
        threads=threads,
        latency=Latency.of(rounds.candidate_ms),
        baseline=Latency.of(rounds.baseline_ms),
        speedup=speedup(*times),
        speedup_ci95=speedup_interval(*times),
        runs=len(rounds.baseline_ms),
        stopped=rounds.stopped,
    )


@dataclass(frozen=True)
class BenchResult:
    """A model folder against another model, in one or more runtimes on one machine.

    Attributes:
        against: The other model, in words.
        macs: Multiply-accumulates of the folder's model for one image.
        baseline_macs: Those of the other model.
    """

    folder: Path
    against: str
    macs: int
    baseline_macs: int
    rows: tuple[BenchRow, ...]
    machine: Machine

    @property
    def macs_ratio(self) -> float:
        """How many times fewer MACs: what the speed-up would be if time followed MACs."""
        return self.baseline_macs / self.macs

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read; MACs stand beside every latency."""
        macs = {"macs": self.macs, "baseline_macs": self.baseline_macs, "macs_ratio": self.macs_ratio}
        return {
            "folder": str(self.folder),
            "against": self.against,
            "results": [row.to_json() | macs for row in self.rows],
            "machine": self.machine.to_json(),
        }

    def lines(self) -> Iterable[Any]:
        """A table with one row for each runtime, then what it was measured on."""
        from rich.table import Table

        table = Table(title=f"{self.folder} against {self.against}")
        columns = ("runtime", "batch", "precision", "device", "original ms", "ms", "speed-up [95 %]", "MACs", "runs")
        for column in columns:
            table.add_column(column)
        for row in self.rows:
            low, high = row.speedup_ci95
            device = row.device if row.threads is None else f"{row.device}, {row.threads} threads"
            table.add_row(
                row.runtime,
                str(row.batch),
                row.precision,
                device,
                _milliseconds(row.baseline),
                _milliseconds(row.latency),
                f"×{row.speedup:.3f} [{low:.3f}, {high:.3f}]",
                f"{self.baseline_macs / 1e6:,.1f} → {self.macs / 1e6:,.1f} M (×{self.macs_ratio:.3f})",
                f"{row.runs} ({row.stopped})",
            )
        yield table
        yield "ms: median (95th percentile) of one forward pass of a batch, both models in turn in random order"
        yield f"measured on {self.machine.gpu or self.machine.cpu}, {self.machine.cores} CPU cores"
        if self.machine.load is not None and self.machine.load > 0.5 * self.machine.cores:
            yield f"the machine was busy (load {self.machine.load:.1f}): trust the ratios more than the times"


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median_ms:.2f} ({latency.p95_ms:.2f})"
