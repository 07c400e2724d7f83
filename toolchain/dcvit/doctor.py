"""What is usable on this machine, and how to get the rest."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from rich.table import Table

from dcvit.hardware import accelerator
from dcvit.runtimes import RUNTIMES, available_cores, flavors
from dcvit.runtimes.onnx_runtime import installed_twice
from dcvit.variant import Flavor
from dcvit.versions import package_versions


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; where it is not usable, `detail` says why and what to do."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at."""

    machine: dict[str, Any]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "findings": [vars(finding) for finding in self.findings]}

    def lines(self) -> Iterable[Any]:
        yield ", ".join(f"{name} {value}" for name, value in self.machine.items() if name != "versions")
        yield ", ".join(f"{name} {version}" for name, version in self.machine["versions"].items())
        table = Table()
        for column in ("", "usable", "detail"):
            table.add_column(column)
        for finding in self.findings:
            table.add_row(finding.name, "yes" if finding.usable else "no", finding.detail)
        yield table


def examine() -> Diagnosis:
    """Looks at the machine, the runtimes, engine building, training and the kernels."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "gpu": gpu,
        "versions": package_versions(),
    }
    findings = [_runtime(name) for name in RUNTIMES]
    if (twice := installed_twice()) is not None:
        findings.insert(0, Finding("onnxruntime and onnxruntime-gpu", False, twice))
    findings += [_engines("tensorrt-rtx", "tensorrt_rtx", "without a GPU too"), _engines("tensorrt", "tensorrt", "")]
    process = accelerator()
    findings.append(Finding("training", True, f"on {process.device.type}, precision {process.mixed_precision}"))
    findings.append(_kernels())
    findings += [_package("plots", "matplotlib", "plots"), _package("TensorBoard", "tensorboard", "tensorboard")]
    return Diagnosis(machine, findings)


def _runtime(name: str) -> Finding:
    runtime = RUNTIMES[name]
    reason = runtime.unavailable()
    reads = {"weights": "the folder's weights", "onnx": "ONNX files", "engine": "engines"}[runtime.artifact]
    return Finding(f"runtime {name}", reason is None, reason or f"runs {reads} in {', '.join(runtime.precisions)}")


def _engines(flavor: Flavor, package: str, where: str) -> Finding:
    if find_spec(package) is not None:
        return Finding(f"engines for {flavor}", True, f"`dcvit-tool export FOLDER --trt` builds them {where}".rstrip())
    return Finding(f"engines for {flavor}", False, flavors.how_to_install(flavor))


def _package(what: str, package: str, extra: str) -> Finding:
    if find_spec(package) is not None:
        return Finding(what, True, f"{package} is installed")
    return Finding(what, False, f"`pip install 'dcvit-tool[{extra}]'`")


def _kernels() -> Finding:
    name = "Triton kernels for merging"
    if not torch.cuda.is_available():
        return Finding(name, False, "they need a GPU; without one merging runs in plain PyTorch, with the same results")
    if find_spec("triton") is None:
        return Finding(name, False, "pip install triton")
    if os.environ.get("DCVIT_KERNELS") == "0":
        return Finding(name, False, "turned off by DCVIT_KERNELS=0")
    return Finding(name, True, "used by themselves; DCVIT_KERNELS=0 turns them off")


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
