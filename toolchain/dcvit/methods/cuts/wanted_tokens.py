"""What a refit aims at: the tokens that the teacher's blocks put out on the calibration images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dcvit.families import Family
from dcvit.layers import apply_merges
from dcvit.types import TimmModule

CHUNK = 64
"""Images that pass through a block at once."""

MAX_BYTES = 2 << 30
"""Tokens beyond this are computed anew for each student rather than kept."""


class WantedTokens:
    """The teacher's tokens block by block, computed once for all students while they fit in memory.

    Args:
        teacher: With the students' merges, so that the tokens correspond.
        family: How to reach the blocks.
        images: Calibration images [n, C, H, W].
    """

    def __init__(self, teacher: TimmModule, family: Family, images: Tensor) -> None:
        self.teacher, self.family, self.images = teacher, family, images
        self._outputs: list[Tensor] = []

    @cached_property
    def first(self) -> Tensor:
        """The tokens [n, N, C] in front of block 0."""
        return first_tokens(self.teacher, self.family, self.images)

    @cached_property
    def read(self) -> int:
        """Tokens that the head alone reads."""
        return read_tokens(self.teacher, self.family)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """What every block gets beside the tokens."""
        return self.family.block_arguments(self.teacher)

    def outputs(self, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of the first `depth` blocks: its input and its output before any merge, [n, N, C] both."""
        tokens = self.first
        keep = tokens.numel() * tokens.element_size() * depth <= MAX_BYTES
        for index in range(depth):
            block = self.family.block(self.teacher, index)
            output = self._outputs[index] if index < len(self._outputs) else through(block, tokens, self.arguments)
            if keep and index == len(self._outputs):
                self._outputs.append(output)
            yield tokens, output
            tokens = apply_merges(block, output)


class EnoughError(Exception):
    """All that was wanted of a forward pass is there."""


def read_tokens(model: TimmModule, family: Family) -> int:
    """How many tokens, the first ones, are all that the model's head reads; 0 where it reads the others too."""
    return int(model.num_prefix_tokens) if family.cannot_trim(model) is None else 0


@torch.no_grad()
def first_tokens(model: TimmModule, family: Family, images: Tensor) -> Tensor:
    """The tokens [n, N, C] in front of block 0."""
    seen: list[Tensor] = []
    device = next(model.parameters()).device

    def note(_block: TimmModule, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise EnoughError

    with hooks(family.block(model, 0).register_forward_pre_hook(note)):
        for chunk in images.split(CHUNK):
            with suppress(EnoughError):  # the blocks need not run
                model(chunk.to(device))
    return torch.cat(seen)


@torch.no_grad()
def through(block: TimmModule, tokens: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The block's output [n, N, C] for tokens [n, N, C] and the family's block arguments, before any merge."""
    return torch.cat([block.forward(chunk, **arguments) for chunk in tokens.split(CHUNK)])


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Takes the handles off at the end of a block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
