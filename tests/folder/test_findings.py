"""What verify and evaluate leave in a folder, and when it no longer counts."""

import errno
import json
import os
from pathlib import Path

import pytest

from dcvit.evaluation import evaluate
from dcvit.folder.findings import checks, evaluations, note_checks, note_evaluation
from dcvit.folder.model_folder import ModelFolder

ROW = {"data": "digits", "images": 500, "runtime": "torch", "precision": "fp32", "device": "CPU", "top1": 12.5}
CHECK = {"name": "model.b4.fp32.onnx: types", "passed": True, "max_abs_error": None, "tolerance": None, "detail": ""}


def test_evaluate_keeps_what_it_found_and_the_latest_counts(exported_copy: ModelFolder) -> None:
    for _ in range(2):
        found = evaluate(exported_copy.path, "digits", batch=4, runtime="onnxruntime")
    (row,) = evaluations(ModelFolder(exported_copy.path))
    assert (row["top1"], row["file"], row["original"]) == (found.top1, "model.b4.fp32.onnx", False)
    assert str(exported_copy.path) not in json.dumps(row)


def test_the_original_and_other_runtimes_stand_side_by_side(exported_copy: ModelFolder) -> None:
    note_evaluation(exported_copy, ROW, batch=64, file=None)
    note_evaluation(exported_copy, ROW, batch=64, file="model.safetensors")
    note_evaluation(exported_copy, ROW | {"precision": "fp16"}, batch=64, file="model.safetensors")
    assert [(row["original"], row["precision"]) for row in evaluations(ModelFolder(exported_copy.path))] == [
        (True, "fp32"), (False, "fp32"), (False, "fp16"),
    ]  # fmt: skip


def test_findings_of_a_file_that_is_another_now_do_not_count(exported_copy: ModelFolder) -> None:
    name = "model.b4.fp32.onnx"
    note_evaluation(exported_copy, ROW, batch=4, file=name)
    note_checks(exported_copy, {"passed": True, "folder": "somewhere", "data": None, "checks": [CHECK]})
    assert len(evaluations(exported_copy)) == len(checks(exported_copy)) == 1
    exported_copy.add(name, lambda path: path.write_bytes(b"another") and None, exported_copy.manifest.exports[name])
    assert evaluations(exported_copy) == checks(exported_copy) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_written_to_is_no_error(
    exported_copy: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    note_evaluation(exported_copy, ROW, batch=4, file=None)
    note_checks(exported_copy, {"passed": True, "folder": "somewhere", "data": None, "checks": [CHECK]})
    assert [record.message.split(" is not kept")[0] for record in caplog.records] == [
        "evaluations.json", "verify.json",
    ]  # fmt: skip
    assert os.strerror(number).lower() in caplog.text
    assert evaluations(ModelFolder(exported_copy.path)) == []


def test_two_evaluations_at_once_are_both_kept(exported_copy: ModelFolder) -> None:
    other = ModelFolder(exported_copy.path)
    note_evaluation(exported_copy, ROW, batch=64, file=None)
    note_evaluation(other, ROW | {"precision": "fp16"}, batch=64, file=None)
    assert [row["precision"] for row in evaluations(ModelFolder(exported_copy.path))] == ["fp32", "fp16"]
