"""The benchmark script: refused without a GPU, and run through at toy sizes with the GPU's parts replaced."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_one_sentence_and_status_2(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(script.main, ["-o", str(tmp_path / "kernels.json")])
    assert result.exit_code == 2
    assert result.stderr.strip().count(".") == 1
    assert "GPU" in result.stderr
    assert not list(tmp_path.iterdir())


def test_all_measurements_run_and_are_recorded(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for name, value in {
        "DEVICE": "cpu", "CHANNELS": {"deit_small": 8}, "BATCHES": (1,), "IMAGES": (48,), "COPY_BYTES": 64,
        "MATMUL_SIDE": 8, "DEIT_SMALL": "deit_tiny_patch16_224", "milliseconds": lambda call: (call(), (2.0, 1))[1],
    }.items():  # fmt: skip
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": ""}))
    output = tmp_path / "results" / "kernels.json"
    result = CliRunner().invoke(script.main, ["-o", str(output), "--quick"], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads(output.read_text())
    # 5 operators, 2 axes, 2 directions, 3 implementations; 5 models, compiled or not, 2 tasks.
    assert (len(record["operators"]), len(record["models"])) == (60, 20)
    assert all(row["median_ms"] == 2.0 and row["runs"] == 1 for row in record["operators"] + record["models"])
    mean = next(row for row in record["operators"] if row["operator"] == "mean" and row["axis"] == "horizontal")
    # 10 tokens of 8 fp16 channels read, 7 written, in 2 ms.
    assert mean["gb_s"] == pytest.approx((10 + 7) * 8 * 2 / 2e-3 / 1e9)
    linear = next(row for row in record["operators"] if row["operator"] == "linear" and row["axis"] == "vertical")
    assert linear["tflop_s"] == pytest.approx(2 * 6 * 16 * 8 / 2e-3 / 1e12)
    assert linear["share_of_cublas_on_concatenated"] == 1.0
