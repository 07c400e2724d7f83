"""Time the merging kernels on a GPU against eager PyTorch and torch.compile, and what they do to a whole DeiT-S.

Every time is the median of `runs` launches by `triton.testing.do_bench`, which empties the L2 cache before each. Rates
count the bytes or multiply-adds that the job itself asks for (read x once, write the result once), so implementations
can be compared. Shares are of what this very GPU reaches: a 1 GiB copy, an 8192-cubed matrix product, and for the
learned merge also cuBLAS on an input whose pairs are concatenated already.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcvit_kernels
from dcvit_kernels import reference

DEVICE = "cuda"
CHANNELS = {"deit_tiny": 192, "deit_small": 384, "deit_base": 768}
BATCHES, IMAGES = (64, 256), (224, 512)
AXES: tuple[dcvit_kernels.Axis, ...] = ("horizontal", "vertical")
PREFIX = 1
EPS = 1e-6
DEIT_SMALL = "deit_small_patch16_224"
COPY_BYTES, MATMUL_SIDE = 2**30, 8192


@dataclass(frozen=True)
class Shape:
    """The tokens of one measurement."""

    model: str
    batch: int
    image: int
    axis: dcvit_kernels.Axis
    dtype: torch.dtype

    @property
    def grid(self) -> tuple[int, int]:
        return self.image // 16, self.image // 16

    @property
    def tokens(self) -> int:
        return PREFIX + self.grid[0] * self.grid[1]

    @property
    def merged_tokens(self) -> int:
        height, width = dcvit_kernels.merged_grid(self.grid, self.axis)
        return PREFIX + height * width

    @property
    def channels(self) -> int:
        return CHANNELS[self.model]


@dataclass(frozen=True)
class Job:
    """One operator on one shape: the kernel, the reference, their inputs, and what a forward moves and multiplies."""

    kernel: Callable[..., Any]
    plain: Callable[..., Any]
    inputs: list[Tensor]
    moved_bytes: int
    multiply_adds: int = 0


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


def plain_mean_norm(x: Tensor, weight: Tensor, bias: Tensor, *layout: Any) -> tuple[Tensor, Tensor]:
    merged = reference.merge_mean(x, *layout)
    return merged, reference.normalise(merged, weight, bias, EPS)


def plain_linear_norm(
    x: Tensor, w: Tensor, b: Tensor, weight: Tensor, bias: Tensor, *layout: Any
) -> tuple[Tensor, Tensor]:
    merged = reference.merge_linear(x, w, b, *layout)
    return merged, reference.normalise(merged, weight, bias, EPS)


def jobs(shape: Shape) -> dict[str, Job]:
    """Give every operator on one shape."""
    layout = (shape.grid, shape.axis, PREFIX)
    channels, dtype = shape.channels, shape.dtype
    x = random(shape.batch, shape.tokens, channels, dtype=dtype)
    merged = random(shape.batch, shape.merged_tokens, channels, dtype=dtype)
    projection = [random(channels, 2 * channels, dtype=dtype, scale=0.05), random(channels, dtype=dtype)]
    norm = [random(channels, dtype=dtype), random(channels, dtype=dtype)]
    once, result = x.nbytes + merged.nbytes, merged.nbytes
    products = shape.batch * (shape.merged_tokens - PREFIX) * 2 * channels * channels
    return {
        "mean": Job(
            lambda x: dcvit_kernels.merge_mean(x, *layout), lambda x: reference.merge_mean(x, *layout), [x], once
        ),
        "unmerge": Job(
            lambda x: dcvit_kernels.unmerge(x, *layout), lambda x: reference.unmerge(x, *layout), [merged], once
        ),
        "mean_norm": Job(
            lambda x, w, b: dcvit_kernels.merge_mean_norm(x, w, b, EPS, *layout),
            lambda *a: plain_mean_norm(*a, *layout),
            [x, *norm],
            once + result,
        ),
        "linear": Job(
            lambda *a: dcvit_kernels.merge_linear(*a, *layout),
            lambda *a: reference.merge_linear(*a, *layout),
            [x, *projection],
            once,
            products,
        ),
        "linear_norm": Job(
            lambda x, w, b, n, m: dcvit_kernels.merge_linear_norm(x, w, b, n, m, EPS, *layout),
            lambda *a: plain_linear_norm(*a, *layout),
            [x, *projection, *norm],
            once + result,
            products,
        ),
    }


def milliseconds(call: Callable[[], object]) -> tuple[float, int]:
    """Give the median time of a call and the number of runs it is the median of."""
    from triton.testing import do_bench

    times = do_bench(call, warmup=25, rep=200, return_mode="all")
    return statistics.median(times), len(times)


def forward_backward(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], object]:
    """Give a call that runs a function and its gradients, with the same upstream gradients each time."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    first = function(*leaves)
    outputs = first if isinstance(first, tuple) else (first,)
    upstream = [torch.randn_like(output) for output in outputs]

    def run() -> object:
        result = function(*leaves)
        return torch.autograd.grad(result if isinstance(result, tuple) else (result,), leaves, upstream)

    return run


def forward_only(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return function(*inputs)

    return run


def check_agreement(job: Job) -> None:
    """Stop at a wrong kernel, whose speed means nothing. Loose, for fp16 and bf16; the tests are the strict ones."""
    torch.testing.assert_close(job.kernel(*job.inputs), job.plain(*job.inputs), atol=5e-2, rtol=5e-2)


def measure_limits(dtype: torch.dtype) -> dict[str, float]:
    """Measure what this GPU reaches at best: a large copy in GB/s, a large matrix product in TFLOP/s."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy_ms, _ = milliseconds(lambda: target.copy_(source))
    a, b = (random(MATMUL_SIDE, MATMUL_SIDE, dtype=dtype) for _ in range(2))
    matmul_ms, _ = milliseconds(lambda: a @ b)
    return {"copy_gb_s": 2 * COPY_BYTES / copy_ms / 1e6, "matmul_tflop_s": 2 * MATMUL_SIDE**3 / matmul_ms / 1e9}


def measure_job(name: str, job: Job, shape: Shape, limits: dict[str, float]) -> list[dict[str, Any]]:
    """Time one operator, forward alone and with its gradients, in each implementation."""
    check_agreement(job)
    rows = []
    same_size = torch.empty(job.moved_bytes // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(same_size)
    copy_ms, _ = milliseconds(lambda: target.copy_(same_size))
    # A gradient of a product is two more products of its size; the other gradients move what their forward moved.
    for direction, prepare, factor in (("forward", forward_only, 1), ("forward+backward", forward_backward, 2)):
        eager_ms = None
        for implementation in ("eager", "compile", "kernel"):
            torch._dynamo.reset()
            function = job.kernel if implementation == "kernel" else job.plain
            if implementation == "compile":
                function = torch.compile(function, dynamic=False)
            median, runs = milliseconds(prepare(function, job.inputs))
            eager_ms = median if implementation == "eager" else eager_ms
            row = {
                "operator": name, "direction": direction, "implementation": implementation, **asdict(shape),
                "dtype": str(shape.dtype).removeprefix("torch."), "median_ms": median, "runs": runs,
                "speedup_over_eager": eager_ms / median,
            }  # fmt: skip
            if job.multiply_adds:
                row["tflop_s"] = 2 * job.multiply_adds * (2 * factor - 1) / median / 1e9
                row["share_of_matmul"] = row["tflop_s"] / limits["matmul_tflop_s"]
            else:
                row["gb_s"] = job.moved_bytes * factor / median / 1e6
                row["share_of_copy"] = row["gb_s"] / limits["copy_gb_s"]
                # Small tensors are bound by the launch, a copy of them too: so this one says how good the kernel is.
                row["share_of_copy_of_this_size"] = copy_ms * factor / median
            rows.append(row)
    if job.multiply_adds:
        pairs = random(shape.batch * (shape.merged_tokens - PREFIX), 2 * shape.channels, dtype=shape.dtype)
        cublas_ms, _ = milliseconds(forward_only(F.linear, [pairs, *job.inputs[1:3]]))
        for row in rows:
            if row["direction"] == "forward":
                row["share_of_cublas_on_concatenated"] = cublas_ms / row["median_ms"]
    return rows


class Merge(nn.Module):
    """A forward hook that merges what a block gives."""

    def __init__(self, channels: int, kind: str, grid: tuple[int, int], axis: dcvit_kernels.Axis) -> None:
        super().__init__()
        self.grid, self.axis = grid, axis
        self.projection = nn.Linear(2 * channels, channels) if kind == "linear" else None
        if self.projection is not None:
            half = torch.eye(channels) / 2
            self.projection.load_state_dict({"weight": torch.cat([half, half], dim=1), "bias": torch.zeros(channels)})

    def forward(self, x: Tensor) -> Tensor:
        if self.projection is None:
            return dcvit_kernels.merge_mean(x, self.grid, self.axis, PREFIX)
        weight, bias = self.projection.weight, self.projection.bias
        return dcvit_kernels.merge_linear(x, weight, bias, self.grid, self.axis, PREFIX)


def merging_deit(kind: str, image: int) -> nn.Module:
    """DeiT-S that merges horizontally after 4 blocks and vertically after 8; `kind` none leaves it as it is."""
    model = timm.create_model(DEIT_SMALL, pretrained=False, img_size=image)
    grid: tuple[int, int] = model.patch_embed.grid_size
    for blocks_run, axis in ((4, "horizontal"), (8, "vertical")) if kind != "none" else ():
        block = model.blocks[blocks_run - 1]
        block.merge = Merge(
            model.embed_dim, kind, grid, axis
        )  # registered, so that it is trained and moved with the model
        block.register_forward_hook(lambda block, _, out: block.merge(out))
        grid = dcvit_kernels.merged_grid(grid, axis)
    return model.to(DEVICE)


def measure_model(kind: str, kernels: bool, compiled: bool, batch: int, image: int) -> list[dict[str, Any]]:
    """Time a whole DeiT-S: a forward in fp16, and a training step (SGD) under bf16 autocast."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    rows = []
    for task in ("forward", "training step"):
        model = merging_deit(kind, image)
        images = torch.randn(batch, 3, image, image, device=DEVICE)
        run = torch.compile(model, dynamic=False) if compiled else model
        if task == "forward":
            model.eval().half()
            call = forward_only(run, [images.half()])
        else:
            call = training_step(model.train(), run, images)
        with dcvit_kernels.use_kernels(kernels):
            median, runs = milliseconds(call)
        rows.append({
            "model": DEIT_SMALL, "task": task, "merge": kind, "kernels": kernels, "compiled": compiled, "batch": batch,
            "image": image, "precision": "float16" if task == "forward" else "bfloat16 autocast", "median_ms": median,
            "runs": runs,
        })  # fmt: skip
    return rows


def training_step(model: nn.Module, run: Callable[..., Any], images: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    labels = torch.zeros(len(images), dtype=torch.long, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = F.cross_entropy(run(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def machine() -> dict[str, str]:
    """Say what was measured on."""
    import triton

    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": (driver.stdout.splitlines() or ["unknown"])[0].strip(),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
    }


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Lay rows out in columns."""
    lines = [columns] + [
        [f"{row[c]:.3g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns] for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON to write.")
@click.option("--quick", is_flag=True, help="DeiT-S at 224 and batch 64 in fp16 only.")
def main(output: Path, quick: bool) -> None:
    """Measure the merging kernels on this machine's GPU; tables on stdout, everything in the JSON file."""
    if not torch.cuda.is_available():
        click.echo("These benchmarks need an NVIDIA GPU that PyTorch can use, and there is none here.", err=True)
        sys.exit(2)
    models = ["deit_small"] if quick else list(CHANNELS)
    batches, images = (BATCHES[:1], IMAGES[:1]) if quick else (BATCHES, IMAGES)
    dtypes = [torch.float16] if quick else [torch.float16, torch.bfloat16, torch.float32]
    result: dict[str, Any] = {"machine": machine(), "limits": {}, "operators": [], "models": []}
    for dtype in dtypes:
        limits = result["limits"][str(dtype).removeprefix("torch.")] = measure_limits(dtype)
        for model, batch, image, axis in product(models, batches, images, AXES):
            shape = Shape(model, batch, image, axis, dtype)
            for name in jobs(shape):
                # Made anew for each operator, so that only one set of tensors is alive.
                result["operators"] += measure_job(name, jobs(shape)[name], shape, limits)
                click.echo(f"{name} {shape}: done", err=True)
    for batch, image in [(b, i) for b, i in product(batches, images) if (b, i) != (256, 512)]:  # does not fit 80 GB
        for compiled in (False, True):
            variants = [("none", False), *product(("mean", "linear"), (False, True))]
            for kind, kernels in variants:
                result["models"] += measure_model(kind, kernels, compiled, batch, image)
                click.echo(f"{DEIT_SMALL} at {image}, batch {batch}, merge {kind}: done", err=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(
        table(result["operators"], [
            "operator", "direction", "implementation", "model", "batch", "image", "axis", "dtype", "median_ms", "runs",
            "speedup_over_eager", "gb_s", "share_of_copy", "share_of_copy_of_this_size", "tflop_s", "share_of_matmul",
            "share_of_cublas_on_concatenated",
        ])
    )  # fmt: skip
    click.echo(
        table(result["models"], [
            "model", "task", "merge", "kernels", "compiled", "batch", "image", "precision", "median_ms", "runs",
        ])
    )  # fmt: skip


if __name__ == "__main__":
    main()
