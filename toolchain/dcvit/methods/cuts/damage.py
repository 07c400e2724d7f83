"""What each possible cut of each block does to the outputs, measured one at a time without any gradient step."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.families import Family
from dcvit.folder.records import BlockDamage
from dcvit.hardware import accelerator
from dcvit.layers import apply_merges
from dcvit.methods.cuts.heads import HeadFit
from dcvit.methods.cuts.least_squares import elimination_order
from dcvit.methods.cuts.surgery import best_nodes, observe, refit, refit_output_layer
from dcvit.methods.cuts.wanted_tokens import CHUNK, first_tokens, through
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.progress import track
from dcvit.types import TimmModule

FRACTIONS = (3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""MLP widths that are measured, as shares of the original; the damage of others is interpolated."""

HEAD_FRACTIONS = (1 / 2, 1 / 4, 1 / 8)
"""The same for the channels of the heads."""


@torch.no_grad()
def divergence(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Mean KL(teacher ‖ student) in nats, over images with logits [S, classes], or over pixels [S, classes, H, W]."""
    student, teacher = (_rows(logits).double().log_softmax(-1) for logits in (student_logits, teacher_logits))
    return float(F.kl_div(student, teacher, reduction="batchmean", log_target=True))


def _rows(logits: Tensor) -> Tensor:
    """Logits of images or of pixels, as rows."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def logits_of(model: TimmModule, images: Tensor) -> Tensor:
    """Logits [S, classes] of images [S, C, H, W], in the precision that the machine is fast in."""
    device = next(model.parameters()).device
    with accelerator().autocast():
        return torch.cat([model(chunk.to(device)).float().cpu() for chunk in images.split(64)])


@dataclass(frozen=True)
class PossibleCuts:
    """What may be cut, by block.

    Attributes:
        narrower_mlp: Blocks whose MLP may be narrowed; those of the other two are in here too.
        narrower_heads: Those whose heads may be narrowed.
        no_attention: Those that may lose their attention.
    """

    narrower_mlp: tuple[int, ...]
    narrower_heads: tuple[int, ...] = ()
    no_attention: tuple[int, ...] = ()


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
    """
    wanted = logits_of(teacher, metric)
    arguments = family.block_arguments(teacher)
    tokens = first_tokens(teacher, family, calibration)
    # What the metric images are in front of each block: a cut changes nothing before it, so nothing is computed again.
    with accelerator().autocast():  # as `logits_of` does: the same rounding must not count as damage
        scored = first_tokens(teacher, family, metric)
    orders, damages = {}, {}
    for index in track(range(max(cuts.narrower_mlp) + 1), "examining blocks"):
        block = family.block(teacher, index)
        if index not in cuts.narrower_mlp:
            tokens = apply_merges(block, through(block, tokens, arguments))
            scored = _advance(block, scored, arguments)
            continue
        moments, output = observe(block, tokens, None, arguments)
        fc2 = block.mlp.fc2
        order = elimination_order(moments.gram, fc2.weight, bias=fc2.bias is not None).cpu()
        by_hidden: dict[int, float] = {}
        for width in _widths(len(order), FRACTIONS, multiple):
            kept = best_nodes(order, width)
            student = _cut(teacher, family, start, BlockPlan(index=index, mlp_hidden=width), kept)
            refit_output_layer(family.block(student, index), moments, kept)
            by_hidden[width] = divergence(_logits_from(student, index, scored, metric), wanted)
        by_head_dim: dict[int, float] = {}
        if index in cuts.narrower_heads:
            fit = HeadFit(block, tokens, arguments)
            for width in _widths(block.attn.head_dim, HEAD_FRACTIONS, multiple):
                student = copy.deepcopy(teacher)
                fit.narrow(family.block(student, index), width)
                refit(family.block(student, index), tokens, output, arguments)
                by_head_dim[width] = divergence(_logits_from(student, index, scored, metric), wanted)
        attention = None
        if index in cuts.no_attention:
            student = _cut(teacher, family, start, BlockPlan(index=index, removed="attention"), None)
            refit(family.block(student, index), tokens, output, arguments)
            attention = divergence(_logits_from(student, index, scored, metric), wanted)
        orders[index], damages[index] = order, BlockDamage(attention=attention, mlp=by_hidden, heads=by_head_dim)
        tokens = apply_merges(block, output)
        scored = _advance(block, scored, arguments)
    return Examination(orders, damages)


def _widths(whole: int, fractions: Sequence[float], multiple: int) -> list[int]:
    """Below the whole, wide ones first."""
    widths = {max(multiple, round(whole * share / multiple) * multiple) for share in fractions}
    return sorted((width for width in widths if width < whole), reverse=True)


def _advance(block: TimmModule, tokens: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    with accelerator().autocast():
        return apply_merges(block, through(block, tokens, arguments))


@torch.no_grad()
def _logits_from(model: TimmModule, index: int, tokens: Tensor, images: Tensor) -> Tensor:
    """Logits [S, classes] of a model whose blocks from `index` on get `tokens` [S, N, C]; those before are dropped.

    The model's own forward runs, on a shorter list of blocks, whatever it does around them.
    """
    given = _Given()
    model.blocks = nn.Sequential(given, *list(model.blocks)[index:])
    device = next(model.parameters()).device
    logits = []
    for chunk, given.tokens in zip(images.split(CHUNK), tokens.split(CHUNK), strict=True):
        with accelerator().autocast():
            logits.append(model(chunk.to(device)).float().cpu())
    return torch.cat(logits)


class _Given(nn.Module):
    """Stands in for blocks whose output is known."""

    tokens: Tensor

    def forward(self, _tokens: Tensor, **_arguments: Any) -> Tensor:
        return self.tokens


def _cut(
    teacher: TimmModule, family: Family, start: CompressionPlan, entry: BlockPlan, kept: Tensor | None
) -> TimmModule:
    student = copy.deepcopy(teacher)
    family.apply(student, start.original().with_blocks(entry), {} if kept is None else {entry.index: kept})
    return student
