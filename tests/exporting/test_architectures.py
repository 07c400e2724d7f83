"""Every supported architecture exports to a static graph of core operators that computes what PyTorch does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.verification import verify

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 10}
SWIN = {
    "img_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, "num_classes": 7,
}  # fmt: skip
CUT = (
    BlockPlan(index=0, mlp_hidden=24, head_dim=16),
    BlockPlan(index=1, removed="block"),
    BlockPlan(index=2, removed="attention", mlp_hidden=16),
)

CASES = {
    "vit": ("vit_tiny_patch16_224", SMALL, "", {}),
    "mean merges, odd grid": ("vit_tiny_patch16_224", SMALL | {"img_size": 40}, "horizontal@1,vertical@2", {}),
    "linear merges, aware of sizes": (
        "deit_tiny_patch16_224",
        SMALL,
        "horizontal@1,vertical@2,linear",
        {"size_aware_attention": True},
    ),
    "cut blocks": ("deit3_small_patch16_224", SMALL | {"embed_dim": 64}, "vertical@1", {"blocks": CUT}),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, "horizontal@1", {"size_aware_attention": True}),
    "registers, average pool": (
        "vit_small_patch16_224",
        SMALL | {"reg_tokens": 4, "no_embed_class": True, "global_pool": "avg", "class_token": False},
        "horizontal@1",
        {},
    ),
    "attention pool": ("vit_base_patch16_siglip_224", SMALL, "horizontal@1", {}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, "", {}),
    "swin, padded windows": ("swin_tiny_patch4_window7_224", SWIN | {"img_size": 72, "window_size": 7}, "", {}),
    "resnet": (
        "resnet18",
        {"num_classes": 7, "pretrained_cfg_overlay": {"input_size": [3, 64, 64]}},
        "",
        {"blocks": (BlockPlan(index=3, removed="block"),)},
    ),
}


LONG = {"distilled", "registers, average pool", "swin", "mean merges, odd grid"}
"""Put together from what the others hold."""


@pytest.mark.parametrize(
    "case", [case if case not in LONG else pytest.param(case, marks=pytest.mark.thorough) for case in CASES]
)
def test_exports_and_passes_verification(
    make_folder: Callable[[Path, CompressionPlan], ModelFolder], tmp_path: Path, case: str
) -> None:
    name, kwargs, schedule, changes = CASES[case]
    merges, operator = parse_merges(schedule)
    plan = CompressionPlan(model=name, model_kwargs=kwargs, merges=merges, merge_operator=operator).replace(**changes)
    folder = make_folder(tmp_path / "model", plan)
    for precision in ("fp32", "fp16"):
        export(folder, 16, precision)
    result = verify(folder)
    assert result.passed, [check for check in result.checks if not check.passed]
    # OpenVINO, where it is installed, compares both files too, and computes them as it likes.
    found = [check for check in result.checks if "ONNX Runtime against PyTorch" in check.name]
    compared = {check.name: check for check in found}
    assert len(compared) == 2
    # Half precision must show: were the error as small as that of fp32, the graph would not be fp16.
    (half,) = (check for name, check in compared.items() if "fp16" in name)
    (full,) = (check for name, check in compared.items() if "fp32" in name)
    assert half.max_abs_error > 10 * full.max_abs_error
