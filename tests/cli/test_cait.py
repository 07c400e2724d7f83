"""--method cait on the command line: which flags belong to it, presets, and a whole run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.presets import presets
from dcvit.model import create
from dcvit.plan import CompressionPlan

Tool = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path, tiny_plan: CompressionPlan) -> list[object]:
    """A timm name with its arguments and a checkpoint."""
    checkpoint = tmp_path / "teacher.safetensors"
    save_file(create(tiny_plan.model, tiny_plan.model_kwargs).state_dict(), checkpoint)
    return [tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--checkpoint", checkpoint]


def test_every_flag_reaches_the_training(tool: Tool, tmp_path: Path, model: list[object]) -> None:
    ended = tool(
        "compress", *model, "--data", "digits", "--samples", 32, "--method", "cait", "--macs-reduction", 0.4,
        "--merge", "horizontal@2,mean", "--epochs", 1.5, "--batch-size", 16, "--accumulate", 2, "--lr", 0.001, "--ema",
        0.5, "--distill", 0.25, "--labels", "--augmentation", "none", "--mixup", 0.2, "--cutmix", 0.5,
        "--label-smoothing", 0.2, "--checkpoint-every", 0, "--size-aware", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    assert ended.json["macs_reduction"] >= 0.4
    assert ended.json["metrics"]["steps"] == 3
    folder = ModelFolder(tmp_path / "out")
    training = folder.manifest.settings["training"]
    wanted = {"epochs": 1.5, "batch_size": 16, "accumulate": 2, "lr": 0.001, "ema": 0.5, "distill": 0.25,
              "augmentation": "none", "mixup": 0.2, "cutmix": 0.5, "label_smoothing": 0.2}  # fmt: skip
    assert wanted.items() <= training.items()
    assert folder.manifest.settings["labels"] is True
    assert folder.manifest.method == "cait"
    assert folder.plan.merge_operator == "mean"
    assert folder.plan.size_aware_attention
    assert "merging and training: 3 in" in ended.stderr


def test_all_images_are_used_unless_samples_are_asked_for(tool: Tool, tmp_path: Path, model: list[object]) -> None:
    ended = tool(
        "compress", *model, "--data", "digits", "--method", "cait", "--merge", "horizontal@2", "--epochs", 0.01,
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ended.json["metrics"]["images"] == 1297
    assert ended.json["metrics"]["steps"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "cait", "--steps", "3"],
            "--steps is of --method dcvit or --method practise, and the method is cait",
        ),
        (["--widths", "cdcp"], "--widths is of --method cait"),
        (["--method", "practise", "--trim-last-block"], "--trim-last-block is of --method dcvit or --method cait"),
        (["--epochs", "3"], "--epochs is of --method cait"),
        (["--method", "practise", "--no-labels"], "--no-labels is of --method cait, and the method is practise"),
        (["--tensorboard", "logs"], "--tensorboard is of --method cait"),
        (["--preset", "cait-tiny", "--merge", "horizontal@2"], "leave out --merge"),
        (["--preset", "cait-tiny", "--method", "dcvit"], "leave out --method"),
        (["--preset", "cait-tiny"], "--preset cait-tiny is for deit_tiny_patch16_224"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    tool: Tool, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = tool("compress", "vit_base_patch16_224", "--data", "digits", *arguments, "-o", tmp_path / "out")
    assert ended.status == 2
    assert message in ended.error


@pytest.mark.thorough
def test_a_frontier_trains_every_size_on_its_own(tool: Tool, tmp_path: Path, model: list[object]) -> None:
    ended = tool(
        "frontier", *model, "--data", "digits", "--samples", 32, "--method", "cait", "--epochs", 1, "--batch-size", 16,
        "--macs-reduction", 0.2, "--macs-reduction", 0.4, "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    assert [point["folder"] for point in ended.json["points"]] == ["r0.2", "r0.4"]
    for point in ended.json["points"]:
        folder = ModelFolder(tmp_path / "out" / point["folder"])
        assert folder.manifest.metrics["steps"] == 2
        assert point["kl"] > 0
        assert point["macs_reduction"] >= point["target"]


@pytest.mark.parametrize("name", presets())
def test_presets_are_plans_for_their_models(tool: Tool, name: str) -> None:
    preset = presets()[name]
    found = tool("plan", preset.model, "--preset", name, "--json").json
    assert found["tokens"] == [197] * 4 + [99] * 4 + [50] * 4
    assert preset.macs_reduction <= found["macs_reduction"] < preset.macs_reduction + 0.02
    assert "your images find the widths" in found["note"]
    assert str(preset.made_for) in found["note"]
    assert found["plan"]["trims_last_block"]


def test_a_preset_may_be_pruned_as_published(tool: Tool) -> None:
    paper = tool(
        "plan", "deit_tiny_patch16_224", "--preset", "cait-tiny", "--widths", "cdcp", "--keep-last-block", "--json"
    )
    assert "training finds the widths" in paper.json["note"]
    assert "trims_last_block" not in paper.json["plan"]


def test_plan_stands_in_for_what_images_choose(tool: Tool) -> None:
    found = tool("plan", "deit_tiny_patch16_224", "--method", "cait", "--macs-reduction", 0.45, "--json").json
    assert 0.45 <= found["macs_reduction"] < 0.47
    assert "your images choose the merges" in found["note"]
    alone = tool("plan", "deit_tiny_patch16_224", "--method", "cait", "--no-prune", "--macs-reduction", 0.45, "--json")
    assert alone.json["macs_reduction"] >= 0.45
    assert "blocks" not in alone.json["plan"]
    refused = tool("plan", "deit_tiny_patch16_224", "--no-prune", "--macs-reduction", 0.45)
    assert "--no-prune is of --method cait" in refused.error


def test_tensorboard_that_is_missing_is_one_line(
    tool: Tool, tmp_path: Path, model: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = tool(
        "compress", *model, "--data", "digits", "--method", "cait", "--merge", "horizontal@2",
        "--tensorboard", tmp_path / "logs", "-o", tmp_path / "out",
    )  # fmt: skip
    assert ended.status == 2
    assert "pip install 'dcvit-tool[tensorboard]'" in ended.error


def test_tensorboard_gets_losses_and_widths(
    tool: Tool, tmp_path: Path, model: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, list[int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "logs")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            found.setdefault(name, []).append(step)

        def flush(self) -> None: ...

    module = type(torch)("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    ended = tool(
        "compress", *model, "--data", "digits", "--samples", 32, "--method", "cait", "--macs-reduction", 0.4,
        "--recipe", "paper", "--epochs", 1, "--batch-size", 16, "--tensorboard", tmp_path / "logs",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert ended.status == 0, ended.stderr
    settings = ModelFolder(tmp_path / "out").manifest.settings
    assert (settings["widths"], settings["trim"], settings["target"]["macs_convention"]) == ("cdcp", False, "full")
    assert found["loss"] == found["loss/distillation"] == found["mlp_hidden/block 0"] == [1, 2]
