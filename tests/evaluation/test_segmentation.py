"""mIoU, and what else works on the folder of a segmentation model because it knows its task."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dcvit.data import decode, evaluation_transform, open_source
from dcvit.data.masks import with_masks
from dcvit.errors import InputError
from dcvit.evaluation import evaluate
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import flavors
from dcvit.verification import verify


def test_miou_is_that_of_a_loop_by_hand(segmentation_folder: ModelFolder, pair_folder: Path) -> None:
    model, source = segmentation_folder.load(), with_masks(open_source(pair_folder, "test"))
    transform = evaluation_transform(segmentation_folder.manifest.preprocessing)
    found, truth = [], []
    for index in range(len(source)):
        image = decode(source.read(index)[0], 3)
        with torch.no_grad():
            found.append(model(transform(image)[None])[0].argmax(0).numpy())
        mask = source.mask(index)
        rows, columns = ((np.arange(n) + 0.5) * have // n for n, have in zip((40, 56), mask.shape, strict=True))
        truth.append(mask[rows.astype(int)][:, columns.astype(int)])
    predicted, wanted = np.stack(found), np.stack(truth)
    counted = wanted != 255
    iou = []
    for label in range(4):
        ours, theirs = (predicted == label) & counted, wanted == label
        iou.append(100 * (ours & theirs).sum() / (ours | theirs).sum())
    result = evaluate(segmentation_folder.path, pair_folder, batch=4)
    assert result.iou == pytest.approx(iou)
    assert result.miou == pytest.approx(np.mean(iou))
    assert result.figures["pixel_accuracy"] == pytest.approx(100 * (predicted == wanted)[counted].mean())
    assert 0 < result.miou < 60
    assert (result.to_json()["miou"], result.to_json()["images"]) == (result.miou, 6)
    assert any("mIoU" in line for line in result.lines())


def test_data_without_masks_is_refused(segmentation_folder: ModelFolder, pair_folder: Path) -> None:
    with pytest.raises(InputError, match="digits has no masks"):
        evaluate(segmentation_folder.path, "digits")
    with pytest.raises(InputError, match="holds class 5, and the model knows 4"):
        evaluate(segmentation_folder.path, "shapes")


@pytest.mark.trt
def test_the_exported_files_hold_no_surprises_and_agree(segmentation_folder: ModelFolder, pair_folder: Path) -> None:
    """Static merging is undone by Expand and Reshape, and maps are enlarged by MatMul, whichever the head."""
    engine = flavors.installed("tensorrt-rtx")
    path = segmentation_folder.path
    made = export(path, 2, "fp32", trt=engine, flavor="tensorrt-rtx" if engine else None,
                  compute_capabilities=("8.6",) if engine else None)  # fmt: skip
    kinds = {node.op_type for node in onnx.load(made.onnx.path).graph.node}
    assert not {kind for kind in kinds if kind.startswith(("Scatter", "Gather"))}
    assert not kinds & {"Resize", "TopK", "NonZero", "Tile", "Where", "Range", "Shape"}
    checked = verify(path, pair_folder)
    assert checked.passed, [check for check in checked.checks if not check.passed]
    pixels = next(check.detail for check in checked.checks if check.name.endswith("top-1"))
    assert pixels.startswith(f"{6 * 40 * 56} of {6 * 40 * 56} agree") or "as good as level" in pixels
    assert any("engine" in check.name for check in checked.checks) == engine
    through = evaluate(path, pair_folder, runtime="onnxruntime", batch=2)
    assert through.miou == pytest.approx(evaluate(path, pair_folder, batch=2).miou, abs=0.05)
