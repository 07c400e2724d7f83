"""The models of `gpu.py`: the originals and what they are cut to, a pass of each in every runtime, and their times."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_clock import Call, Clock

RUNTIMES = {
    "eager": "PyTorch, launched from Python",
    "graph": "PyTorch in a CUDA graph",
    "compile": "torch.compile, launched from Python",
    "compile + graph": "torch.compile in a CUDA graph",
    "max-autotune + graph": "torch.compile(mode='max-autotune-no-cudagraphs') in a CUDA graph of ours",
    "onnxruntime-cuda": "ONNX Runtime CUDA, input and output bound to GPU memory",
    "onnxruntime-cuda-graph": "the same with ONNX Runtime's CUDA graph",
    "tensorrt": "a TensorRT engine of the same ONNX file, in a CUDA graph",
}
FROM_ONNX = ("onnxruntime-cuda", "onnxruntime-cuda-graph", "tensorrt")
COMPILED = ("compile", "max-autotune")
CUTS = (0.166, 0.33, 0.5)


@dataclass(frozen=True)
class Sizes:
    """What is measured: whole on a GPU, tiny in a trial."""

    families: dict[str, tuple[str, str | None]]
    kwargs: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (64, 1, 256)
    shapes: tuple[tuple[str, int], ...] = (("deit_small", 64), ("deit_base", 256))
    image: int = 224
    merge: str = "horizontal@4,vertical@8"
    presets: tuple[str, ...] = ()


FULL = Sizes({
    "DeiT-S": ("deit_small_patch16_224", "cait-small"),
    "DeiT-Ti": ("deit_tiny_patch16_224", "cait-tiny"),
    "DeiT-B": ("deit_base_patch16_224", None),
    "ViT-B": ("vit_base_patch16_224", None),
}, presets=("cait-small", "cait-tiny"))  # fmt: skip
TINY = Sizes(
    {"DeiT-S": ("deit_small_patch16_224", "cait-small")},
    {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2, "num_classes": 4},
    (1,), (("deit_small", 1),), 32, "horizontal@2,vertical@4",
)  # fmt: skip


class Models:
    """The originals and what they are cut to, made when they are first asked for."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, device
        self.image: int = sizes.kwargs.get("img_size", 224)
        self._plans: dict[str, dict[str, Any]] = {}
        self._exports = tempfile.TemporaryDirectory()

    def plans(self, family: str) -> dict[str, Any]:
        """The plan of each variant: the preset, if the family has one, and the cuts."""
        if family not in self._plans:
            from dcvit.compression import compress
            from dcvit.folder.model_folder import ModelFolder
            from dcvit.methods.cait.settings import CaitSettings
            from dcvit.methods.presets import presets

            name, preset = self.sizes.families[family]
            targets: dict[str, dict[str, Any]] = {f"DC-ViT -{cut:.1%}": {"macs_reduction": cut} for cut in CUTS}
            if preset is not None:
                aim = presets()[preset].macs_reduction
                targets = {
                    preset: {"merge": self.sizes.merge, "macs_reduction": aim, "settings": CaitSettings()}
                } | targets
            made = {}
            with tempfile.TemporaryDirectory() as place:
                for variant, target in targets.items():
                    out = Path(place) / str(len(made))
                    random_weights = {"recover": "none", "weights": "random", "model_kwargs": self.sizes.kwargs}
                    compress(name, out=out, **random_weights, **target)
                    made[variant] = ModelFolder(out).plan
            self._plans[family] = made
        return self._plans[family]

    def file(self, *name: object) -> Path:
        """Where an exported file of this name is kept for other runtimes, while the script runs."""
        return Path(self._exports.name) / ("-".join(map(str, name)).replace(" ", "_") + ".onnx")

    def variants(self, family: str) -> dict[str, nn.Module]:
        """The original and its cuts, in evaluation mode, on the CPU in fp32; with biases, as trained ones have."""
        from dcvit.model import stand_in

        return {"original": self.original(family)} | {
            variant: stand_in(plan) for variant, plan in self.plans(family).items()
        }

    def original(self, family: str) -> nn.Module:
        """The same of the original alone."""
        from dcvit.model import stand_in
        from dcvit.plan import CompressionPlan

        return stand_in(CompressionPlan(model=self.sizes.families[family][0], model_kwargs=self.sizes.kwargs))


def prepared(model: nn.Module, runtime: str, batch: int, image: int, clock: Clock, file: Path | None = None) -> Call:
    """One forward of a batch in a runtime, images where it reads them; an ONNX `file` is made if it is not there."""
    if runtime in FROM_ONNX:
        assert file is not None
        return onnx_pass(model, runtime, batch, image, clock, file)
    dtype = torch.float16 if clock.device == "cuda" else torch.float32
    model = model.to(clock.device, dtype)
    images = torch.randn(batch, 3, image, image, device=clock.device, dtype=dtype)
    run: Callable[..., Any] = model
    if runtime.startswith(COMPILED):
        mode = "max-autotune-no-cudagraphs" if runtime.startswith("max") else None
        run = torch.compile(model, dynamic=False, mode=mode)

    def forward() -> None:
        with torch.inference_mode():
            run(images)

    return clock.graph(forward) if runtime.endswith("graph") else forward


def onnx_pass(
    model: nn.Module, runtime: str, batch: int, image: int, clock: Clock, path: Path, precision: Any = "fp16"
) -> Call:
    """The same of an exported file; the ranges of int8 and fp8 are made up, for nobody looks at the logits."""
    from dcvit.data.transforms import preprocessing_of
    from dcvit.exporting.onnx import write_onnx
    from dcvit.exporting.quantization import Calibration
    from dcvit.runtimes.onnx_runtime import CPU, CUDA, OrtSession
    from dcvit.variant import Variant

    variant = Variant.of(batch, precision)
    variant = variant.of_engine() if runtime == "tensorrt" else variant
    if not path.exists():
        write_onnx(model, path, preprocessing_of(model, (3, image, image)), variant, {}, Calibration.made_up())
    if runtime == "tensorrt":
        return engine_pass(path)
    provider = CUDA if clock.device == "cuda" else CPU
    return OrtSession(path, provider, graph=runtime.endswith("graph") and provider == CUDA).execute


def engine_pass(path: Path) -> Call:
    """A pass of the engine that TensorRT builds of an ONNX file, here and for this GPU."""
    from dcvit.exporting.targets import engine_target
    from dcvit.exporting.tensorrt import build_engine
    from dcvit.runtimes import flavors
    from dcvit.runtimes.tensorrt import EngineSession

    engine, _, _ = build_engine(path, engine_target("tensorrt", None))
    path.with_suffix(".engine").write_bytes(engine)
    return EngineSession(path.with_suffix(".engine"), flavors.load("tensorrt")).execute


def unavailable(runtime: str, clock: Clock) -> str | None:
    """Why a runtime cannot be measured here."""
    if runtime in FROM_ONNX:
        from dcvit.runtimes import RUNTIMES as KNOWN

        on_cpu = clock.device == "cpu" and runtime != "tensorrt"
        return KNOWN["onnxruntime" if on_cpu else runtime].unavailable()
    return None


def measure_models(models: Models, family: str, runtime: str, batch: int, clock: Clock) -> dict[str, Any]:
    """Median ms of the original and its cuts in one runtime, interleaved, and how much faster each is."""
    from dcvit.cost import count_macs

    variants, image = models.variants(family), models.image
    macs = {name: count_macs(model, (3, image, image)).total for name, model in variants.items()}
    torch._dynamo.reset()
    kind = "engine" if runtime == "tensorrt" else "onnx"
    calls = {
        name: prepared(model, runtime, batch, image, clock, models.file(family, name, batch, kind))
        for name, model in variants.items()
    }
    times = clock.interleaved(calls)
    return {
        "runtime": RUNTIMES[runtime], "batch": batch, "precision": "fp16", "median_ms": times,
        "speedup": {name: times["original"] / times[name] for name in times},
        "macs_ratio": {name: macs["original"] / macs[name] for name in macs},
    }  # fmt: skip


def measure_quantized(models: Models, family: str, batch: int, clock: Clock) -> dict[str, Any]:
    """Median ms of TensorRT engines of the original in fp16, int8 and fp8, interleaved, and what the last two gain."""
    precisions = ("fp16", "int8", "fp8") if torch.cuda.get_device_capability() >= (8, 9) else ("fp16", "int8")
    calls = {
        each: onnx_pass(
            models.original(family),
            "tensorrt",
            batch,
            models.image,
            clock,
            models.file(family, "original", batch, "engine" if each == "fp16" else each),
            each,
        )
        for each in precisions
    }
    times = clock.interleaved(calls)
    return {
        "runtime": RUNTIMES["tensorrt"], "batch": batch, "median_ms": times,
        "speedup": {name: times["fp16"] / times[name] for name in times},
    }  # fmt: skip
