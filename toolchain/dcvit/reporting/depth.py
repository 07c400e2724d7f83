"""Figures along the depth of a model: tokens, widths and merges of each block, and how recoverable each cut was."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcvit.families import Architecture
from dcvit.folder.records import BlockDamage, ErrorMeasure, TrialRecord, error_measure
from dcvit.layers.token_grid import grids
from dcvit.pictures.channels import Bar, attention_bars, block_bars, mlp_bars
from dcvit.plan import CompressionPlan
from dcvit.reporting.svg import Drawing, Scale, power_label

_LEFT, _RIGHT = 38, 4
_TITLE, _GAP = 22, 16


@dataclass(frozen=True)
class Depth:
    """What is drawn along the depth.

    Attributes:
        tokens: Tokens that each block works on: of the uncompressed model, and of this one.
        panels: What else is shown: its name, and a bar for each block.
        merges: Where tokens merge: the block after it, and the grid from then on.
    """

    tokens: tuple[Bar, ...]
    panels: tuple[tuple[str, tuple[Bar, ...]], ...]
    merges: tuple[tuple[int, str], ...]

    @classmethod
    def of(
        cls, plan: CompressionPlan, architecture: Architecture, before: Sequence[int], after: Sequence[int]
    ) -> "Depth":
        """Reads it off a plan and the tokens of each block before and after."""
        panels = [
            ("attention channels", attention_bars(plan, architecture)),
            ("MLP hidden nodes", mlp_bars(plan, architecture)),
        ]
        panels = [(name, bars) for name, bars in panels if any(bar.before for bar in bars)]
        panels = panels or [("block channels", block_bars(plan, architecture))]
        seen = list(grids(architecture.grid, plan.merges, architecture.depth))
        merges = [
            (position, "{}×{}".format(*seen[position].shape))
            for position in sorted({merge.after for merge in plan.merges})
        ]
        tokens = tuple(Bar(old, new, removed=False) for old, new in zip(before, after, strict=True))
        return cls(tokens, tuple((name, tuple(bars)) for name, bars in panels), tuple(merges))

    @property
    def tokens_change(self) -> bool:
        """Whether blocks differ in their tokens, from one another or from before."""
        return len({count for bar in self.tokens for count in (bar.before, bar.after)}) > 1

    @property
    def removed(self) -> bool:
        """Whether a layer is gone altogether."""
        return any(bar.removed for _, bars in self.panels for bar in bars)


def draw_depth(depth: Depth, width: float) -> Drawing:
    """One panel above the other: tokens, attention, MLP; the uncompressed model in the background."""
    panels = [*depth.panels]
    if depth.tokens_change:
        panels.insert(0, ("tokens", depth.tokens))
    heights = [84.0] * len(panels)
    height = sum(heights) + len(panels) * (_TITLE + _GAP) + 20
    drawing = Drawing(width, height, "Tokens, attention channels and MLP hidden nodes of each block, before and after")
    slot = (width - _LEFT - _RIGHT) / len(depth.tokens)
    top = 0.0
    for (name, bars), tall in zip(panels, heights, strict=True):
        drawing.text(_LEFT, top + 13, name, "name")
        _draw_bars(drawing, bars, top + _TITLE, tall, slot)
        top += _TITLE + tall + _GAP
    _mark_merges(drawing, depth, slot, top)
    _number_blocks(drawing, len(depth.tokens), slot, top + 2)
    return drawing


def _draw_bars(drawing: Drawing, bars: Sequence[Bar], top: float, tall: float, slot: float) -> None:
    most, bottom = max(bar.before for bar in bars), top + tall
    thick = min(0.74 * slot, 40)
    for value in (most, 0):
        level = bottom - tall * value / most
        drawing.line(_LEFT, level, drawing.width - _RIGHT, level, "grid")
        drawing.text(_LEFT - 6, level + 4, f"{value:,}", "tick", "end")
    for index, bar in enumerate(bars):
        middle = _LEFT + slot * (index + 0.5)
        left, before, after = middle - thick / 2, tall * bar.before / most, tall * bar.after / most
        told = f"block {index}: {'removed' if bar.removed else f'{bar.after:,} of {bar.before:,}'}"
        drawing.rect(left, bottom - before, thick, before, "gone dashed" if bar.removed else "gone", told)
        if bar.removed:
            arm = min(4.5, thick / 3)
            for side in (-arm, arm):
                drawing.line(
                    middle - arm, bottom - before / 2 - side, middle + arm, bottom - before / 2 + side, "cross"
                )
            continue
        drawing.rect(left, bottom - after, thick, after, "kept", told)
        if bar.after < bar.before and slot >= 30:
            inside = after >= 18
            drawing.text(
                middle, bottom - after + (13 if inside else -4), bar.label, "on" if inside else "off", "middle"
            )


def _mark_merges(drawing: Drawing, depth: Depth, slot: float, bottom: float) -> None:
    last = math.inf
    for position, grid in reversed(depth.merges):
        x = _LEFT + slot * position
        drawing.line(x, 4, x, bottom - _GAP, "merge")
        if x + 40 < last:
            near_edge = x + 36 > drawing.width
            drawing.text(x + (-4 if near_edge else 4), 13, grid, "grid-size", "end" if near_edge else "start")
            last = x


def _number_blocks(drawing: Drawing, depth: int, slot: float, y: float) -> None:
    step = next(step for step in (1, 2, 4, 5, 10, 20) if step * slot >= 20 or step == 20)
    for index in range(0, depth, step):
        drawing.text(_LEFT + slot * (index + 0.5), y + 6, str(index), "tick", "middle")
    drawing.text(_LEFT - 6, y + 6, "block", "tick", "end")


@dataclass(frozen=True)
class DrawnDamage:
    """What each cut of one block, made alone, does to the outputs.

    Attributes:
        attention: Without its attention; None where that was not asked.
        mlp: By the width that its MLP keeps, wide ones first.
        heads: By the channels that its heads keep, wide ones first.
        chosen: Whether the plan takes its attention away.
    """

    block: int
    attention: float | None
    mlp: tuple[tuple[int, float], ...]
    heads: tuple[tuple[int, float], ...]
    chosen: bool


def damage_of(metrics: dict[str, Any], plan: CompressionPlan) -> tuple[DrawnDamage, ...]:
    """The solver's examination, as the manifest has it; empty where another search chose."""
    blocks = []
    for block, record in sorted(metrics.get("damage", {}).items(), key=lambda item: int(item[0])):
        found = BlockDamage.model_validate(record)
        mlp, heads = (tuple(sorted(each.items(), reverse=True)) for each in (found.mlp, found.heads))
        blocks.append(DrawnDamage(int(block), found.attention, mlp, heads, plan.block(int(block)).removed is not None))
    return tuple(blocks)


def draw_damage(blocks: Sequence[DrawnDamage], measure: ErrorMeasure, width: float) -> Drawing:
    """Damage on a logarithmic scale: a line of dots for the widths of each MLP, another for its heads, with a diamond
    for no attention at all.
    """
    values = [damage for block in blocks for _, damage in (*block.mlp, *block.heads)]
    values += [block.attention for block in blocks if block.attention is not None]
    positive = [value for value in values if value > 0] or [1e-6]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    low, high = max(low, high - 8), max(high, low + 1)
    top, tall = 22, 230
    drawing = Drawing(width, top + tall + 26, "What each cut of each block, made alone, does to the outputs")
    drawing.text(_LEFT, 12, measure.title, "name")
    scale = Scale(10.0**low, 10.0**high, top + tall, top, logarithmic=True)
    for exponent in range(low, high + 1):
        level = scale(10.0**exponent)
        drawing.line(_LEFT, level, width - _RIGHT, level, "grid")
        drawing.text(_LEFT - 6, level + 4, power_label(exponent), "tick", "end")
    depth = max(block.block for block in blocks) + 1
    slot = (width - _LEFT - _RIGHT) / depth
    for block in blocks:
        x = _LEFT + slot * (block.block + 0.5)
        shift = min(7.0, slot / 5)
        for at, name, style, widths in (
            (x - shift, "MLP", "dot", block.mlp),
            (x + shift, "heads", "dot heads", block.heads),
        ):
            levels = [scale(max(damage, 10.0**low)) for _, damage in widths]
            if levels:
                drawing.line(at, min(levels), at, max(levels), "stem")
            for rank, ((width, damage), level) in enumerate(zip(widths, levels, strict=True)):
                told = f"block {block.block}, {name} of {width}: {damage:.2g}{measure.unit}"
                drawing.circle(at, level, 3.2, f"{style} shade{round(4 * (rank + 1) / len(widths))}", told)
        if block.attention is not None:
            told = f"block {block.block} without attention: {block.attention:.2g}{measure.unit}"
            level = scale(max(block.attention, 10.0**low))
            drawing.diamond(x + shift, level, 5.5, "attention chosen" if block.chosen else "attention", told)
    _number_blocks(drawing, depth, slot, top + tall + 14)
    return drawing


@dataclass(frozen=True)
class DrawnTrial:
    """A trained trial of cutting some blocks.

    Attributes:
        score: What it left.
        title: What the score is, for an axis.
        unit: Of the score, with the space before it.
        chosen: Whether the plan cuts them.
    """

    blocks: tuple[int, ...]
    score: float
    title: str
    unit: str
    chosen: bool

    @property
    def name(self) -> str:
        """The blocks."""
        return "+".join(map(str, self.blocks))


def trials_of(metrics: dict[str, Any], plan: CompressionPlan) -> tuple[DrawnTrial, ...]:
    """The trials by position in the model; empty where there were none."""
    trials = []
    for found in metrics.get("trials", []):
        trial = TrialRecord.model_validate(found)
        measure = error_measure(found)
        score, title, unit = trial.score, "score of a trial", " score"
        if score is None:
            score, title, unit = measure.of(found), f"{measure.title}, after a trial", measure.unit
        chosen = all(plan.block(index).removed for index in trial.blocks)
        trials.append(DrawnTrial(trial.blocks, score, title, unit, chosen))
    return tuple(sorted(trials, key=lambda trial: trial.blocks))


def draw_trials(trials: Sequence[DrawnTrial], width: float) -> Drawing:
    """A bar for each trial: small ones lose little."""
    top, tall = 22, 150
    drawing = Drawing(width, top + tall + 26, "What each trial left, by the blocks that it cut")
    drawing.text(_LEFT, 12, trials[0].title, "name")
    most = max(trial.score for trial in trials) or 1.0
    slot = (width - _LEFT - _RIGHT) / len(trials)
    for value in (0.0, most):
        level = top + tall - tall * value / most
        drawing.line(_LEFT, level, width - _RIGHT, level, "grid")
        drawing.text(_LEFT - 6, level + 4, f"{value:.2g}", "tick", "end")
    thick = min(0.74 * slot, 40)
    every = next(step for step in (1, 2, 4, 5, 10, 20) if step * slot >= 9 * len(trials[-1].name) + 6 or step == 20)
    for place, trial in enumerate(trials):
        middle, high = _LEFT + slot * (place + 0.5), tall * trial.score / most
        told = f"block {trial.name}: {trial.score:.3g}{trial.unit}"
        drawing.rect(middle - thick / 2, top + tall - high, thick, high, "kept" if trial.chosen else "gone", told)
        if place % every == 0:
            drawing.text(middle, top + tall + 20, trial.name, "tick", "middle")
    return drawing
