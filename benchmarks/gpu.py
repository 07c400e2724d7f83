"""All that is measured on a GPU, the most important first, in under eight minutes on an H100.

    PYTHONPATH=toolchain:kernels python benchmarks/gpu.py -o benchmarks/results/gpu.json
    PYTHONPATH=toolchain:kernels python benchmarks/gpu.py -o try.json --dry-run    # on a CPU: tiny, and no clock

The file is written after every row, and a second run goes on where the first stopped (`--max-seconds`, an error, a
machine that was taken away). A row that cannot be measured here stands in `skipped` with the reason. Random weights:
they change no time. fp16 throughout, but for the training step, which is bf16 autocast.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import kernels as operators
from gpu_clock import Call, Clock, NoClock

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
NEEDS = "This measures on an NVIDIA GPU that PyTorch can use, and there is none here; it would measure:"


@dataclass(frozen=True)
class Sizes:
    """What is measured: whole on a GPU, tiny in a trial."""

    families: dict[str, tuple[str, str | None]]
    kwargs: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (64, 1, 256)
    shapes: tuple[tuple[str, int], ...] = (("deit_small", 64), ("deit_base", 256))
    image: int = 224
    merge: str = "horizontal@4,vertical@8"


FULL = Sizes({
    "DeiT-S": ("deit_small_patch16_224", "cait-small"),
    "DeiT-Ti": ("deit_tiny_patch16_224", "cait-tiny"),
    "DeiT-B": ("deit_base_patch16_224", None),
    "ViT-B": ("vit_base_patch16_224", None),
})  # fmt: skip
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

    def plans(self, family: str) -> dict[str, Any]:
        """The plan of each variant: the preset, if the family has one, and the cuts."""
        if family not in self._plans:
            from dcvit.compression import compress
            from dcvit.folder.model_folder import ModelFolder
            from dcvit.methods.cait.presets import PRESETS
            from dcvit.methods.cait.settings import CaitSettings

            name, preset = self.sizes.families[family]
            targets: dict[str, dict[str, Any]] = {f"DC-ViT -{cut:.1%}": {"macs_reduction": cut} for cut in CUTS}
            if preset is not None:
                aim = PRESETS[preset].macs_reduction
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

    def variants(self, family: str) -> dict[str, nn.Module]:
        """The original and its cuts, in evaluation mode, on the CPU in fp32."""
        from dcvit.model import build, create

        plans = self.plans(family)
        original = create(self.sizes.families[family][0], self.sizes.kwargs)
        return {"original": original} | {variant: build(plan) for variant, plan in plans.items()}


def prepared(model: nn.Module, runtime: str, batch: int, image: int, clock: Clock) -> Call:
    """One forward of a batch in a runtime, images where it reads them."""
    from dcvit.data.transforms import preprocessing_of

    if runtime in FROM_ONNX:
        from dcvit.exporting.onnx import write_onnx
        from dcvit.runtimes.onnx_runtime import CPU, CUDA, OrtSession
        from dcvit.variant import Variant

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.onnx"
            write_onnx(model, path, preprocessing_of(model, (3, image, image)), Variant.of(batch, "fp16"), {})
            if runtime == "tensorrt":
                return engine_pass(path)
            provider = CUDA if clock.device == "cuda" else CPU
            return OrtSession(path, provider, graph=runtime.endswith("graph") and provider == CUDA).execute
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


def engine_pass(path: Path) -> Call:
    """A pass of the engine that TensorRT builds of an ONNX file, here and for this GPU."""
    from dcvit.exporting.tensorrt import build_engine, engine_target
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
    times = clock.interleaved({name: prepared(model, runtime, batch, image, clock) for name, model in variants.items()})
    return {
        "runtime": RUNTIMES[runtime], "batch": batch, "precision": "fp16", "median_ms": times,
        "speedup": {name: times["original"] / times[name] for name in times},
        "macs_ratio": {name: macs["original"] / macs[name] for name in macs},
    }  # fmt: skip


def check_kernels(shape: operators.Shape) -> dict[str, Any]:
    """Every kernel, forward and backward, against the reference in fp64; stops the run where one is wrong."""
    from dcvit_kernels import use_kernels

    worst = {}
    for name, job in operators.jobs(shape).items():
        upstream = None
        results = []
        for exact in (False, True):
            leaves = [(t.double() if exact else t).detach().requires_grad_() for t in job.inputs]
            with use_kernels(not exact):
                out = (job.plain if exact else job.kernel)(*leaves)
            outs = out if isinstance(out, tuple) else (out,)
            upstream = upstream or [torch.randn_like(one) for one in outs]
            grads = torch.autograd.grad(outs, leaves, [g.to(o.dtype) for g, o in zip(upstream, outs, strict=True)])
            results.append([*outs, *grads])
        # Rounding to fp16 is 5e-4 of a value; LayerNorm and sums over a batch add some more of it.
        errors = [float((a.double() - e).norm() / e.norm()) for a, e in zip(*results, strict=True)]
        worst[name] = max(errors)
        if not worst[name] < 5e-3:
            raise click.ClickException(f"{name} on {shape}: the kernel is {worst[name]:.2g} off, relatively")
    return {"relative_error": worst}


def measure_kernel(name: str, shape: operators.Shape, clock: Clock) -> dict[str, Any]:
    """Device and host us of one operator: kernel, eager, compiled; beside a copy of its bytes, and cuBLAS."""
    job = operators.jobs(shape)[name]
    source = torch.empty(job.moved_bytes // 2, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    row: dict[str, Any] = {"copy": {"device_us": clock.device_us(lambda: target.copy_(source))}}
    if job.multiply_adds:
        pairs = shape.batch * (shape.merged_tokens - operators.PREFIX)
        joined = operators.random(pairs, 2 * shape.channels, dtype=shape.dtype)
        call = operators.forward_only(torch.nn.functional.linear, [joined, *job.inputs[1:3]])
        row["cublas on joined pairs"] = {"device_us": clock.device_us(call)}
    for implementation in ("kernel", "eager", "compile"):
        torch._dynamo.reset()
        function = job.kernel if implementation == "kernel" else job.plain
        function = torch.compile(function, dynamic=False) if implementation == "compile" else function
        forward = operators.forward_only(function, job.inputs)
        both = operators.forward_backward(function, job.inputs)
        row[implementation] = {
            "device_us": clock.device_us(forward), "host_us": clock.host_us(forward),
            "forward_backward_host_us": clock.host_us(both),
            "forward_backward_us": clock.interleaved({"both": both})["both"] * 1e3,
        }  # fmt: skip
    return row


def measure_tiles(shape: operators.Shape, clock: Clock) -> dict[str, Any]:
    """Device us of the learned merge with every tile that fits, and which one is chosen."""
    from dcvit_kernels import linear, tiles

    x, weight, bias = (t.detach() for t in operators.jobs(shape)["linear"].inputs)
    settings = (*shape.grid, shape.axis == "vertical", operators.PREFIX)
    merged = linear.linear(x, weight, bias, *settings)
    hopper = clock.device == "cuda" and torch.cuda.get_device_capability()[0] == 9
    rows = shape.batch * (shape.merged_tokens - operators.PREFIX)
    chosen = linear.tile_for(x, weight, rows, shape.channels, hopper=hopper)
    found = {}
    for tile in tiles.candidates(2, 2, hopper) if clock.device == "cuda" else [chosen]:
        launch = linear.linear_launch(x, weight, settings, tile)
        found[str(tile)] = clock.device_us(lambda launch=launch: launch(x, weight, bias, merged))  # type: ignore[misc]
    return {"chosen": str(chosen), "device_us": found}


def measure_training(sizes: Sizes, clock: Clock) -> dict[str, Any]:
    """A training step of DeiT-S that merges, in ms: with kernels, without, and unmerged."""
    import dcvit_kernels

    calls: dict[str, Call] = {}
    for kind, enabled in (("none", False), ("mean", False), ("mean", True), ("linear", False), ("linear", True)):
        model = operators.merging_deit(kind, sizes.image).train()
        images = torch.randn(sizes.batches[0], 3, sizes.image, sizes.image, device=clock.device)
        step = operators.training_step(model, model, images)

        def run(step: Call = step, enabled: bool = enabled) -> None:
            with dcvit_kernels.use_kernels(enabled):
                step()

        calls[f"merge {kind}, kernels {'on' if enabled else 'off'}"] = run
    return {"median_ms": clock.interleaved(calls)}


def measure_profile(models: Models, family: str, clock: Clock) -> dict[str, Any]:
    """Where the device's time goes in one eager forward of the original and of its first cut, in us."""
    from torch.profiler import ProfilerActivity, profile

    found = {}
    on_gpu = clock.device == "cuda"
    for name, model in list(models.variants(family).items())[:2]:
        call = prepared(model, "eager", models.sizes.batches[0], models.image, clock)
        call()
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            call()
            if on_gpu:
                torch.cuda.synchronize()
        events = seen.key_averages()
        spent = {e.key: e.self_device_time_total if on_gpu else float(e.count) for e in events}
        found[name] = dict(sorted(spent.items(), key=lambda pair: -pair[1])[:20])
    return found


def rows(sizes: Sizes, models: Models, clock: Clock) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Everything, by name, the most important first."""
    shapes = [
        operators.Shape(model, batch, sizes.image, axis, torch.float16 if clock.device == "cuda" else torch.float32)
        for model, batch in sizes.shapes for axis in operators.AXES
    ]  # fmt: skip
    small = [
        operators.Shape("deit_small", min(2, sizes.batches[0]), sizes.image, axis, shapes[0].dtype)
        for axis in operators.AXES
    ]
    for shape in small:
        yield f"correct: {shape.axis}", partial(check_kernels, shape)

    def of_models(family: str, batch: int, runtimes: list[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for runtime in runtimes:
            name = f"models: {family}, batch {batch}, {runtime}"
            yield name, partial(measure_models, models, family, runtime, batch, clock)

    def of_operators(shape: operators.Shape) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        for operator in ("mean", "linear", "mean_norm", "linear_norm", "unmerge"):
            name = f"kernel: {operator}, {shape.model}, batch {shape.batch}, {shape.axis}"
            yield name, partial(measure_kernel, operator, shape, clock)

    first, *others = sizes.families
    slow = [name for name in RUNTIMES if name.startswith(COMPILED) or name == "tensorrt"]
    quick = [name for name in RUNTIMES if name not in slow]
    main, *rest = sizes.batches
    yield from of_models(
        first, main,
        ["graph", "compile + graph", "eager", "onnxruntime-cuda-graph", "tensorrt", "onnxruntime-cuda", "compile"],
    )  # fmt: skip
    for shape in shapes[::2]:
        yield from of_operators(shape)
        yield f"tiles: {shape.model}, batch {shape.batch}", partial(measure_tiles, shape, clock)
    yield "training step", partial(measure_training, sizes, clock)
    yield f"profile: {first}", partial(measure_profile, models, first, clock)
    for family in others:
        yield from of_models(family, main, ["graph", "compile + graph", "onnxruntime-cuda-graph", "tensorrt", "eager"])
    yield from of_models(first, main, ["max-autotune + graph"])
    for family in sizes.families:
        for batch in rest:
            yield from of_models(family, batch, quick)
    for shape in shapes[1::2]:
        yield from of_operators(shape)
    for family in sizes.families:
        for batch in rest:
            yield from of_models(family, batch, slow)


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, path)


def prepare_dry_run() -> None:
    """Shrink the operators' shapes and let interpreted kernels take CPU tensors."""
    import dcvit_kernels.merge

    operators.DEVICE, operators.CHANNELS = "cpu", {"deit_small": 16}
    operators.DEIT_SMALL = "deit_tiny_patch16_224"
    # The training step's model is wider, and the interpreter slow: that one takes the reference.
    dcvit_kernels.merge._takes_kernels = lambda x: x.shape[-1] <= 32
    torch.compile = lambda function, **_: function  # type: ignore[assignment,misc]


@click.command()
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON to write.")
@click.option("--max-seconds", default=470.0, show_default=True, help="After these no further row is begun.")
@click.option("--dry-run", is_flag=True, hidden=True, help="Tiny, on the CPU, without a clock.")
def main(out: Path, max_seconds: float, dry_run: bool) -> None:
    """Measure kernels and models on this machine's GPU, in every runtime; goes on with a file that is there."""
    sizes, clock = (TINY, NoClock()) if dry_run else (FULL, Clock())
    models = Models(sizes, clock.device)
    if dry_run:
        prepare_dry_run()
    elif not torch.cuda.is_available():
        click.echo(NEEDS, err=True)
        for name, _ in rows(sizes, models, clock):
            click.echo(f"  {name}", err=True)
        sys.exit(2)
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    result["machine"] = {"torch": torch.__version__, "device": "cpu"} if dry_run else operators.machine()
    result["skipped"], left, started = {}, [], time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in rows(sizes, models, clock):
        if name in result["rows"]:
            continue
        if time.monotonic() - started > max_seconds:
            left.append(name)
            continue
        begun = time.monotonic()
        why = None
        try:
            why = unavailable(name.rpartition(", ")[2], clock)
            found = measure() if why is None else None
        except click.ClickException:
            raise
        except Exception as error:  # a package that is missing, memory that does not suffice: the others still count
            if dry_run:
                raise
            why, found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", None
        if found is None:
            result["skipped"][name] = why
        else:
            result["rows"][name] = found | {"seconds": round(time.monotonic() - begun, 1)}
        write(out, result)
        click.echo(f"{time.monotonic() - started:6.1f} s  {name}{f': {why}' if why else ''}", err=True)
        if clock.device == "cuda":
            torch.cuda.empty_cache()
    if left:
        click.echo(f"{len(left)} rows were not begun in {max_seconds:.0f} s; run it again for them", err=True)


if __name__ == "__main__":
    main()
