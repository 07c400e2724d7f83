"""The demo keeps its promises: what `make demo` shows."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from dcvit.demo import MACS_REDUCTION, run_demo
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import create


def test_the_bundled_weights_fit_and_are_small() -> None:
    assert WEIGHTS.stat().st_size <= 2e6
    create(MODEL, MODEL_KWARGS).load_state_dict(load_file(WEIGHTS))


@pytest.mark.slow
def test_the_whole_path(tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo")
    assert result.passed
    accuracy = {name: found.top1 for name, found in result.accuracies.items()}
    assert accuracy["original"] > 97
    # At half the MACs the committed run loses nothing; 10 of the 500 test images are room for other machines' rounding.
    assert accuracy["compressed"] >= accuracy["original"] - 2
    # The exported files classify as PyTorch does; 1 image of 500 may sit on the fence.
    assert abs(accuracy["onnx fp32"] - accuracy["compressed"]) < 0.3
    assert abs(accuracy["onnx fp16"] - accuracy["compressed"]) < 0.3
    summary = result.compressed.summary
    assert MACS_REDUCTION <= summary.macs_reduction < MACS_REDUCTION + 0.02
    assert result.timed.rows[0].runs >= 5
    files = set(ModelFolder(tmp_path / "demo").manifest.files)
    assert {"model.b64.fp32.onnx", "model.b64.fp16.onnx", "bench.json", "report.html"} <= files
    page = result.reported.html.read_text()
    assert f"{accuracy['original']:.2f}\u00a0%" in page
    assert "has not been measured" not in page
    # How fast the two are is no matter for a test: beside other test processes the times of a few ms are noise.
    low, high = result.timed.rows[0].speedup_ci95
    assert 0 < low <= result.timed.rows[0].speedup <= high
