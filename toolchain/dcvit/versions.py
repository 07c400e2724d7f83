"""Versions of what decides a result."""

import platform
from importlib import metadata


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in ("dcvit-tool", "torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino",
                    "polygraphy", "tensorrt", "tensorrt-rtx-cu12", "triton", "torchvision",
                    "numpy", "pillow", "safetensors"):  # fmt: skip
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
