"""Pictures: the stages, bars and lines that are drawn are those of the plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcvit.errors import InputError
from dcvit.families import Architecture, Family, family_of
from dcvit.folder.model_folder import ModelFolder
from dcvit.inspection import inspect
from dcvit.model import build
from dcvit.pictures.channels import Bar, attention_bars, block_bars, draw_channels, mlp_bars
from dcvit.pictures.tokens import draw_tokens, stages_of
from dcvit.plan import BlockPlan, CompressionPlan

MakeFolder = Callable[..., ModelFolder]
MERGES = ({"after": 1, "axis": "horizontal"}, {"after": 3, "axis": "vertical"}, {"after": 3, "axis": "horizontal"})


def _numbers(plan: CompressionPlan) -> tuple[Architecture, Family]:
    model = build(plan.original(), device="meta")
    return family_of(model).architecture(model), family_of(model)


@pytest.fixture
def cut_plan(tiny_plan: CompressionPlan) -> CompressionPlan:
    """5×7 patches, two steps of merging, one block without attention, one narrowed, one removed."""
    entries = (
        BlockPlan(index=0, head_dim=8),
        BlockPlan(index=1, removed="attention", mlp_hidden=24),
        BlockPlan(index=2, removed="block"),
    )
    kwargs = tiny_plan.model_kwargs | {"img_size": [40, 56]}
    return tiny_plan.replace(model_kwargs=kwargs, blocks=entries, merges=MERGES)


def test_stages_are_the_grids_that_blocks_work_on(cut_plan: CompressionPlan) -> None:
    stages = stages_of(cut_plan, (5, 7), 4)
    assert [(stage.first, stage.last, stage.grid.shape, stage.merged) for stage in stages] == [
        (0, 0, (5, 7), ""),
        (1, 2, (5, 4), "a horizontal"),
        (3, 3, (3, 2), "a vertical and a horizontal"),
    ]


def test_grid_lines_stand_where_tokens_end(cut_plan: CompressionPlan) -> None:
    architecture, _ = _numbers(cut_plan)
    figure = draw_tokens(cut_plan, architecture, np.zeros((40, 56, 3)))
    last = figure.axes[2]
    lines = [segment for collection in last.collections for segment in collection.get_segments()]
    down = sorted({float(x) for (x, _), (other, _) in lines if x == other})
    across = sorted({float(y) for (_, y), (_, other) in lines if y == other})
    assert down == pytest.approx([0, 32, 56])  # 4 and 3 columns of 8 pixels
    assert across == pytest.approx([0, 16, 32, 40])  # 2, 2 and 1 rows
    assert "3×2 grid, 7 tokens" in last.get_title()
    assert "odd side: the last row and column merged with itself" in last.get_title()
    assert "1 prefix token passes" in figure.get_suptitle()
    assert len(last.images) == 1


def test_bars_are_the_widths_of_the_plan(cut_plan: CompressionPlan) -> None:
    architecture, family = _numbers(cut_plan)
    assert attention_bars(cut_plan, architecture) == [
        Bar(32, 16, False, 2), Bar(32, 0, True, 2), Bar(32, 0, True, 2), Bar(32, 32, False, 2),
    ]  # fmt: skip
    assert [bar.label for bar in attention_bars(cut_plan, architecture)][::3] == ["2×8", "2×16"]
    assert mlp_bars(cut_plan, architecture) == [
        Bar(128, 128, False), Bar(128, 24, False), Bar(128, 0, True), Bar(128, 128, False),
    ]  # fmt: skip
    figure = draw_channels(cut_plan, architecture, family)
    mlp, attention = figure.axes
    assert [patch.get_height() for patch in mlp.patches] == [128] * 4 + [128, 24, 0, 128]
    assert [patch.get_height() for patch in attention.patches] == [32] * 4 + [16, 0, 0, 32]
    crosses = [line for line in attention.lines if line.get_marker() == "x"]
    assert [float(line.get_xdata()[0]) for line in crosses] == [1, 2]
    marks = [float(line.get_xdata()[0]) for line in mlp.lines if line.get_linestyle() == "--"]
    assert marks == [0.5, 2.5]
    assert {"5×4", "3×2", "24"} <= {text.get_text() for text in mlp.texts}


def test_a_resnet_has_one_panel_of_whole_blocks() -> None:
    plan = CompressionPlan(model="resnet18", blocks=(BlockPlan(index=1, removed="block"),))
    architecture, family = _numbers(plan)
    assert block_bars(plan, architecture)[:2] == [Bar(64, 64, False), Bar(64, 0, True)]
    assert len(draw_channels(plan, architecture, family).axes) == 1


@pytest.mark.parametrize("data", ["shapes", None])
def test_inspect_draws_and_names_the_files(
    make_folder: MakeFolder, cut_plan: CompressionPlan, tmp_path: Path, data: Any
) -> None:
    folder = make_folder(tmp_path / "model", cut_plan)
    found = inspect(folder.path, pictures=tmp_path / "drawn", data=data)
    assert [path.name for path in found.pictures] == ["channels.png", "tokens.png"]
    assert found.to_json()["pictures"] == [str(path) for path in found.pictures]
    for path in found.pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 5


def test_without_merges_there_are_no_token_grids(
    make_folder: MakeFolder, tiny_plan: CompressionPlan, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "model", tiny_plan)
    assert [path.name for path in inspect(folder.path, pictures=tmp_path / "drawn").pictures] == ["channels.png"]
    assert inspect(folder.path).pictures == ()
    with pytest.raises(InputError, match="say where to with --pictures"):
        inspect(folder.path, data="shapes")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; give a folder"):
        inspect(folder.path, pictures=tmp_path / "file")
