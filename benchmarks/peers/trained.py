"""What `benchmarks/cait.py` and `accuracy.py` found: their rows, with those that differ in the seed alone as one."""

from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

SHARD = 10_000
"""Images of one shard of the training set."""


@dataclass(frozen=True)
class Trained:
    """One kind of training, over its seeds.

    Attributes:
        images: That it was trained on.
        macs_ratio: Of the teacher's MACs to the model's.
        loss: Mean over the end of the training, in nats.
        top1: In percent; the mean over the seeds.
        deviation: Standard deviation of it; None where there is one seed.
        drop: top-1 less that of the control with the same length, learning rate and seed; None where there is none.
        untrained: top-1 before training; None where that was not measured.
    """

    method: str
    macs_reduction: float
    epochs: float
    images: int
    lr: float
    setting: str | None
    macs_ratio: float
    params: float
    loss: float
    top1: float
    deviation: float | None
    seeds: int
    drop: float | None
    untrained: float | None

    @property
    def images_seen(self) -> float:
        return self.epochs * self.images

    @property
    def spread(self) -> str:
        """top-1 with its deviation."""
        return (
            f"{self.top1:.2f}" if self.deviation is None else f"{self.top1:.2f} ± {self.deviation:.2f} ({self.seeds})"
        )


def trained(rows: list[dict[str, Any]]) -> list[Trained]:
    """All kinds of training, in the order of their first row; models that were only cut have none."""
    rows = [row for row in rows if row["loss"] is not None]
    controls = {_recipe(row): row["top1"] for row in rows if row["method"].startswith("control")}
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["method"], row["macs_reduction"], row["epochs"], row["shards"], row["lr"]), []).append(
            row
        )
    return [_of(seeds, controls) for seeds in kinds.values()]


def _recipe(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["epochs"], row["shards"], row["lr"], row["seed"], row["method"].endswith("label-free")


def _of(seeds: list[dict[str, Any]], controls: dict[tuple[Any, ...], float]) -> Trained:
    first, found = seeds[0], [row["top1"] for row in seeds]
    drops = [row["top1"] - controls[_recipe(row)] for row in seeds if _recipe(row) in controls]
    before = [row["top1_untrained"] for row in seeds if "top1_untrained" in row]
    return Trained(
        method=first["method"],
        macs_reduction=first["macs_reduction"],
        epochs=first["epochs"],
        images=SHARD * first["shards"],
        lr=first["lr"],
        setting=first.get("setting"),
        macs_ratio=mean(row["macs_ratio"] for row in seeds),
        params=mean(row["params"] for row in seeds),
        loss=mean(row["loss"] for row in seeds),
        top1=mean(found),
        deviation=stdev(found) if len(found) > 1 else None,
        seeds=len(found),
        drop=mean(drops) if drops else None,
        untrained=mean(before) if before else None,
    )
