#!/usr/bin/env python3
"""Times the probes of this folder on the device that a model is to run on; needs numpy, and ONNX Runtime or TensorRT.

    python time_probes.py -o times.json                       # ONNX Runtime, CPU
    python time_probes.py --provider CUDAExecutionProvider -o times.json
    python time_probes.py --tensorrt -o times.json            # builds an engine of each file, and runs it

`dcvit-tool latency MODEL --times times.json -o edge.json` makes a table of it, wherever the tool is installed; and
`dcvit-tool compress … --latency 5ms --latency-table edge.json` a model for this device. The file stands alone: it is
copied beside the probes, and imports nothing of the tool.
"""

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_ROUNDS, MOST_ROUNDS, WARM_UP = 7, 40, 3


def main() -> None:
    """Times every part of `probes.json`, and writes what each pass took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--provider", default="CPUExecutionProvider", help="Of ONNX Runtime.")
    parser.add_argument("--tensorrt", action="store_true", help="TensorRT instead.")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; by default one for each core.")
    parser.add_argument("--seconds", type=float, default=12.0, help="For each part.")
    given = parser.parse_args()
    folder = Path(__file__).resolve().parent
    probes: dict[str, Any] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    parts = []
    for part in probes["parts"]:
        files = [folder / probes["files"][digest] for digest in part]
        open_one: Callable[[Path], Callable[[], object]]
        if given.tensorrt:
            runtime, open_one = "tensorrt", _tensorrt
        else:
            runtime = "onnxruntime" if given.provider == "CPUExecutionProvider" else given.provider
            open_one = lambda file: _onnxruntime(file, given.provider, given.threads)  # noqa: E731
        times = in_turn([open_one(file) for file in files], given.seconds)
        parts.append({"probes": part, "times_ms": times})
        print(f"{len(parts)} of {len(probes['parts'])} parts, {len(times[0])} rounds")
    about = {name: probes[name] for name in ("design", "batch", "precision")}
    found = about | {"runtime": runtime, "threads": given.threads, "machine": _machine(), "parts": parts}
    given.out.write_text(json.dumps(found) + "\n", encoding="utf-8")


def in_turn(passes: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Milliseconds of each pass in every round; a round runs all of them once, in an order drawn for it."""
    order = random.Random(0)  # noqa: S311 (no secret)
    times: list[list[float]] = [[] for _ in passes]
    for _ in range(WARM_UP):
        for forward in passes:
            forward()
    started = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for index in order.sample(range(len(passes)), len(passes)):
            before = time.perf_counter()
            passes[index]()
            times[index].append(1000 * (time.perf_counter() - before))
    return times


def _onnxruntime(file: Path, provider: str, threads: int | None) -> Callable[[], object]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it reports its use to its maker
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    if provider not in session.get_providers():
        raise SystemExit(f"this onnxruntime cannot use {provider}")
    (images,) = session.get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    given = np.random.default_rng(0).standard_normal(images.shape).astype(kinds[images.type])
    # The images lie where it computes, before the clock starts.
    where = "cuda" if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else "cpu"
    binding = session.io_binding()
    binding.bind_ortvalue_input(images.name, onnxruntime.OrtValue.ortvalue_from_numpy(given, where, 0))
    binding.bind_output(session.get_outputs()[0].name, where)

    def forward() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return forward


def _tensorrt(file: Path) -> Callable[[], object]:
    from polygraphy.backend.trt import TrtRunner, engine_from_network, network_from_onnx_path

    runner = TrtRunner(engine_from_network(network_from_onnx_path(str(file), strongly_typed=True)))
    runner.activate()
    name, about = next(iter(runner.get_input_metadata().items()))
    images = np.random.default_rng(0).standard_normal(about.shape).astype(np.float32)
    return lambda: runner.infer({name: images}, copy_outputs_to_host=False)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), "")
    return name or platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
