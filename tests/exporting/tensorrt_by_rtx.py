"""Builds through the code for TensorRT, with TensorRT-RTX's library under its name and a GPU that is not there.

TensorRT itself neither installs from the usual index nor builds without a GPU. TensorRT-RTX has the same Python
interface, so everything but the kernels is real. Polygraphy chooses its flavor once for a process: hence a process of
its own. Prints one JSON object.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import tensorrt_rtx
import torch

fake = types.ModuleType("tensorrt")
vars(fake).update({name: value for name, value in vars(tensorrt_rtx).items() if not name.startswith("__")})
fake.__version__ = "11.0.0"
fake.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
sys.modules["tensorrt"] = fake
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda device=None: (8, 9)
torch.cuda.get_device_name = lambda device=None: "Some GPU"

from dcvit.exporting.targets import engine_target  # noqa: E402
from dcvit.exporting.tensorrt import build_engine  # noqa: E402

onnx_path = Path(sys.argv[1])
target = engine_target(None, None)  # on a machine with a GPU that is TensorRT
engine = Path(sys.argv[2])
_, first = build_engine(onnx_path, engine, target)
network, second = build_engine(onnx_path, engine, target)
print(
    json.dumps(
        {
            "target": vars(target),
            "bytes": engine.stat().st_size,
            "products": network.layers["MATRIX_MULTIPLY"],
            "timing_cache": [first.timing_cache, second.timing_cache],
        }
    )
)
