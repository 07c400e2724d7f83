"""What each possible cut of each block does to the outputs, measured one at a time without any gradient step."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor

from dcvit.families import Family
from dcvit.folder.records import BlockDamage
from dcvit.hardware import accelerator
from dcvit.layers import apply_merges
from dcvit.methods.cuts.choices import MIN_HEAD_DIM, Way, least_head_dim
from dcvit.methods.cuts.heads import HeadFit
from dcvit.methods.cuts.least_squares import elimination_order
from dcvit.methods.cuts.measured import Cut, MeasuredModel
from dcvit.methods.cuts.predicted import SENSITIVE_IMAGES, Predicted
from dcvit.methods.cuts.scores import score_of
from dcvit.methods.cuts.surgery import best_nodes, observe, refit, refit_output_layer
from dcvit.methods.cuts.wanted_tokens import first_tokens, read_tokens, through
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.progress import track
from dcvit.subject import original_of
from dcvit.types import TimmModule

FRACTIONS = (3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""MLP widths that are measured, as shares of the original; the damage of others is interpolated."""

HEAD_FRACTIONS = (1 / 2, 1 / 4, 1 / 8)
"""The same for the channels of the heads."""

FITTED_IMAGES = 128
"""Where damage is predicted, heads and what makes up for attention are fitted on so many calibration images at most:
these fits are weighed and not kept, and cost the most."""


K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class PossibleCuts:
    """What may be cut, by block.

    Attributes:
        narrower_mlp: Blocks whose MLP may be narrowed; all others are among them.
        narrower_heads: Those whose heads may be narrowed.
        no_attention: Those that may lose their attention.
        gone: Those that may go altogether.
        min_head_dim: Channels that every head keeps at least.
    """

    narrower_mlp: tuple[int, ...]
    narrower_heads: tuple[int, ...] = ()
    no_attention: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    min_head_dim: int = MIN_HEAD_DIM


@dataclass(frozen=True)
class Examination:
    """What is known of each block before a target is set; it serves every target.

    Attributes:
        orders: The MLP's hidden nodes [M] of each block, the ones that are best given up first.
        damages: What each possible cut does.
    """

    orders: dict[int, Tensor]
    damages: dict[int, BlockDamage]


@torch.no_grad()
def examine(
    teacher: TimmModule,
    family: Family,
    start: CompressionPlan,
    cuts: PossibleCuts,
    calibration: Tensor,
    metric: Tensor,
    multiple: int,
    how: Way = "exact",
    *,
    shared: bool = False,
) -> Examination:
    """Cuts each block alone in every way that is measured, with its closed-form refit, and scores the outputs.

    Args:
        teacher: The uncompressed model.
        family: How to reach the blocks.
        start: The plan that the teacher follows.
        cuts: What is tried.
        calibration: Images [n, C, H, W] that refits are made on.
        metric: Images [S, C, H, W] that the damage is measured on.
        multiple: Widths are multiples of this.
        how: Whether the rest of the network runs for every cut, or its damage is predicted from its own block, on the
            first `SENSITIVE_IMAGES` of `metric`.
        shared: Whether every process of the run is here, and takes its share of the blocks; all get the whole result.

    Raises:
        InputError: If the outputs are of pixels, which cannot be predicted.
    """
    depth = family.architecture(original_of(start)).depth
    scored = metric if how == "exact" else metric[:SENSITIVE_IMAGES]
    measured = MeasuredModel(teacher, family, depth, score_of(start), scored)
    judge = measured if how == "exact" else Predicted(measured, cuts.narrower_mlp)
    arguments = family.block_arguments(teacher)
    tokens, read = first_tokens(teacher, family, calibration), read_tokens(teacher, family)
    few = None if how == "exact" else FITTED_IMAGES
    orders: dict[int, Tensor] = {}
    number, of = (accelerator().process_index, accelerator().num_processes) if shared else (0, 1)
    own = set(sorted(cuts.narrower_mlp)[number::of])
    for index in track(range(max(cuts.narrower_mlp) + 1), "examining blocks"):
        block = family.block(teacher, index)
        if index not in own:
            tokens = apply_merges(block, through(block, tokens, arguments))
            judge.advance(index)
            continue
        moments, output = observe(block, tokens, None, arguments, read)
        fc2 = block.mlp.fc2
        orders[index] = elimination_order(moments.gram, fc2.weight, bias=fc2.bias is not None).cpu()
        for width in _widths(len(orders[index]), FRACTIONS, multiple):
            kept = best_nodes(orders[index], width)
            student = _cut(measured, start, BlockPlan(index=index, mlp_hidden=width), kept)
            refit_output_layer(family.block(student, index), moments, kept)
            judge.judge(student, Cut(index, "mlp", width))
        if index in cuts.narrower_heads:
            fit = HeadFit(block, tokens[:few], arguments, read)
            least = least_head_dim(block.attn.head_dim, multiple, cuts.min_head_dim)
            for width in _widths(block.attn.head_dim, HEAD_FRACTIONS, multiple, least):
                student = _copied(measured, index)
                fit.narrow(family.block(student, index), width)
                refit(family.block(student, index), tokens[:few], output[:few], arguments, read)
                judge.judge(student, Cut(index, "heads", width))
        if index in cuts.no_attention:
            student = _cut(measured, start, BlockPlan(index=index, removed="attention"), None)
            refit(family.block(student, index), tokens[:few], output[:few], arguments, read)
            judge.judge(student, Cut(index, "attention", 0))
        if index in cuts.gone:
            student = _cut(measured, start, BlockPlan(index=index, removed="block"), None)
            judge.judge(student, Cut(index, "block", 0))
        tokens = apply_merges(block, output)
        judge.advance(index)
    if of > 1:
        found = gather_object([(judge.found, orders)])
        judge.found = _together(each for each, _ in found)
        orders = _together(each for _, each in found)
    return Examination(dict(sorted(orders.items())), _by_block(judge.damages()))


def _together(parts: Iterable[Mapping[K, V]]) -> dict[K, V]:
    """What several processes found, of each thing once."""
    return {key: value for part in parts for key, value in part.items()}


def _by_block(damages: Mapping[Cut, float]) -> dict[int, BlockDamage]:
    found = {}
    for index in {cut.block: None for cut in damages}:
        of_kind = {
            kind: {cut.width: damage for cut, damage in damages.items() if (cut.block, cut.kind) == (index, kind)}
            for kind in ("attention", "mlp", "heads", "block")
        }
        found[index] = BlockDamage(
            attention=of_kind["attention"].get(0),
            mlp=of_kind["mlp"],
            heads=of_kind["heads"],
            block=of_kind["block"].get(0),
        )
    return found


def _widths(whole: int, fractions: Sequence[float], multiple: int, least: int = 0) -> list[int]:
    """Below the whole and none narrower than `least`, wide ones first."""
    widths = {max(multiple, least, round(whole * share / multiple) * multiple) for share in fractions}
    return sorted((width for width in widths if width < whole), reverse=True)


def _copied(measured: MeasuredModel, index: int) -> TimmModule:
    """A copy of the teacher whose block `index` may change; it shares the others, for copies of all would be costly."""
    others = (measured.family.block(measured.teacher, other) for other in range(measured.depth) if other != index)
    return copy.deepcopy(measured.teacher, {id(block): block for block in others})


def _cut(measured: MeasuredModel, start: CompressionPlan, entry: BlockPlan, kept: Tensor | None) -> TimmModule:
    student = _copied(measured, entry.index)
    nodes = {} if kept is None else {entry.index: kept}
    measured.family.apply(student, start.original().with_blocks(entry), nodes)
    return student
