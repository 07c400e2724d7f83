"""Whether every attention of a file is fused: one operator, for which TensorRT-RTX has one kernel. Needs no GPU."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from dcvit.exporting.attention import AttentionNode, attentions_of, in_pieces
from dcvit.exporting.folding import FUSED_ATTENTION
from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.targets import DEFAULT_COMPUTE_CAPABILITIES, engine_target
from dcvit.exporting.tensorrt import no_kernel_for
from dcvit.folder.records import EngineRecord
from dcvit.runtimes import flavors
from dcvit.variant import Variant
from dcvit.verification.checks import Check, holds


def check_fused_file(path: Path, variant: Variant) -> list[Check]:
    """A check of an ONNX file whose attention is in fp16 or bf16; none of another, which no kernel fuses.

    Where TensorRT-RTX is installed it builds each attention alone, by its shapes, for the GPUs that engines are built
    for by default. Elsewhere the shapes are judged by what is known of its kernels.
    """
    with reading_graph(path):
        return _check(path.name, path, variant, DEFAULT_COMPUTE_CAPABILITIES, [])


def check_fused_engine(name: str, path: Path, record: EngineRecord) -> list[Check]:
    """A check of an engine of TensorRT-RTX, which was not built but with a fused kernel for each attention operator.

    Args:
        name: Of the engine.
        path: The ONNX file that it was built from.
        record: Of the engine; so many attentions must be in its network as are in the file.
    """
    if record.flavor != "tensorrt-rtx":
        return []
    built = sum(record.network.layers.get("ATTENTION_OUTPUT", {}).values())
    with reading_graph(path):
        of_file = len(attentions_of(read_graph(path)))
        differs = [f"the engine has {built} attentions as one layer, and {path.name} has {of_file}"]
        missing = differs * (built != of_file)
        return _check(name, path, record.variant, record.compute_capabilities or (), missing)


def _check(
    name: str, path: Path, variant: Variant, compute_capabilities: tuple[str, ...], faults: list[str]
) -> list[Check]:
    if variant.precision not in ("fp16", "bf16") and not variant.explicit:
        return []
    title, model = f"{name}: fused attention", read_graph(path)
    pieces, nodes = in_pieces(model), attentions_of(model)
    if not pieces and not nodes:
        return []
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < FUSED_ATTENTION:
        return [Check(title, True, f"none is looked for: opset {opset} has no operator for it")]
    faults = faults + [f"{each}: one operator could do what is written in pieces" for each, plain in pieces if plain]
    for node in nodes:
        if reason := node.cannot_fuse(compute_capabilities) or _no_kernel(node, compute_capabilities):
            faults.append(f"{node.name}: {reason}")
    return [holds(title, faults, _found(nodes, [each for each, plain in pieces if not plain], compute_capabilities))]


def _found(nodes: list[AttentionNode], others: list[str], compute_capabilities: tuple[str, ...]) -> str:
    how = f"tensorrt-rtx {flavors.load('tensorrt-rtx').__version__} built each" if _tries() else "by their shapes"
    fused = f"{len(nodes)} attentions, one operator and one kernel each for {', '.join(compute_capabilities)}: {how}"
    pieces = f"{len(others)} in pieces, as the architecture has them ({others[0]} …)" if others else ""
    return "; ".join(filter(None, (fused if nodes else "", pieces)))


def _tries() -> bool:
    """Whether TensorRT-RTX can be asked. Beside TensorRT it is not: a process works with one of the two."""
    return flavors.installed("tensorrt-rtx") and not flavors.installed("tensorrt")


def _no_kernel(node: AttentionNode, compute_capabilities: tuple[str, ...]) -> str | None:
    return _asked(replace(node, name="attention"), compute_capabilities) if _tries() else None


@cache
def _asked(node: AttentionNode, compute_capabilities: tuple[str, ...]) -> str | None:
    """Asks once for all attentions of the same shapes."""
    return no_kernel_for(node, engine_target("tensorrt-rtx", compute_capabilities or None))
