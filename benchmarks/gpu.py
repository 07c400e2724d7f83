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
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import kernels as operators
from gpu_clock import Call, Clock, NoClock
from gpu_models import (
    FULL,
    RUNTIMES,
    TINY,
    Models,
    Sizes,
    measure_models,
    measure_quantized,
    prepared,
    unavailable,
)

NEEDS = "This measures on an NVIDIA GPU that PyTorch can use, and there is none here; it would measure:"


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


def measure_preset(base: str, runtime: str) -> dict[str, Any]:
    """A preset for this GPU, by a table of its latencies: `presets.py --from` keeps it."""
    import presets

    return presets.measure(base, runtime, "fp16", 64)


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
    tuned = "max-autotune + graph"  # takes minutes
    slow = [name for name in RUNTIMES if name.startswith("compile") or name == "tensorrt"]
    quick = [name for name in RUNTIMES if name not in (*slow, tuned)]
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
    yield f"quantized: {first}, batch {main}, tensorrt", partial(measure_quantized, models, first, main, clock)
    for family in sizes.families:
        for batch in rest:
            yield from of_models(family, batch, quick)
    for shape in shapes[1::2]:
        yield from of_operators(shape)
    for base in sizes.presets:
        for runtime in ("torch-graph", "onnxruntime-cuda-graph"):
            yield f"preset: {base}, {runtime}", partial(measure_preset, base, runtime)
    for family in sizes.families:
        for batch in rest:
            yield from of_models(family, batch, slow)
    yield from of_models(first, main, [tuned])


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
