"""Cutting a transformer block by block, each refitted in closed form to what the teacher's block puts out.

Each block is fitted on the tokens that the already cut blocks give it, so it makes up for their errors too.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dcvit.families import Family
from dcvit.layers import apply_merges, mlp_scale
from dcvit.methods.cuts.heads import HeadFit
from dcvit.methods.cuts.least_squares import Moments, fit_output_layer
from dcvit.methods.cuts.wanted_tokens import CHUNK, WantedTokens, hooks, through
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.progress import track
from dcvit.types import TimmModule

Piece = Literal["refit", "propagation"]
"""Of the surgery: the closed-form fits of heads and of fc2, and fitting each block on the tokens that the cut blocks
before it give rather than on the teacher's."""


@torch.no_grad()
def operate(
    student: TimmModule,
    wanted_tokens: WantedTokens,
    family: Family,
    start: CompressionPlan,
    entries: Sequence[BlockPlan],
    orders: Mapping[int, Tensor],
    *,
    without: Collection[Piece] = (),
) -> None:
    """Cuts the blocks of `entries` in the student, in place, front to back.

    The bias of a refitted fc2, where it has one, is free, so what a removed attention added on average is made up for
    too.

    Args:
        student: Equal to the teacher, or the teacher with merged tokens.
        wanted_tokens: The wanted output of each block.
        family: How to reach the blocks.
        start: The plan that the teacher follows.
        entries: What becomes of each block.
        orders: For each block that is narrowed, the nodes of the student's MLP, the ones to go first in front.
        without: Pieces to leave out, for ablations.
    """
    by_index = {entry.index: entry for entry in entries}
    tokens = wanted_tokens.first
    depth = max(by_index, default=-1) + 1
    for index, (wanted, output) in enumerate(track(wanted_tokens.outputs(depth), "fitting blocks", total=depth)):
        entry = by_index.get(index)
        if entry is not None:
            kept = {}
            if entry.mlp_hidden is not None:
                kept[index] = best_nodes(orders[index], entry.mlp_hidden)
            block = family.block(student, index)
            if entry.head_dim is not None and entry.head_dim < block.attn.head_dim and "refit" not in without:
                before = wanted if "propagation" in without else tokens
                fit = HeadFit(block, before, wanted_tokens.arguments, wanted_tokens.read)
                fit.narrow(block, entry.head_dim)  # `apply` finds it narrow
            family.apply(student, start.original().with_blocks(entry), kept)
        block = family.block(student, index)
        if entry is None or entry.removed == "block" or "refit" in without:
            after = through(block, tokens, wanted_tokens.arguments)
        elif "propagation" in without:
            refit(block, wanted, output, wanted_tokens.arguments, wanted_tokens.read)
            after = through(block, tokens, wanted_tokens.arguments)
        else:
            after = refit(block, tokens, output, wanted_tokens.arguments, wanted_tokens.read)
        tokens = apply_merges(block, after)


def best_nodes(order: Tensor, width: int) -> Tensor:
    """The `width` nodes that stay, ascending, of an order in which the first go first."""
    return order[len(order) - width :].sort().values


@torch.no_grad()
def refit_output_layer(block: TimmModule, moments: Moments, kept: Tensor | None = None) -> None:
    """Replaces the MLP's output layer by its least-squares fit, in place.

    Args:
        block: Its MLP has the nodes that stay, and their weights.
        moments: Of these nodes; or of all the original ones, and `kept` says which of them stayed.
        kept: Indices [M'].
    """
    fc2 = block.mlp.fc2
    nodes = torch.arange(fc2.in_features) if kept is None else kept
    weight, bias = fit_output_layer(moments, nodes, fc2.weight, fc2.bias)
    fc2.weight.copy_(weight)
    if bias is not None:
        fc2.bias.copy_(bias)


@torch.no_grad()
def refit(block: TimmModule, tokens: Tensor, wanted: Tensor, arguments: Mapping[str, Any], read: int = 0) -> Tensor:
    """Fits fc2 to the wanted output [n, N, C] for tokens [n, N, C], in place; returns the output that comes of it.

    Of the tokens of an image the first `read` are all that the head reads; 0 where it reads the others too.
    """
    residuals: list[Tensor] = []
    with hooks(block.norm2.register_forward_pre_hook(lambda _module, inputs: residuals.append(inputs[0]))):
        moments, _ = observe(block, tokens, wanted, arguments, read)
    refit_output_layer(block, moments)
    # In front of norm2 nothing has changed, so attention need not run again.
    scale = _scale(block)
    return torch.cat([residual + scale * block.mlp(block.norm2(residual)) for residual in residuals])


@torch.no_grad()
def observe(
    block: TimmModule, tokens: Tensor, wanted: Tensor | None, arguments: Mapping[str, Any], read: int = 0
) -> tuple[Moments, Tensor]:
    """Moments of the inputs of fc2 and of what fc2 should put out, and the block's output before any merge.

    Without `wanted` [n, N, C], the block's present output is what it should put out. `arguments` are the family's block
    arguments, and `read` is as in `refit`.
    """
    seen: dict[str, Tensor] = {}
    fc2 = block.mlp.fc2
    moments = Moments.empty(fc2.in_features, fc2.out_features, tokens.device, read)
    outputs = []
    with hooks(
        block.norm2.register_forward_pre_hook(lambda _m, inputs: seen.update(residual=inputs[0])),
        fc2.register_forward_pre_hook(lambda _m, inputs: seen.update(hidden=inputs[0])),
    ):
        for start in range(0, len(tokens), CHUNK):
            output = block.forward(tokens[start : start + CHUNK], **arguments)  # without the hooks, which merge
            target = output if wanted is None else wanted[start : start + CHUNK]
            moments.add(seen["hidden"], (target - seen["residual"]) / _scale(block))
            outputs.append(output)
    return moments, torch.cat(outputs)


def _scale(block: TimmModule) -> Tensor | float:
    """LayerScale of the MLP branch, [C], or 1."""
    scale = mlp_scale(block)
    return 1.0 if scale is None else scale
