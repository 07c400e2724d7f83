"""A precision that loses too much is refused with the figures, and its file does not stay."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dcvit.data import CorruptImages, ImageSource, batches
from dcvit.demo import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.errors import CheckFailedError, InputError
from dcvit.exporting import export
from dcvit.exporting.quantization import Calibration
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.plan import CompressionPlan
from dcvit.runtimes.onnx_runtime import OrtSession
from dcvit.subject import open_subject
from dcvit.verification import verify


@pytest.fixture
def folder(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, tiny_plan: CompressionPlan
) -> ModelFolder:
    return make_folder(tmp_path / "model", tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"depth": 2}))


def counted(folder: ModelFolder, path: Path, source: ImageSource) -> tuple[float, float, float]:
    """top-1 of the file and of PyTorch, and how often they agree, in percent, counted by other means."""
    model, session = folder.load(), OrtSession(path)
    ours, theirs, labels = [], [], []
    for batch in batches(source, folder.manifest.preprocessing, 7, CorruptImages()):
        ours.append(session.infer(batch.images).argmax(1).numpy())
        with torch.no_grad():
            theirs.append(model(batch.images).argmax(1).numpy())
        labels.append(batch.labels.numpy())
    file, fp32, right = (np.concatenate(part) for part in (ours, theirs, labels))
    return 100 * (file == right).mean(), 100 * (fp32 == right).mean(), 100 * (file == fp32).mean()


def test_figures_are_those_of_the_file_and_go_into_the_manifest(
    folder: ModelFolder, digits: ImageSource, random_pixels: Calibration
) -> None:
    result = export(folder, 4, "int8", data=random_pixels, evaluate=digits, max_drop=100)
    record = ModelFolder(folder.path).manifest.exports["model.b4.int8.onnx"]["evaluation"]
    expected = counted(folder, result.onnx.path, digits)
    assert (record["top1"], record["top1_fp32"], record["agreement"]) == pytest.approx(expected)
    assert (record["images"], record["runtime"], record["max_drop"]) == (60, "onnxruntime", 100)
    assert result.to_json()["evaluation"]["drop"] == pytest.approx(expected[1] - expected[0])


def test_without_labels_it_is_the_share_of_changed_classes(
    fragile: ModelFolder, blind: Calibration, image_folder: Callable[..., Path]
) -> None:
    data = image_folder(classes=2, each=20)  # two classes, and the model has ten
    before = sorted(path.name for path in fragile.path.iterdir())
    with pytest.raises(
        CheckFailedError, match=r"int8\.onnx loses \d+\.\d+ % of the classes .*--max-drop 5: .*40 images"
    ):
        export(fragile, 4, "int8", data=blind, evaluate=data, max_drop=5)
    assert sorted(path.name for path in fragile.path.iterdir()) == before
    evaluation = export(fragile, 4, "int8", data=blind, evaluate=data, max_drop=100).record.evaluation
    assert (evaluation.top1, evaluation.top1_fp32) == (None, None)
    assert evaluation.drop == 100 - evaluation.agreement > 5
    # Now it stands in the folder, and goes with the next that is refused.
    with pytest.raises(CheckFailedError, match="it is not kept"):
        export(fragile, 4, "int8", data=blind, evaluate=data, max_drop=5)
    left = ModelFolder(fragile.path)
    assert left.manifest.exports == {}
    assert sorted(path.name for path in fragile.path.iterdir()) == before


def test_a_trained_model_in_int8_is_as_right_as_in_fp32() -> None:
    subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS)
    with temporary_folder(subject.model, subject.plan, subject.preprocessing) as folder:
        # 192 images of the training split calibrate it, 500 of the test split judge it.
        record = export(folder, 64, "int8", data="digits", evaluate="digits").record
        assert record.evaluation.top1_fp32 > 95
        assert record.evaluation.drop <= 1
        assert record.evaluation.agreement > 98
        assert record.evaluation.images == 500
        assert record.quantization.calibration["images"] == 192
        result = verify(folder, "digits")
        assert result.passed, [check for check in result.checks if not check.passed]


def test_fp16_loses_nothing(folder: ModelFolder, image_folder: Callable[..., Path]) -> None:
    evaluation = export(folder, 4, "fp16", evaluate=image_folder(classes=2, each=8)).record.evaluation
    assert evaluation.max_drop == 1
    assert evaluation.agreement == 100


def test_bf16_is_judged_by_what_computes_in_it(folder: ModelFolder, image_folder: Callable[..., Path]) -> None:
    evaluation = export(folder, 4, "bf16", evaluate=image_folder(classes=2, each=8), max_drop=50).record.evaluation
    assert evaluation.runtime == ("onnxruntime-tensorrt" if torch.cuda.is_available() else "torch")
    assert evaluation.agreement > 50


def test_images_are_looked_for_before_anything_is_written(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing at"):
        export(folder, 4, evaluate=tmp_path / "nowhere")
    assert not list(folder.path.glob("*.onnx"))


@pytest.fixture
def digits() -> ImageSource:
    """60 images with labels of ten classes."""
    from dcvit.data import DigitsSource

    source = DigitsSource("test")
    source._images, source._labels = source._images[:60], source._labels[:60]
    return source
