"""Half precision in the graph itself: TensorRT is strongly typed, so the types of the ONNX file are the engine's.

Everything computes in fp16 or bf16 but what loses accuracy or overflows there (NVIDIA/TensorRT#2709): layer norms,
softmax and what they are made of. These keep fp32 weights too. Inputs and outputs of the model stay as they are. An
attention that is one operator is in half precision as a whole, and its kernel decides how it sums: TensorRT's parser
refuses the operator's `softmax_precision`.
"""

from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from dcvit.errors import InputError

KEPT_FP32 = frozenset(
    {"LayerNormalization", "RMSNormalization", "GroupNormalization", "Softmax"}
    # An RMS norm in small pieces: a mean of squares overflows fp16 where the values pass 256.
    | {"Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal"}
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
_FLOAT = ir.DataType.FLOAT

Half = Literal["fp16", "bf16"]
HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def to_half(model: ir.Model, precision: Half) -> None:
    """Converts a model of static types to fp16 or bf16, in place.

    Raises:
        InputError: If a weight is too large for fp16.
    """
    _Conversion(model.graph, precision).run()


class _Conversion:
    def __init__(self, graph: ir.Graph, precision: Half) -> None:
        self._graph = graph
        self._precision, self._half = precision, HALVES[precision]
        self._converted: dict[tuple[str, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if node.op_type == "Cast":  # the model's own: its input may be of either type
                continue
            kept = self._stays_fp32(node)
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in (_FLOAT, self._half):
                    node.replace_input_with(index, self._as(value, _FLOAT if kept else self._half))
            for output in node.outputs:
                if output.dtype == _FLOAT and not kept:
                    output.type = ir.TensorType(self._half)
        for index, output in enumerate(self._graph.outputs):
            if output.dtype == self._half:
                name, output.name = output.name, f"{output.name}_{self._precision}"
                self._graph.outputs[index] = self._as(output, _FLOAT)
                self._graph.outputs[index].name = name

    def _stays_fp32(self, node: ir.Node) -> bool:
        if node.op_type in KEPT_FP32:
            return True
        if node.op_type not in _ARITHMETIC:
            return False
        computed = [value for value in node.inputs if value is not None and value.const_value is None]
        return bool(computed) and all(_of_reduction(value) for value in computed)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in a type: itself, a weight of that type, or the output of one shared Cast."""
        if value.dtype == dtype:
            return value
        key = (value.name or "", dtype)
        if key not in self._converted:
            name = f"{value.name}_{self._precision if dtype == self._half else 'fp32'}"
            weight = value.is_initializer()
            self._converted[key] = self._weight(value, name) if weight else self._cast(value, name, dtype)
        return self._converted[key]

    def _weight(self, value: ir.Value, name: str) -> ir.Value:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        with np.errstate(over="ignore"):
            halves = numbers.astype(_NUMPY[self._precision])
        if not np.isfinite(halves).all():
            raise InputError(
                f"'{value.name}' reaches {np.abs(numbers).max():.3g}, and fp16 ends at 65504; "
                "use --precision bf16 or fp32"
            )
        half = ir.Value(
            name=name, shape=value.shape, type=ir.TensorType(self._half), const_value=ir.tensor(halves, name=name)
        )
        self._graph.register_initializer(half)
        return half

    def _cast(self, value: ir.Value, name: str, dtype: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(dtype)})
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(producer, cast)
        return cast.outputs[0]


def _of_reduction(value: ir.Value) -> bool:
    """Whether a value lies within a norm in small pieces, and is fp32 (layer norm and softmax are whole operators)."""
    producer = value.producer()
    if producer is None or value.dtype != _FLOAT:
        return False
    return producer.op_type not in {"LayerNormalization", "RMSNormalization", "GroupNormalization", "Softmax"}
