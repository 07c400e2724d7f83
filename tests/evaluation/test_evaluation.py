"""Accuracy: the right images are counted, through every runtime."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dcvit.data import decode, evaluation_transform, open_source
from dcvit.demo import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.errors import InputError
from dcvit.evaluation import evaluate
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build
from dcvit.plan import CompressionPlan


def test_a_trained_model_is_right_on_its_test_images_in_every_runtime() -> None:
    results = [
        evaluate(MODEL, "digits", runtime=runtime, model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS, batch=32)
        for runtime in ("torch", "onnxruntime")
    ]
    for result in results:
        assert 95 < result.top1 <= result.top5 <= 100
        assert (result.images, result.corrupt) == (500, 0)
    assert results[0].top1 == results[1].top1
    assert results[0].top5 == results[1].top5


def test_counts_are_those_of_a_loop_by_hand(exported: Path, image_folder: Callable[..., Path]) -> None:
    data = image_folder(classes=10, each=3)
    folder = ModelFolder(exported)
    model, right1, right5 = folder.load(), 0, 0
    source, transform = open_source(data, "test"), evaluation_transform(folder.manifest.preprocessing)
    with torch.no_grad():
        for index in range(len(source)):
            encoded, label = source.read(index)
            logits = model(transform(decode(encoded, 3))[None])[0]
            place = int((logits > logits[label]).sum())
            right1 += place == 0
            right5 += place < 5
    assert 0 < right5 < 30
    for runtime in ("torch", "onnxruntime"):  # 30 images in batches of 4: the last one is filled up
        result = evaluate(exported, data, runtime=runtime, batch=4)
        assert result.images == 30
        assert result.top1 == pytest.approx(100 * right1 / 30)
        assert result.top5 == pytest.approx(100 * right5 / 30)
    assert result.to_json()["model"] == str(exported)


def test_a_module_in_memory_and_a_corrupt_image(tiny_plan: CompressionPlan, image_folder: Callable[..., Path]) -> None:
    data = image_folder(classes=10, each=2)
    (data / "class3" / "1.png").write_bytes(b"not an image")
    result = evaluate(build(tiny_plan), data)
    assert (result.images, result.corrupt) == (19, 1)
    assert any("1 images were skipped" in line for line in result.lines())


def test_data_that_does_not_fit_is_refused(exported: Path, image_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 classes and the model 10"):
        evaluate(exported, image_folder(classes=2))
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    with pytest.raises(InputError, match="have no labels; evaluate needs one folder for each class"):
        evaluate(exported, flat)


def test_settings_that_do_not_fit_are_refused(exported: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.b64\.int8\.onnx; make it with .*--precision int8"):
        evaluate(exported, "digits", runtime="onnxruntime", precision="int8")
    with pytest.raises(InputError, match="leave out --checkpoint"):
        evaluate(exported, "digits", checkpoint=WEIGHTS)
    with pytest.raises(InputError, match="no runtime 'caffe'"):
        evaluate(exported, "digits", runtime="caffe")
    with pytest.raises(InputError, match="at least one image"):
        evaluate(exported, "digits", batch=0)
