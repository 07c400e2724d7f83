"""Cutting a transformer block by block, each refitted in closed form to what the teacher's block puts out.

Each block is fitted on the tokens that the already cut blocks give it, so it makes up for their errors too.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from timm.layers import LayerScale
from torch import Tensor

from dcvit.families import Family
from dcvit.layers import apply_merges
from dcvit.methods.least_squares import Moments, fit_output_layer
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.progress import track
from dcvit.types import TimmModule

Piece = Literal["refit", "absorption", "propagation"]
"""Of the surgery: fc2's closed-form fit, the mean of a removed attention put into the block before, and fitting each
block on the tokens that the cut blocks before it give rather than on the teacher's."""

CHUNK = 64
"""Images that pass through a block at once."""


@torch.no_grad()
def first_tokens(model: TimmModule, family: Family, images: Tensor) -> Tensor:
    """The tokens [n, N, C] in front of block 0."""
    seen: list[Tensor] = []
    device = next(model.parameters()).device
    with _hooks(family.block(model, 0).register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0]))):
        for chunk in images.split(CHUNK):
            model(chunk.to(device))
    return torch.cat(seen)


@torch.no_grad()
def operate(
    student: TimmModule,
    teacher: TimmModule,
    family: Family,
    start: CompressionPlan,
    entries: Sequence[BlockPlan],
    orders: dict[int, Tensor],
    images: Tensor,
    *,
    without: Collection[Piece] = (),
) -> None:
    """Cuts the blocks of `entries` in the student, in place, front to back.

    Args:
        student: Equal to the teacher, or the teacher with merged tokens.
        teacher: Gives the wanted output of each block.
        family: How to reach the blocks.
        start: The plan that the teacher follows.
        entries: What becomes of each block.
        orders: For each block that is narrowed, its MLP's nodes [M], the ones to go first in front.
        images: Calibration images [n, C, H, W].
        without: Pieces to leave out, for ablations.
    """
    by_index = {entry.index: entry for entry in entries}
    wanted = tokens = first_tokens(teacher, family, images)
    for index in track(range(max(by_index, default=-1) + 1), "fitting blocks"):
        original = family.block(teacher, index)
        entry = by_index.get(index)
        if entry is not None:
            if "absorption" not in without and entry.removed == "attention" and index > 0:
                tokens = absorb_attention(family.block(student, index - 1), original, wanted, tokens)
            kept = {}
            if entry.mlp_hidden is not None:
                kept[index] = best_nodes(orders[index], entry.mlp_hidden)
            family.apply(student, start.original().with_blocks(entry), kept)
        output = through(original, wanted)
        block = family.block(student, index)
        if entry is not None and "refit" not in without and entry.removed != "block":
            seen = wanted if "propagation" in without else tokens
            refit_output_layer(block, observe(block, seen, output)[0])
        tokens = apply_merges(block, through(block, tokens))
        wanted = apply_merges(original, output)


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
    fc2.bias.copy_(bias)


@torch.no_grad()
def absorb_attention(before: TimmModule, block: TimmModule, wanted: Tensor, tokens: Tensor) -> Tensor:
    """Lets the block before add what the attention of `block` adds on average; returns the tokens with it."""
    if not hasattr(before, "mlp"):
        return tokens
    total = torch.zeros(wanted.shape[-1], dtype=torch.float64, device=wanted.device)
    for chunk in wanted.split(CHUNK):
        total += block.ls1(block.attn(block.norm1(chunk))).double().flatten(0, 1).sum(0)
    mean = (total / (wanted.shape[0] * wanted.shape[1])).to(wanted.dtype)
    before.mlp.fc2.bias += mean / _scale(before)
    return tokens + mean


@torch.no_grad()
def observe(block: TimmModule, tokens: Tensor, wanted: Tensor | None) -> tuple[Moments, Tensor]:
    """Moments of the inputs of fc2 and of what fc2 should put out, and the block's output before any merge.

    Without `wanted` [n, N, C], the block's present output is what it should put out.
    """
    seen: dict[str, Tensor] = {}
    fc2 = block.mlp.fc2
    moments = Moments.empty(fc2.in_features, fc2.out_features, tokens.device)
    outputs = []
    with _hooks(
        block.norm2.register_forward_pre_hook(lambda _m, inputs: seen.update(residual=inputs[0])),
        fc2.register_forward_pre_hook(lambda _m, inputs: seen.update(hidden=inputs[0])),
    ):
        for start in range(0, len(tokens), CHUNK):
            output = block.forward(tokens[start : start + CHUNK])  # without the hooks, which merge
            target = output if wanted is None else wanted[start : start + CHUNK]
            moments.add(seen["hidden"], (target - seen["residual"]) / _scale(block))
            outputs.append(output)
    return moments, torch.cat(outputs)


@torch.no_grad()
def through(block: TimmModule, tokens: Tensor) -> Tensor:
    """The block's output [n, N, C] for tokens [n, N, C], before any merge."""
    return torch.cat([block.forward(chunk) for chunk in tokens.split(CHUNK)])


def _scale(block: TimmModule) -> Tensor | float:
    """LayerScale of the MLP branch, [C], or 1."""
    return block.ls2.gamma if isinstance(block.ls2, LayerScale) else 1.0


@contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
