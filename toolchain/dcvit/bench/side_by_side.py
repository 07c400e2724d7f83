"""Latency at the smallest batch beside throughput at the largest: the two figures that a server is planned with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class SideBySide:
    """What one runtime does at its smallest and at its largest batch.

    Attributes:
        runtime: Its name.
        precision: Of the folder's model.
        small: The row of the smallest batch, as scripts read it.
        large: That of the largest.
    """

    runtime: str
    precision: str
    small: dict[str, Any]
    large: dict[str, Any]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> list[Self]:
        """One for each runtime, precision and kind of input that was measured at several batches."""
        alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        keys = ("runtime", "precision", "against", "baseline_precision", "protocol", "threads", "with_preprocessing")
        for row in rows:
            alike.setdefault(tuple(row.get(key) for key in keys), []).append(row)
        found = []
        for group in alike.values():
            group.sort(key=lambda row: row["batch"])
            if group[0]["batch"] != group[-1]["batch"]:
                found.append(cls(group[0]["runtime"], group[0]["precision"], group[0], group[-1]))
        return found

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read: ms for one batch, and images a second."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "latency_batch": self.small["batch"],
            "latency_ms": self.small["median_ms"],
            "baseline_latency_ms": self.small["baseline_median_ms"],
            "throughput_batch": self.large["batch"],
            "images_per_second": self.large["images_per_second"],
            "baseline_images_per_second": self.large["baseline_images_per_second"],
        }

    def cells(self) -> tuple[str, ...]:
        """Runtime, precision, latency and throughput, original → this."""
        small, large = self.small, self.large
        return (
            self.runtime,
            self.precision,
            f"{small['baseline_median_ms']:,.4g} → {small['median_ms']:,.4g} ms (batch {small['batch']})",
            f"{large['baseline_images_per_second']:,.0f} → {large['images_per_second']:,.0f} images/s "
            f"(batch {large['batch']})",
        )


COLUMNS = ("runtime", "precision", "latency", "throughput")


def table(found: Iterable[SideBySide]) -> Any:
    """For a terminal."""
    from rich.table import Table

    drawn = Table(*COLUMNS)
    for each in found:
        drawn.add_row(*each.cells())
    return drawn
