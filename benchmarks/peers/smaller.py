"""timm's own smaller DeiTs, started from the weights of a whole one: with fewer blocks, or with fewer channels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.plan import BlockPlan
from dcvit.subject import Subject
from dcvit.types import TimmModule


def evenly(blocks: int, kept: int) -> list[int]:
    """Indices of the blocks that stay, at equal distances, the first and the last among them; kept ≥ 2."""
    return [index * (blocks - 1) // (kept - 1) for index in range(kept)]


def first_and_last(blocks: int, kept: int) -> list[int]:
    """Indices of the blocks that stay: the first ones, and the last one."""
    return [*range(kept - 1), blocks - 1]


def start_shallower(model: TimmModule, small: TimmModule, kept: Sequence[int]) -> TimmModule:
    """Gives `small`, a `VisionTransformer` that differs in depth alone, the weights of `model`; returns it.

    Args:
        model: Whose blocks `kept` stay.
        small: Changed in place; of as many blocks.
    """
    for name, part in small.named_children():
        if name != "blocks":
            part.load_state_dict(getattr(model, name).state_dict())
    for name, parameter in small.named_parameters(recurse=False):  # class token and position embedding
        parameter.data.copy_(getattr(model, name))
    for block, index in zip(small.blocks, kept, strict=True):
        block.load_state_dict(model.blocks[index].state_dict())
    return small


@torch.no_grad()
def start_narrower(subject: Subject, small: TimmModule) -> TimmModule:
    """Gives `small`, a `VisionTransformer` that differs in its widths alone, weights of the subject; returns it.

    Heads and MLPs keep their channels of the largest norm, block by block (`cut_by_norm`); the embedding keeps, for the
    whole model, those whose weights have the largest norm together: all rows and columns that write or read them.

    Args:
        subject: With as many blocks and heads as `small`.
        small: Changed in place.
    """
    widths = {"head_dim": small.blocks[0].attn.head_dim, "mlp_hidden": small.blocks[0].mlp.fc1.out_features}
    blocks = [BlockPlan(index=index, **widths) for index in range(len(small.blocks))]
    weights = cut_by_norm(subject, subject.plan.original().with_blocks(*blocks)).state_dict()
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    kept = _strongest(weights, shapes, small.embed_dim)
    for name, shape in shapes.items():
        for axis in _cut_axes(weights[name], shape):
            weights[name] = weights[name].index_select(axis, kept)
    small.load_state_dict(weights)
    return small


def _cut_axes(tensor: Tensor, shape: torch.Size) -> list[int]:
    return [axis for axis, (before, after) in enumerate(zip(tensor.shape, shape, strict=True)) if before != after]


def _strongest(weights: dict[str, Tensor], shapes: dict[str, torch.Size], width: int) -> Tensor:
    """Indices [C'] of the embedding channels that stay, ascending."""
    squares = [
        tensor.movedim(axis, 0).flatten(1).square().sum(1)
        for name, tensor in weights.items()
        if tensor.ndim > 1
        for axis in _cut_axes(tensor, shapes[name])
    ]
    return torch.stack(squares).sum(0).argsort(descending=True, stable=True)[:width].sort().values
