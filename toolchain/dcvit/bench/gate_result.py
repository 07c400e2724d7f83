"""What the gate found, and what it wrote."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dcvit.bench.baseline import Baseline
from dcvit.bench.gate import Judgement
from dcvit.bench.machine import Machine

Undecided = Literal["pass", "fail"]


@dataclass(frozen=True)
class Checked:
    """A folder that was compared with a baseline.

    Attributes:
        name: Of the baseline's file, without its ending.
        expected: The speed-up in the baseline.
        tolerance: Share that it may fall by here.
        found: What was measured.
        notes: What a reader of the figures must know.
    """

    name: str
    baseline: Baseline
    expected: float
    tolerance: float
    found: Judgement
    notes: tuple[str, ...]

    @property
    def threshold(self) -> float:
        """The least speed-up that passes."""
        return self.expected * (1 - self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        about = self.baseline.model_dump(mode="json", exclude={"machines", "schema_version", "tolerance"})
        return {
            "name": self.name,
            "outcome": self.found.outcome,
            "speedup": self.found.speedup,
            "baseline_speedup": self.expected,
            "threshold": self.threshold,
            "tolerance": self.tolerance,
            "sessions": list(self.found.sides),
            "runs": self.found.rounds,
            "seconds": self.found.seconds,
            "fastest_ms": self.found.candidate_ms,
            "baseline_fastest_ms": self.found.baseline_ms,
            "notes": list(self.notes),
            **about,
        }


@dataclass(frozen=True)
class GateResult:
    """Folders that were compared with their baselines.

    Attributes:
        undecided: What a speed-up counts as that is too near to the threshold to tell.
    """

    rows: tuple[Checked, ...]
    undecided: Undecided
    machine: Machine

    @property
    def passed(self) -> bool:
        """Whether no speed-up has fallen."""
        allowed = {"passed", "undecided"} if self.undecided == "pass" else {"passed"}
        return all(row.found.outcome in allowed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {
            "passed": self.passed,
            "undecided": self.undecided,
            "checks": [row.to_json() for row in self.rows],
            "machine": self.machine.to_json(),
        }

    def lines(self) -> Iterable[Any]:
        """A table with a row for each baseline, then notes and the verdict."""
        from rich.table import Table

        table = Table(title="speed-ups against their baselines")
        for column in ("baseline", "runtime", "batch", "precision", "was", "at least", "is", "change", "sessions", ""):
            table.add_column(column)
        for row in self.rows:
            sides = [{"above": "✓", "below": "✗", None: "?"}[side] for side in row.found.sides]
            table.add_row(
                row.name,
                row.baseline.runtime,
                str(row.baseline.batch),
                row.baseline.precision + ", from pixels" * row.baseline.with_preprocessing,
                f"×{row.expected:.3f}",
                f"×{row.threshold:.3f} (−{row.tolerance:.0%})",
                f"×{row.found.speedup:.3f}",
                f"{row.found.speedup / row.expected - 1:+.1%}",
                f"{''.join(sides)}, {row.found.rounds} runs, {row.found.seconds:.0f} s",
                {"passed": "passed", "failed": "FAILED", "undecided": "undecided"}[row.found.outcome],
            )
        yield table
        for row in self.rows:
            yield from (f"{row.name}: {note}" for note in row.notes)
        yield f"measured on {self.machine.kind}; sessions: ✓ above the least speed-up, ✗ below, ? cannot tell"
        if any(row.found.outcome == "undecided" for row in self.rows):
            yield f"undecided: too near to the least speed-up to tell in the time given; counts as {self.undecided}"
        if failed := [row.name for row in self.rows if row.found.outcome == "failed"]:
            yield f"slower than allowed: {', '.join(failed)}; if that is meant, write new baselines with --update"


@dataclass(frozen=True)
class Updated:
    """A baseline that was written."""

    path: Path
    baseline: Baseline
    kind: str

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {
            "baseline": str(self.path),
            "kind": self.kind,
            **self.baseline.machines[self.kind].model_dump(mode="json"),
        }

    def lines(self) -> Iterable[Any]:
        """One line."""
        entry = self.baseline.machines[self.kind]
        low, high = entry.interval
        yield (
            f"{self.path}: ×{entry.speedup:.3f} [{low:.3f}, {high:.3f}] over {entry.sessions} sessions on {self.kind}; "
            f"may fall by {self.baseline.tolerance:.0%}"
        )
        if high - low > self.baseline.tolerance * entry.speedup:
            yield "the interval is wide against the tolerance: measure again with a larger --max-seconds"
