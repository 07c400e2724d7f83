"""Targets for well-known models, each made for one kind of runtime by a table of its latencies.

`benchmarks/presets.py` writes them: the merges are fixed, and the share of the MACs is the smallest at which the table
says that the model is so many times as fast. Its tables come along, so that a model folder can hold its own.
"""

import json
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dcvit.variant import Precision

ASSETS = Path(__file__).parents[1] / "assets" / "presets"
INDEX = "presets.json"


class MadeFor(BaseModel):
    """Where a preset is as fast as it says.

    Attributes:
        preset: Its name.
        machine: Kind of the machine that the table was measured on.
        table: sha256 of the table.
        speedup: Over the whole model, as the table predicts it of uniform widths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    runtime: str
    precision: Precision
    batch: int
    threads: int | None
    machine: str
    table: str
    speedup: float

    def __str__(self) -> str:
        where = f"{self.runtime} {self.precision}, batch {self.batch}"
        return f"{self.preset} is ×{self.speedup:.2f} as fast in {where}, as a table of {self.machine} says"

    def table_text(self) -> str:
        """The table, as the file that `dcvit-tool latency -o` writes."""
        return (ASSETS / f"{self.preset}.json").read_text(encoding="utf-8")


class Preset(BaseModel):
    """A target for one model of timm.

    Attributes:
        method: Name of the method that it is for.
        model: timm name; its number of classes and its weights are free.
        merge: The schedule.
        macs_reduction: Share of the MACs to remove, merges included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    model: str
    merge: str
    macs_reduction: float
    made_for: MadeFor


@cache
def presets() -> dict[str, Preset]:
    """All presets, by name."""
    index = json.loads((ASSETS / INDEX).read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in index.items()}
