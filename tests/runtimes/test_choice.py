"""Which file is taken where the user does not name one."""

import os
from pathlib import Path
from typing import Any

import pytest

from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import RUNTIMES
from dcvit.runtimes.choice import choose_variant
from dcvit.variant import Variant

FP32, FP16 = "model.b4.fp32.onnx", "model.b4.fp16.onnx"


def age(folder: ModelFolder, oldest_first: list[str]) -> None:
    for second, name in enumerate(oldest_first):
        os.utime(folder.path / name, (second, second))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("dcvit.runtimes.choice.say", lines.append)
    return lines


@pytest.mark.parametrize(
    ("there", "wishes", "taken"),
    [
        ([FP16], {}, Variant.of(4, "fp16")),  # the only one
        ([FP32, FP16], {}, Variant.of(4, "fp16")),  # the newest, and none is the usual one of batch 64
        ([FP16, FP32], {}, Variant.of(4, "fp32")),
        ([FP32, FP16], {"precision": "fp32"}, Variant.of(4, "fp32")),
        ([FP32, FP16], {"batch": 4}, Variant.of(4, "fp32")),  # the usual precision is there at this batch
        ([FP16], {"batch": 4}, Variant.of(4, "fp16")),
        ([FP16], {"batch": 8}, Variant.of(8, "fp32")),  # none fits: `Runtime.file` says how to make the usual one
        ([FP16], {"precision": "fp32"}, Variant.of(64, "fp32")),
        ([FP16], {"with_preprocessing": True}, Variant.of(64, with_preprocessing=True)),
    ],
)
def test_what_fits_or_else_the_usual_one(
    exported_copy: ModelFolder, said: list[str], there: list[str], wishes: dict[str, Any], taken: Variant
) -> None:
    exported_copy.remove({FP32, FP16} - set(there))
    age(exported_copy, there)
    assert choose_variant(RUNTIMES["onnxruntime"], exported_copy, **wishes) == taken
    silent = taken in (Variant.model_validate(wishes), Variant.model_validate({"precision": "fp32"} | wishes))
    assert [taken.onnx_name in line for line in said] == ([] if silent else [True])


def test_the_usual_one_is_taken_though_it_is_older(exported: Path, said: list[str]) -> None:
    folder = ModelFolder(exported)
    folder.manifest.exports[Variant().onnx_name] = folder.manifest.exports[FP32] | {"batch": 64}
    folder.manifest.files[Variant().onnx_name] = folder.manifest.files[FP32]
    assert choose_variant(RUNTIMES["onnxruntime"], folder) == Variant()
    assert said == []


def test_files_that_a_runtime_cannot_run_are_none(quantized: Path, said: list[str]) -> None:
    folder = ModelFolder(quantized)
    exports = folder.manifest.exports
    folder.manifest.exports = {name: exports[name] for name in exports if ".bf16." in name}
    assert choose_variant(RUNTIMES["onnxruntime"], folder) == Variant()  # it has no bf16
    folder.manifest.exports = {name: exports[name] for name in exports if ".int8." in name}
    assert choose_variant(RUNTIMES["onnxruntime"], folder) == Variant.of(4, "int8", with_preprocessing=True)
    assert "the only file" in said[0]


def test_another_precision_from_the_same_file(exported: Path, said: list[str]) -> None:
    """OpenVINO computes in bf16 from an fp32 file, here one of batch 4."""
    chosen = choose_variant(RUNTIMES["openvino"], ModelFolder(exported), precision="bf16")
    assert chosen == Variant.of(4, "bf16")
    assert FP32 in said[0]


def test_weights_are_there_in_any_case(exported: Path, said: list[str]) -> None:
    assert choose_variant(RUNTIMES["torch"], ModelFolder(exported)) == Variant()
    assert choose_variant(RUNTIMES["onnxruntime"], None, batch=2) == Variant.of(2)
    assert said == []
