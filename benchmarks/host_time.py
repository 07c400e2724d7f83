"""Host time of every merging operator: from the Python call to the launch, which is stubbed. Needs no GPU.

    python benchmarks/host_time.py -o after.json                     # of this checkout
    python benchmarks/host_time.py --tree ../before -o before.json   # of another one, with the same packages
    python benchmarks/host_time.py --against ../before -o both.json  # both, in turns

Tensors are on the CPU, and Triton has a driver that knows no device: kernels are compiled for compute capability 9.0 as
on a GPU, and its launcher does nothing. So everything that Python and PyTorch do before the driver is called is timed,
with the CPU's allocator in place of CUDA's; what the driver does then (3 to 5 us) is not. The tensors are tiny, since
the time does not depend on their size, but for eager PyTorch, which is timed beside it and computes.
Medians of single calls in us; the rounds of all operators, and of both checkouts, are interleaved.
"""

# What stands in for something takes its arguments, needed or not.
# ruff: noqa: ARG005

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ROUNDS, CALLS = 40, 25
TURNS = 4


def stub_the_device() -> None:
    """Give Triton a driver without a device, and let the kernels take CPU tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import autotuner, driver

    class Utils:
        def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024

        def unload_module(self, *_: Any) -> None:
            pass

        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132}

    class Driver:
        utils = Utils()

        def __init__(self) -> None:
            self.get_current_device: Callable[[], int] = lambda: -1
            self.get_current_stream: Callable[[int], int] = lambda device: 0
            self.get_current_target = lambda: GPUTarget("cuda", 90, 32)
            # A launcher is called with the arguments; what it does with them is the driver's time.
            self.launcher_cls = lambda source, metadata: lambda *arguments: None
            self.get_benchmarker = lambda: lambda *_, **__: [1.0, 1.0, 1.0]

        def is_active(self) -> bool:
            return True

    driver.set_active(Driver())
    if not triton.knobs.runtime.interpret:
        autotuner.Autotuner._bench = lambda *_, **__: [1.0, 1.0, 1.0]

    import dcvit_kernels.merge
    from dcvit_kernels import geometry, linear, linear_backward, norm, pairs

    class OnDevice:
        """Entering a device that is current already."""

        def __init__(self, x: Any) -> None:
            self.device = x.get_device()

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    dcvit_kernels.merge._takes_kernels = lambda x: True
    for module in (geometry, pairs, norm, linear, linear_backward):
        for name, replacement in (("on_device", OnDevice), ("check_device", lambda x: None)):
            if hasattr(module, name):
                setattr(module, name, replacement)


def operators() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Each operator as a function of its tensors, and those."""
    import torch

    import dcvit_kernels as kernels

    layout = ((4, 4), "horizontal", 1)

    def make(*shape: int) -> Any:
        return torch.randn(shape, dtype=torch.float32).requires_grad_()

    x, merged, projection, norm = make(2, 17, 32), make(2, 9, 32), [make(32, 64), make(32)], [make(32), make(32)]
    return {
        "mean": (lambda x: kernels.merge_mean(x, *layout), [x]),
        "unmerge": (lambda x: kernels.unmerge(x, *layout), [merged]),
        "mean + norm": (lambda x, w, b: kernels.merge_mean_norm(x, w, b, 1e-6, *layout), [x, *norm]),
        "linear": (lambda *a: kernels.merge_linear(*a, *layout), [x, *projection]),
        "linear + norm": (
            lambda x, w, b, n, m: kernels.merge_linear_norm(x, w, b, n, m, 1e-6, *layout), [x, *projection, *norm],
        ),
    }  # fmt: skip


def calls(function: Callable[..., Any], tensors: list[Any]) -> dict[str, Callable[[], Any]]:
    """A call that needs no gradient, one that prepares it, and one with it."""
    import torch

    out = function(*tensors)
    grads = [torch.ones_like(one) for one in (out if isinstance(out, tuple) else (out,))]

    def inference() -> None:
        with torch.no_grad():
            function(*tensors)

    def both() -> None:
        results = function(*tensors)
        torch.autograd.grad(results if isinstance(results, tuple) else (results,), tensors, grads)

    return {"inference": inference, "forward": lambda: function(*tensors), "forward + backward": both}


def measure() -> dict[str, dict[str, float]]:
    """Medians in us by operator and kind of call, with the kernels and ("eager: ...") without."""
    import torch

    import dcvit_kernels as kernels

    torch.set_num_threads(1)
    stub_the_device()
    jobs: dict[tuple[str, str], tuple[bool, Callable[[], Any]]] = {}
    for enabled in (True, False):
        with kernels.use_kernels(enabled):
            for name, (function, tensors) in operators().items():
                for kind, call in calls(function, tensors).items():
                    call()
                    jobs[name, kind if enabled else f"eager: {kind}"] = (enabled, call)
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(ROUNDS):
        for job, (enabled, call) in jobs.items():
            with kernels.use_kernels(enabled):
                call()
                for _ in range(CALLS):
                    start = time.perf_counter_ns()
                    call()
                    times[job].append((time.perf_counter_ns() - start) / 1e3)
    found: dict[str, dict[str, float]] = {}
    for (name, kind), values in times.items():
        found.setdefault(name, {})[kind] = round(statistics.median(values), 2)
    return found


def measure_in(tree: Path) -> dict[str, dict[str, float]]:
    """The same of another checkout, in a process of its own."""
    paths = os.pathsep.join(str(tree / part) for part in ("toolchain", "kernels"))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, __file__, "--here"], env=environment, capture_output=True, text=True, cwd=tree
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def middle(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median over turns, each a process."""
    return {
        name: {kind: round(statistics.median(turn[name][kind] for turn in turns), 1) for kind in kinds}
        for name, kinds in turns[0].items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=HERE, help="the checkout to measure")
    parser.add_argument("--against", type=Path, help="a checkout to measure before it, in turns")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure()))
        return
    import torch
    import triton

    trees = {"before": asked.against, "after": asked.tree} if asked.against else {"after": asked.tree}
    turns: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in trees}
    for _ in range(TURNS):
        for name, tree in trees.items():
            turns[name].append(measure_in(tree.resolve()))
    result = {
        "unit": "us", "calls": TURNS * ROUNDS * CALLS, "torch": torch.__version__, "triton": triton.__version__,
        "python": platform.python_version(), "load": os.getloadavg(),
        **{name: middle(values) for name, values in turns.items()},
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
