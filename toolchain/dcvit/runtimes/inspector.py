"""The layers of an engine as TensorRT's own inspector tells them."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        kind: What it does, in the words of whoever tells.
        dtype: Of its first output.
    """

    name: str
    kind: str
    dtype: str


def layers_of(engine: Any, trt: Any) -> list[Layer]:
    """The layers of an engine after fusion; `trt` is the flavor's package. Needs the engine's GPU."""
    inspector = engine.create_engine_inspector()
    return read_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def read_layers(information: str) -> list[Layer]:
    """Reads the inspector's JSON: objects from a build with detailed verbosity, mere names from another."""
    layers = []
    for layer in json.loads(information)["Layers"]:
        if isinstance(layer, str):
            layers.append(Layer(layer, "unknown", "unknown"))
            continue
        outputs = layer.get("Outputs") or [{}]
        # TensorRT 11 tells type and format apart, TensorRT 10 in one.
        dtype = outputs[0].get("DataType") or outputs[0].get("Format/Datatype") or "unknown"
        layers.append(Layer(layer.get("Name", ""), layer.get("LayerType", "unknown"), dtype))
    return layers
