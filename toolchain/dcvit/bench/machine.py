"""The machine that a figure was measured on."""

import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcvit.runtimes import available_cores
from dcvit.versions import package_versions

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")
"""Those that decide which of its kernels a runtime takes."""


@dataclass(frozen=True)
class Machine:
    """What decides a latency.

    Attributes:
        cpu: Model name, with family and model number where the name alone says little (virtual machines).
        instructions: Vector instruction sets that decide which kernels a runtime takes.
        cores: CPU cores that the process may use.
        memory_gib: Of the machine; None where the system does not tell.
        load: Processes that wanted to run, on average over the last minute before measuring; None on Windows.
        load_after: The same after measuring: what was measured is in it.
        gpu: Name of the first GPU; None without one.
        compute_capability: Of that GPU.
        versions: Of Python and the packages.
    """

    system: str
    cpu: str
    instructions: tuple[str, ...]
    cores: int
    memory_gib: float | None
    load: float | None
    load_after: float | None
    gpu: str | None
    compute_capability: str | None
    versions: dict[str, str]

    @property
    def kind(self) -> str:
        """What machines have in common that give the same speed-ups: the CPU, its instruction sets, and the GPU."""
        cpu = f"{self.cpu} ({' '.join(self.instructions)})"
        return cpu if self.gpu is None else f"{self.gpu}, {cpu}"

    @property
    def busy(self) -> bool:
        """Whether other processes wanted more than half of the cores before measuring."""
        return self.load is not None and self.load > 0.5 * self.cores

    def measured(self) -> "Machine":
        """The same machine after measuring."""
        return replace(self, load_after=_load())

    def to_json(self) -> dict[str, Any]:
        """All fields, and the kind."""
        return asdict(self) | {"instructions": list(self.instructions), "kind": self.kind}


def this_machine() -> Machine:
    """Describes this machine, without its name."""
    gpu = torch.cuda.is_available()
    info = _cpu_info()
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(info),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        cores=available_cores(),
        memory_gib=_memory_gib(),
        load=_load(),
        load_after=None,
        gpu=torch.cuda.get_device_name(0) if gpu else None,
        compute_capability="{}.{}".format(*torch.cuda.get_device_capability(0)) if gpu else None,
        versions=package_versions(),
    )


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first core."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return {}
    lines = info.read_text().split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cpu_model(info: dict[str, str]) -> str:
    if "model name" not in info:
        return platform.processor() or platform.machine()
    number = f", family {info['cpu family']} model {info['model']}" if "cpu family" in info and "model" in info else ""
    return info["model name"] + number
