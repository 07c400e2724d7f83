"""Make a Vision Transformer faster with few or no labels, and ship it: PyTorch, ONNX, TensorRT.

import dcvit

dcvit.compress("deit_tiny_patch16_224", "images/", out="small", macs_reduction=0.3)
dcvit.export("small", precision="fp16", trt=True)
dcvit.verify("small", "images/")
dcvit.benchmark("small")
model = dcvit.load("small")  # a timm module; train it on, and then:
dcvit.save(model, "small2", like="small")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcvit.api import benchmark, compress, evaluate, export, frontier, inspect, latency, package, report, verify
    from dcvit.errors import CheckFailedError, DcvitError, InputError
    from dcvit.loading import load, save
    from dcvit.methods.cait.settings import CaitSettings
    from dcvit.methods.few_shot.settings import PractiseSettings, SearchSettings
    from dcvit.methods.target import Target
    from dcvit.plan import CompressionPlan
    from dcvit.training.recipe import MimicRecipe, TrainingRecipe

# ONNX Runtime from 1.29 on reports its use to its maker, and keeps an id in the user's cache, unless it is told not to
# before it is first imported, by whomever. Who wants the reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# torch and timm take seconds to import, and `dcvit-tool --help` must not wait for them: each name is imported on use.
_HOMES = {
    "dcvit.api": (
        "benchmark",
        "compress",
        "evaluate",
        "export",
        "frontier",
        "inspect",
        "latency",
        "package",
        "report",
        "verify",
    ),
    "dcvit.errors": ("CheckFailedError", "DcvitError", "InputError"),
    "dcvit.loading": ("load", "save"),
    "dcvit.methods.cait.settings": ("CaitSettings",),
    "dcvit.methods.few_shot.settings": ("PractiseSettings", "SearchSettings"),
    "dcvit.methods.target": ("Target",),
    "dcvit.plan": ("CompressionPlan",),
    "dcvit.training.recipe": ("MimicRecipe", "TrainingRecipe"),
}

__all__ = [
    "CaitSettings",
    "CheckFailedError",
    "CompressionPlan",
    "DcvitError",
    "InputError",
    "MimicRecipe",
    "PractiseSettings",
    "SearchSettings",
    "Target",
    "TrainingRecipe",
    "benchmark",
    "compress",
    "evaluate",
    "export",
    "frontier",
    "inspect",
    "latency",
    "load",
    "package",
    "report",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'dcvit' has no attribute '{name}'")
