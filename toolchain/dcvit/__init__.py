"""Make a Vision Transformer faster with few or no labels, and ship it: PyTorch, ONNX, TensorRT.

import dcvit

dcvit.compress("deit_tiny_patch16_224", "images/", out="small", macs_reduction=0.3)
dcvit.export("small", precision="fp16", trt=True)
dcvit.verify("small", "images/")
dcvit.benchmark("small")
model = dcvit.load("small")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcvit.api import benchmark, compress, evaluate, export, load, verify
    from dcvit.plan import CompressionPlan

__all__ = ["CompressionPlan", "benchmark", "compress", "evaluate", "export", "load", "verify"]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import, and `dcvit-tool --help` must not wait for them.
    if name == "CompressionPlan":
        return importlib.import_module("dcvit.plan").CompressionPlan
    if name in __all__:
        return getattr(importlib.import_module("dcvit.api"), name)
    raise AttributeError(f"module 'dcvit' has no attribute '{name}'")
