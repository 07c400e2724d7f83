"""The machine that a figure was measured on."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dcvit.manifest import package_versions
from dcvit.runtimes import available_cores


@dataclass(frozen=True)
class Machine:
    """What decides a latency.

    Attributes:
        cores: CPU cores that the process may use.
        load: Processes that wanted to run, on average over the last minute before measuring; None on Windows.
        gpu: Name of the first GPU; None without one.
        compute_capability: Of that GPU.
        versions: Of Python and the packages.
    """

    system: str
    cpu: str
    cores: int
    load: float | None
    gpu: str | None
    compute_capability: str | None
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def this_machine() -> Machine:
    """Describes this machine, without its name."""
    gpu = torch.cuda.is_available()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cores=available_cores(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        gpu=torch.cuda.get_device_name(0) if gpu else None,
        compute_capability="{}.{}".format(*torch.cuda.get_device_capability(0)) if gpu else None,
        versions=package_versions(),
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
