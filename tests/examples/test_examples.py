"""Every script of `examples/` runs as it stands, from any folder, and prints what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

PRINTS = {
    "compare_sizes": [
        r"original +30\.08 M +408,010 +97\.60 %",
        r"r0\.3 +2[01]\.\d+ M .* 9\d\.\d+ %",
        r"r0\.6 +1[12]\.\d+ M .* 9\d\.\d+ %",
    ],
    "compress_and_export": [
        r"MACs per image: 30\.08 M, now 1[45]\.\d+ M",
        r"written: .*model\.b64\.fp16\.onnx",
        r"(\d+) of \1 checks hold",
        r"top-1: 9\d\.\d+ % of 500 test images, onnxruntime fp16",
    ],
    "own_training_loop": [r"top-1 as it was cut: 9\d\.\d %", r"top-1 after 60 steps: 9\d\.\d %"],
    "plan_by_hand": [r"original: 1\.254 G MACs", r"by hand: 0\.776 G MACs", r"logits: \(2, 1000\)", r'"horizontal"'],
    "serve_onnx": [r"classes: 1 7 6 5 2 2 9 1$"],
}
SHORT = {"plan_by_hand", "serve_onnx"}
"""What the others show, README's blocks and the demo show too."""


def test_every_script_is_tried() -> None:
    assert [script.stem for script in SCRIPTS] == sorted(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.thorough) for name in PRINTS]
)
def test_example(name: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "toolchain"), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",  # tests run side by side
    }
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for pattern in PRINTS[name]:
        assert re.search(pattern, ended.stdout.rstrip(), re.MULTILINE), f"{pattern} is not in:\n{ended.stdout}"
