"""The code that a report gives runs as it stands, and computes what the model does."""

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dcvit.data.transforms import evaluation_transform
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.reporting.facts import Facts
from dcvit.reporting.usage import Snippet, snippets


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    return Image.open(tmp_path / "image.jpg").convert("RGB")


def run(snippet: Snippet) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(snippet.code, snippet.title, "exec"), names)
    return names


def test_pytorch_and_onnx_runtime(full_copy: ModelFolder, image: Image.Image) -> None:
    with torch.inference_mode():
        expected = full_copy.load()(evaluation_transform(full_copy.manifest.preprocessing)(image)[None])
    pytorch, onnx_runtime, _ = snippets(Facts(full_copy))
    torch.testing.assert_close(run(pytorch)["logits"], expected)
    logits = torch.from_numpy(run(onnx_runtime)["logits"])
    assert logits.shape == (4, 10)
    torch.testing.assert_close(logits[:1], expected, atol=1e-3, rtol=1e-3)


def test_a_file_that_takes_pixels(full_copy: ModelFolder, image: Image.Image) -> None:
    export(full_copy, 4, "fp32", with_preprocessing=True)
    full_copy.remove([name for name in full_copy.manifest.exports if ".u8" not in name])
    code = snippets(Facts(full_copy))[1]
    assert "uint8" in code.code
    with torch.inference_mode():
        expected = full_copy.load()(evaluation_transform(full_copy.manifest.preprocessing)(image)[None])
    torch.testing.assert_close(torch.from_numpy(run(code)["logits"])[:1], expected, atol=1e-3, rtol=1e-3)


def test_no_code_for_a_file_that_the_cpu_cannot_run(full_copy: ModelFolder) -> None:
    record = full_copy.manifest.exports["model.b4.fp16.onnx"] | {"precision": "bf16"}
    full_copy.remove(list(full_copy.manifest.exports))
    full_copy.add("model.b4.bf16.onnx", lambda path: path.write_bytes(b"") and None, record)
    onnx_runtime = snippets(Facts(full_copy))[1]
    assert (onnx_runtime.code, onnx_runtime.missing) == ("", "dcvit-tool export small-vit")


def test_the_engine_s_code_names_what_the_engine_has(full_copy: ModelFolder) -> None:
    name = "model.b4.fp16.tensorrt-rtx.engine"
    tensor = {"name": "images", "shape": [4, 3, 32, 32], "dtype": "FLOAT"}
    record = {
        "kind": "engine", "batch": 4, "precision": "fp16", "onnx": "model.b4.fp16.onnx", "onnx_sha256": "0" * 64,
        "flavor": "tensorrt-rtx", "version": "1.5", "compute_capabilities": ["8.6", "8.9"], "tf32": False,
        "network": {"inputs": [tensor], "outputs": [tensor | {"name": "logits"}], "layers": {}},
    }  # fmt: skip
    full_copy.add(name, lambda path: path.write_bytes(b"engine") and None, record)
    engine = snippets(Facts(full_copy))[2]
    ast.parse(engine.code)
    assert "import tensorrt_rtx as trt" in engine.code
    assert f'open("small-vit/{name}", "rb")' in engine.code
    assert "torch.zeros((4, 3, 32, 32), dtype=torch.float32" in engine.code
    assert engine.note.endswith("tensorrt-rtx 1.5, on GPUs of compute capability 8.6, 8.9")
