"""The token grid in front of the first block and after each merge, drawn over an image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcvit.data import CorruptImages, ImageSource, batches
from dcvit.families import Architecture
from dcvit.layers.token_grid import TokenGrid
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS_A_ROW = 4
_PANEL_INCHES = 3.0
_LINE, _SHADOW = "white", "black"


@dataclass(frozen=True)
class Stage:
    """A stretch of blocks that work on one grid.

    Attributes:
        first: Its first block; it ends in front of the next stage's.
        last: Its last block.
        merged: What happened in front of it, in words; empty for the first stage.
    """

    first: int
    last: int
    grid: TokenGrid
    merged: str


def stages_of(plan: CompressionPlan, grid: tuple[int, int], depth: int) -> list[Stage]:
    """The grids that a plan's blocks work on; merges at one position make one step."""
    positions = sorted({merge.after for merge in plan.merges})
    starts = [0, *positions]
    ends = [*positions, depth]
    stages: list[Stage] = []
    current = TokenGrid.unmerged(grid)
    for first, end in zip(starts, ends, strict=True):
        axes = [merge.axis for merge in plan.merges if merge.after == first]
        for axis in axes:
            current = current.merged(axis)
        stages.append(Stage(first, end - 1, current, " and ".join(f"a {axis}" for axis in axes)))
    return stages


def first_image(source: ImageSource, preprocessing: Preprocessing) -> NDArray[np.float64]:
    """The first image that can be decoded, as the model sees it: [H, W, 3] (or [H, W, 1]), from 0 to 1."""
    batch = next(iter(batches(source, preprocessing, 1, CorruptImages())))
    pixels: NDArray[np.float64] = batch.images[0].permute(1, 2, 0).double().numpy()
    return (pixels * np.array(preprocessing.std) + np.array(preprocessing.mean)).clip(0, 1)


def draw_tokens(plan: CompressionPlan, architecture: Architecture, image: NDArray[np.float64] | None) -> "Figure":
    """One panel a stage: the image (or white) cut into the cells that one token each stands for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = stages_of(plan, architecture.grid, architecture.depth)
    columns = min(len(stages), _PANELS_A_ROW)
    rows = -(-len(stages) // columns)
    _, height, width = architecture.input_size
    inches = (_PANEL_INCHES * columns, (_PANEL_INCHES * height / width + 0.75) * rows + 0.45)
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, stage in zip(panels, stages, strict=False):
        _draw_stage(panel, stage, architecture, image)
    for panel in panels[len(stages) :]:
        panel.set_axis_off()
    figure.suptitle(_title(plan, architecture), fontsize=10)
    return figure


def _title(plan: CompressionPlan, architecture: Architecture) -> str:
    prefix = architecture.num_prefix_tokens
    passing = {0: "", 1: "; 1 prefix token passes every merge"}.get(
        prefix, f"; {prefix} prefix tokens pass every merge"
    )
    return f"{plan.model}: tokens merge by {plan.merge_operator}{passing}"


def _draw_stage(panel: Any, stage: Stage, architecture: Architecture, image: NDArray[np.float64] | None) -> None:
    _, height, width = architecture.input_size
    if image is not None:
        shown = image[..., 0] if image.shape[-1] == 1 else image
        panel.imshow(shown, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    row_edges, column_edges = (
        np.cumsum((0, *sizes)) * side / sum(sizes)
        for sizes, side in ((stage.grid.rows, height), (stage.grid.columns, width))
    )
    strokes = [(_SHADOW, 1.3, 0.45), (_LINE, 0.6, 0.9)] if image is not None else [(_SHADOW, 0.8, 1.0)]
    for color, line, alpha in strokes:
        style = {"colors": color, "linewidth": line, "alpha": alpha, "clip_on": False}
        panel.hlines(row_edges, 0, width, **style)
        panel.vlines(column_edges, 0, height, **style)
    panel.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    for spine in panel.spines.values():
        spine.set_visible(False)
    rows, columns = stage.grid.shape
    blocks = f"block {stage.first}" if stage.first == stage.last else f"blocks {stage.first}–{stage.last}"
    before = f"after {stage.merged} merge" if stage.merged else "before any merge"
    panel.set_title(
        f"{blocks}, {before}\n"
        f"{rows}×{columns} grid, {architecture.num_prefix_tokens + rows * columns} tokens{_odd(stage.grid)}",
        fontsize=8,
    )


def _odd(grid: TokenGrid) -> str:
    """What a reader wonders about where a side was odd: cells at the edge are smaller."""
    uneven = [what for what, sizes in (("row", grid.rows), ("column", grid.columns)) if sizes[-1] != sizes[0]]
    return f"\nodd side: the last {' and '.join(uneven)} merged with itself" if uneven else ""
