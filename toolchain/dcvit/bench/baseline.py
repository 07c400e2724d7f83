"""The file that the gate compares with: a speed-up, what it was measured with, and how far it may fall."""

from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcvit.bench.gate import Measurement
from dcvit.bench.machine import Machine
from dcvit.bench.pair import Setting
from dcvit.errors import InputError, first_line
from dcvit.files import whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.variant import Precision, Variant

DEFAULT_TOLERANCE = 0.05
ELSEWHERE = 3
"""On a kind of machine that has no entry the tolerance counts this many times: caches and kernels differ, and with them
the ratio. A choice, not a measurement."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """What was measured on one kind of machine.

    Attributes:
        speedup: Of the folder's model.
        interval: Its 95 % interval.
        sessions: That it rests on.
        group: Rounds in a group; the gate takes the fastest pass of each.
        plan_digest: Of the model that was measured.
        sha256: Of the file that was run.
        machine: With its load and the versions of the packages.
    """

    speedup: float = Field(gt=0)
    interval: tuple[float, float]
    sessions: int
    group: int = Field(ge=1)
    plan_digest: str
    sha256: str
    measured: date
    machine: dict[str, Any]


class Baseline(_Strict):
    """One comparison of a folder's model with another one, on the kinds of machines it was measured on.

    Attributes:
        model: timm name of the folder's model.
        against: The other model: a timm name or a folder; None is the same model, uncompressed.
        with_preprocessing: Whether both models take pixels.
        tolerance: Share of the speed-up that it may fall by.
        machines: By kind of machine.
    """

    schema_version: Literal[1] = 1
    model: str
    against: str | None
    runtime: str
    batch: int
    precision: Precision
    baseline_precision: Precision
    threads: int | None
    with_preprocessing: bool = False
    tolerance: float = Field(gt=0, lt=1)
    machines: dict[str, Entry] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Baseline":
        """Reads a file.

        Raises:
            InputError: If it is not there, or is no baseline.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"there is no baseline {path}; `dcvit-tool bench … --check {path} --update` makes it"
            ) from error
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as a baseline: {first_line(error)}") from error

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        with whole_file(path) as aside:
            aside.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @property
    def setting(self) -> Setting:
        """How both models are run.

        Raises:
            InputError: If this machine cannot.
        """
        variant = Variant.of(self.batch, self.precision, with_preprocessing=self.with_preprocessing)
        return Setting(self.runtime, variant, self.baseline_precision, self.threads)

    def entry(self, machine: Machine) -> tuple[Entry, float]:
        """What to compare with on a machine, and the share that the speed-up may fall by there.

        Where no entry is of its kind, the one with the least speed-up counts.
        """
        if machine.kind in self.machines:
            return self.machines[machine.kind], self.tolerance
        least = min(self.machines.values(), key=lambda entry: entry.speedup)
        return least, min(ELSEWHERE * self.tolerance, 0.9)

    def with_entry(self, folder: ModelFolder, found: Measurement, machine: Machine) -> "Baseline":
        """The baseline with what was measured on a machine, in place of what there was for its kind."""
        file = self.setting.file(folder).name
        entry = Entry(
            speedup=found.speedup,
            interval=found.interval,
            sessions=found.sessions,
            group=found.group,
            plan_digest=folder.plan.digest,
            sha256=folder.manifest.files[file].sha256,
            measured=date.today(),
            machine=machine.to_json(),
        )
        return self.model_copy(update={"machines": self.machines | {machine.kind: entry}})
