"""`benchmarks/gpu.py` runs to its end without a GPU, tiny and without a clock, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATORS = {"mean", "linear", "mean_norm", "linear_norm", "unmerge"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "toolchain"), str(ROOT / "kernels")]
    # One thread: the tensors are tiny, and threads that wait for each other on a busy machine cost minutes.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": os.pathsep.join([*paths, *sys.path])}
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_row_is_measured_once(tmp_path: Path):
    out = tmp_path / "results" / "gpu.json"
    done = run("-o", str(out), "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert {name.split(",")[0].removeprefix("kernel: ") for name in rows if name.startswith("kernel")} == OPERATORS
    assert {"training step", "profile: DeiT-S", "correct: horizontal", "correct: vertical"} <= set(rows)
    assert list(rows)[:2] == ["correct: horizontal", "correct: vertical"]
    kernel = rows["kernel: linear, deit_small, batch 1, vertical"]
    assert {"copy", "cublas on joined pairs", "kernel", "eager", "compile"} <= set(kernel)
    models = rows["models: DeiT-S, batch 1, graph"]
    assert set(models["speedup"]) == {"original", "cait-small", "DC-ViT -16.6%", "DC-ViT -33.0%", "DC-ViT -50.0%"}
    assert models["macs_ratio"]["DC-ViT -50.0%"] == pytest.approx(2.0, abs=0.4)  # blocks are few, so a cut is coarse
    for name in ("eager", "compile", "compile + graph"):
        assert f"models: DeiT-S, batch 1, {name}" in rows
    for name in ("onnxruntime-cuda", "onnxruntime-cuda-graph", "tensorrt", "max-autotune + graph"):
        assert f"models: DeiT-S, batch 1, {name}" in rows | result["skipped"]

    kept = rows.pop("training step")
    rows["profile: DeiT-S"] = "kept"
    out.write_text(json.dumps(result))
    again = run("-o", str(out), "--dry-run")
    assert again.returncode == 0, again.stderr[-3000:]
    resumed = json.loads(out.read_text())["rows"]
    assert resumed["profile: DeiT-S"] == "kept"
    assert set(resumed["training step"]) == set(kept)


def test_without_a_gpu_it_says_what_it_would_measure(tmp_path: Path):
    done = run("-o", str(tmp_path / "gpu.json"))
    assert done.returncode == 2
    assert "there is none here" in done.stderr
    for part in ("correct: horizontal", "models: DeiT-Ti, batch 256, onnxruntime-cuda", "training step"):
        assert part in done.stderr
    assert not list(tmp_path.iterdir())
