"""From an ONNX file to an engine, through polygraphy, with either flavor of TensorRT."""

import contextlib
import io
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dcvit.errors import InputError
from dcvit.exporting.attention import AttentionNode, attentions_of
from dcvit.exporting.engine_file import BuilderToFile
from dcvit.exporting.graphs import read_graph, reading_graph
from dcvit.exporting.targets import EngineTarget, Profile, capability_numbers
from dcvit.folder.records import BuilderRecord, NetworkRecord, TensorRecord
from dcvit.runtimes import flavors
from dcvit.runtimes.caches import cache_folder
from dcvit.runtimes.inspector import Layer
from dcvit.variant import Flavor


def build_engine(
    onnx_path: Path, path: Path, target: EngineTarget, profile: Profile | None = None
) -> tuple[NetworkRecord, BuilderRecord]:
    """Builds an engine, in the types that the ONNX file gives; TF32 is off, so fp32 is fp32.

    TensorRT times kernels to choose among them; the timings are kept in the user's cache for the next build.

    Args:
        onnx_path: The ONNX file.
        path: The engine's file to write.
        target: What the engine is built with, and for.
        profile: Numbers of images, for a file that takes any.

    Raises:
        InputError: If TensorRT does not take the file, or TensorRT-RTX has no fused kernel for one of its attentions,
            without which it builds nothing.
        OSError: If the engine's file cannot be written.
    """
    if target.flavor == "tensorrt-rtx":
        _require_kernels(onnx_path, target)
    with _polygraphy(target.flavor, f"an engine from {onnx_path.name}"):
        from polygraphy.backend.trt import PostprocessConfig, engine_bytes_from_network

        builder, network, parser = _parse(onnx_path, target.flavor)
        record = _describe(network)
        settings: list[BuilderRecord] = []
        timings = _timing_cache(target)

        def finish(_builder: Any, _network: Any, config: Any) -> None:
            config.clear_flag(flavors.load(target.flavor).BuilderFlag.TF32)
            settings.append(_settings(config, target.flavor, timing_cache=timings is not None and timings.exists()))

        config = PostprocessConfig(_config(target, timings, _profiles(network, profile)), finish)
        to_file = BuilderToFile(builder, target.flavor, path)
        engine_bytes_from_network(
            (to_file, network, parser), config=config, save_timing_cache=str(timings) if timings else None
        )
        return record, settings[0]


def no_kernel_for(attention: AttentionNode, target: EngineTarget) -> str | None:
    """Why TensorRT-RTX builds no engine of one attention alone; None where it does. Needs no GPU."""
    with tempfile.TemporaryDirectory(prefix="dcvit-") as place:
        path = Path(place) / "attention.onnx"
        attention.save(path)
        try:
            build_engine(path, path.with_suffix(".engine"), target)
        except InputError as error:
            return f"{target.flavor} {target.version} has no fused kernel for it ({error})"
    return None


def _require_kernels(onnx_path: Path, target: EngineTarget) -> None:
    with reading_graph(onnx_path):
        attentions = attentions_of(read_graph(onnx_path))
    for attention in attentions:
        if reason := attention.cannot_fuse(target.compute_capabilities or ()):
            raise InputError(
                f"{target.flavor} cannot make an engine from {onnx_path.name}: {attention.name}: {reason}; "
                "--opset 22 writes attention in pieces, which need no fused kernel"
            )


def _timing_cache(target: EngineTarget) -> Path | None:
    """The file of this machine's timings; None for TensorRT-RTX, where they have no effect and ask for a GPU."""
    if target.flavor == "tensorrt-rtx":
        return None
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name(0))
    return cache_folder("tensorrt") / f"{target.version}-{gpu}.timings"


def _settings(config: Any, flavor: Flavor, *, timing_cache: bool) -> BuilderRecord:
    trt = flavors.load(flavor)
    return BuilderRecord(
        optimization_level=config.builder_optimization_level,
        workspace_bytes=config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        flags=tuple(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)),
        profiling_verbosity=config.profiling_verbosity.name,
        timing_cache=timing_cache,
    )


def read_network(onnx_path: Path, flavor: Flavor) -> NetworkRecord:
    """What TensorRT makes of an ONNX file: inputs, outputs, and the type that each layer computes in. Needs no GPU.

    Raises:
        InputError: If the flavor is not installed, or does not take the file.
    """
    flavors.load(flavor)
    with _polygraphy(flavor, f"a network from {onnx_path.name}"):
        _builder, network, _parser = _parse(onnx_path, flavor)
        return _describe(network)


def network_layers(onnx_path: Path, flavor: Flavor) -> list[Layer]:
    """The layers that TensorRT makes of an ONNX file before it fuses them. Needs no GPU.

    Raises:
        InputError: If the flavor is not installed, or does not take the file.
    """
    flavors.load(flavor)
    with _polygraphy(flavor, f"a network from {onnx_path.name}"):
        _builder, network, _parser = _parse(onnx_path, flavor)
        return [
            Layer(layer.name, layer.type.name, layer.get_output(0).dtype.name) for layer in network if layer.num_outputs
        ]


def header_faults(engine_path: Path, flavor: Flavor) -> list[str] | None:
    """What TensorRT finds wrong with an engine's header; None where this version cannot tell. Needs no GPU."""
    trt = flavors.load(flavor)
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return None
    with _polygraphy(flavor, f"sense of {engine_path.name}"):
        from polygraphy.backend.trt import get_trt_logger

        _validity, diagnostics = trt.Runtime(get_trt_logger()).get_engine_validity(engine_path.read_bytes())
    # The other diagnostics are about the GPU at hand.
    known = trt.EngineInvalidityDiagnostics
    flags = (known.MALFORMED_ENGINE, known.VERSION_MISMATCH)
    return [f"its header says {flag.name}" for flag in flags if int(diagnostics) & int(flag)]


def _parse(onnx_path: Path, flavor: Flavor) -> tuple[Any, Any, Any]:
    from polygraphy.backend.trt import network_from_onnx_path

    # TensorRT 11 knows no other networks, and no flag for them.
    flag = hasattr(flavors.load(flavor).NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    builder, network, parser = network_from_onnx_path(str(onnx_path), strongly_typed=flag)
    return builder, network, parser


def _profiles(network: Any, profile: Profile | None) -> Any:
    if profile is None:
        return None
    from polygraphy.backend.trt import Profile as Shapes

    images = network.get_input(0)
    least, usual, most = ((size, *tuple(images.shape)[1:]) for size in profile)
    return [Shapes().add(images.name, min=least, opt=usual, max=most)]


def _config(target: EngineTarget, timings: Path | None, profiles: Any) -> Any:
    # So that the engine can say which layers it has and what they compute in.
    verbosity = flavors.load(target.flavor).ProfilingVerbosity.DETAILED
    if target.compute_capabilities is None:
        from polygraphy.backend.trt import CreateConfig

        return CreateConfig(profiling_verbosity=verbosity, load_timing_cache=str(timings), profiles=profiles)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    pairs = [capability_numbers(capability) for capability in target.compute_capabilities]
    return CreateConfigRTX(profiling_verbosity=verbosity, compute_capabilities=pairs, profiles=profiles)


def _describe(network: Any) -> NetworkRecord:
    layers: dict[str, Counter[str]] = defaultdict(Counter)
    for layer in network:
        if layer.num_outputs:
            layers[layer.type.name][layer.get_output(0).dtype.name] += 1
    return NetworkRecord(
        inputs=tuple(_tensor(network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(index)) for index in range(network.num_outputs)),
        layers={kind: dict(sorted(types.items())) for kind, types in sorted(layers.items())},
    )


def _tensor(tensor: Any) -> TensorRecord:
    return TensorRecord(name=tensor.name, shape=tuple(tensor.shape), dtype=tensor.dtype.name)


@contextlib.contextmanager
def _polygraphy(flavor: Flavor, making: str) -> Iterator[None]:
    """Lets polygraphy work with a flavor, silently, and turns its failure into one sentence.

    Polygraphy chooses the flavor for good when its TensorRT part is first imported.
    """
    try:
        from polygraphy import config
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise InputError(f"polygraphy is not installed; `pip install 'dcvit-tool[{flavor}]'`") from error
    global _chosen
    if _chosen not in (None, flavor):
        raise InputError(f"this process has built with {_chosen} already; use {flavor} in a process of its own")
    _chosen, config.USE_TENSORRT_RTX = flavor, flavor == "tensorrt-rtx"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), G_LOGGER.verbosity(G_LOGGER.ERROR):
        try:
            yield
        except PolygraphyException as error:
            raise InputError(f"{flavor} cannot make {making}: {_cause(printed.getvalue(), error)}") from error


_chosen: Flavor | None = None


def _cause(printed: str, error: Exception) -> str:
    """What the log says of the cause: the exception itself only says that there was one.

    The parser's own verdict on a node comes last, after where it was and how it got there. TensorRT-RTX complains of
    a missing GPU, too, whatever the cause is.
    """
    told = _errors(printed, but="catchCudaError") or _errors(printed)
    verdicts = [each for each in told if each.startswith("In node ")] or told
    more = f" (and {len(verdicts) - 1} more)" if len(verdicts) > 1 else ""
    return verdicts[0] + more if verdicts else " ".join(str(error).split())


def _errors(printed: str, but: str = "\n") -> list[str]:
    """The errors of a log, each on one line and once, without the lines that hold `but` and those that only locate."""
    entries = re.findall(r"^\[E\] +(.*(?:\n +.*)*)", printed, re.MULTILINE)
    told = (" ".join(" ".join(line for line in entry.splitlines() if but not in line).split()) for entry in entries)
    return [each for each in dict.fromkeys(told) if each and not each.startswith("ModelImporter.cpp")]
