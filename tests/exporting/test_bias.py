"""Size-aware attention in every runtime: a row of constants on the logits, the same for all queries."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from dcvit.agreement import cosine
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.runtimes import RUNTIMES
from dcvit.variant import Variant


@pytest.mark.parametrize(
    ("second", "trimmed", "wanted"),
    [
        (3, False, [[1, 1, 5, 5], [1, 1, 9, 9]]),  # one for the blocks after each merge; 17 tokens before
        (2, True, [[1, 1, 5, 5], [1, 1, 9, 9], [1, 2, 1, 5]]),  # two blocks share a row, and one has a single query
    ],
)
def test_it_is_written_out_over_the_queries_and_computes_the_same(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder],
    tmp_path: Path,
    tiny_plan: CompressionPlan,
    second: int,
    trimmed: bool,
    wanted: list[list[int]],
) -> None:
    merges = ({"after": 1, "axis": "horizontal"}, {"after": second, "axis": "vertical"})
    plan = tiny_plan.replace(merges=merges, size_aware_attention=True, trims_last_block=trimmed)
    folder = make_folder(tmp_path / "model", plan)
    path = export(folder, 4).onnx.path
    graph = onnx.load(path).graph
    shapes = sorted(list(weight.dims) for weight in graph.initializer if "size_bias" in weight.name)
    assert shapes == wanted
    images = torch.randn(12, 3, 32, 32)
    with torch.no_grad():
        expected = folder.load()(images)
    for name, precision, least in (("onnxruntime", "fp32", 1 - 1e-9), ("openvino", "bf16", 0.999)):
        if RUNTIMES[name].unavailable() or precision not in RUNTIMES[name].precisions:
            continue
        assert cosine(RUNTIMES[name].open(folder, Variant.of(4, precision)).infer(images), expected) > least


@pytest.mark.parametrize("family", ["swin_tiny_patch4_window7_224"])
def test_other_biases_stay_as_they_are(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, family: str
) -> None:
    kwargs = {"img_size": 32, "embed_dim": 24, "depths": [2], "num_heads": [1], "window_size": 4, "num_classes": 7}
    folder = make_folder(tmp_path / "model", CompressionPlan(model=family, model_kwargs=kwargs))
    graph = onnx.load(export(folder, 2).onnx.path).graph
    assert not [weight.name for weight in graph.initializer if "_spread" in weight.name]
