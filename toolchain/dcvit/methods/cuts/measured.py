"""What a cut of one block does to the outputs, by running the rest of the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dcvit.dense import SegmentationVit
from dcvit.families import Family
from dcvit.hardware import accelerator
from dcvit.layers import apply_merges
from dcvit.methods.cuts.scores import Score, logits_of
from dcvit.methods.cuts.wanted_tokens import CHUNK, first_tokens, through
from dcvit.types import TimmModule


@dataclass(frozen=True)
class Cut:
    """One change of one block.

    Attributes:
        width: Channels that heads keep, or nodes of the MLP; 0 of what goes.
    """

    block: int
    kind: Literal["attention", "mlp", "heads", "block"]
    width: int


@dataclass(frozen=True)
class Noted:
    """What is known of a cut's damage, in the unit of the score.

    Attributes:
        exact: As the rest of the network shows it; None where that did not run.
        predicted: From its own block; None where that was not needed.
    """

    exact: float | None = None
    predicted: float | None = None


def by_blocks(found: Mapping[Cut, Noted]) -> list[tuple[Cut, Noted]]:
    """Sorted by block; cuts of one block stay in their order, which is that of judging."""
    return sorted(found.items(), key=lambda each: each[0].block)


class MeasuredModel:
    """Scores cuts block by block, front to back; a cut changes nothing before it, so nothing is computed again.

    Args:
        teacher: The uncompressed model.
        family: How to reach the blocks.
        depth: Blocks of the model.
        score: Of its outputs.
        images: [S, C, H, W].

    Attributes:
        tokens: In front of the present block, [S, N, C].
        found: What was noted of each cut.
    """

    @torch.no_grad()
    def __init__(self, teacher: TimmModule, family: Family, depth: int, score: Score, images: Tensor) -> None:
        self.teacher, self.family, self.depth, self.score, self.images = teacher, family, depth, score, images
        self.arguments = family.block_arguments(teacher)
        self._wanted = logits_of(teacher, images)
        self.found: dict[Cut, Noted] = {}
        with accelerator().autocast():  # as `logits_of` does: the same rounding must not count as damage
            self.tokens = first_tokens(teacher, family, images)

    def measure(self, student: TimmModule, index: int) -> float:
        """Damage of a student in which the present block alone is another one; it is of no use afterwards."""
        return self.score.measure(self._outputs_from(student, index), self._wanted)

    def judge(self, student: TimmModule, cut: Cut) -> None:
        """Notes what a cut of the present block does."""
        self.found[cut] = Noted(exact=self.measure(student, cut.block))

    def advance(self, index: int) -> None:
        """Goes on to the block behind `index`."""
        self.tokens = self.behind(self.teacher, index, self.tokens)

    def damages(self) -> dict[Cut, float]:
        """Of all cuts that were judged, by blocks."""
        return {cut: noted.exact for cut, noted in by_blocks(self.found) if noted.exact is not None}

    @torch.no_grad()
    def behind(self, model: TimmModule, index: int, tokens: Tensor) -> Tensor:
        """What a model's block makes of tokens, with its merges."""
        block = self.family.block(model, index)
        with accelerator().autocast():
            return apply_merges(block, through(block, tokens, self.arguments))

    @torch.no_grad()
    def _outputs_from(self, model: TimmModule, index: int) -> Tensor:
        """Outputs of a model whose blocks from `index` on get the present tokens; those before are dropped.

        The model's own forward runs, on a shorter list of blocks, whatever it does around them. A segmentation head
        reads blocks, and what went through merges, from before the cut as well: there all of the model runs.
        """
        if isinstance(model, SegmentationVit):
            return logits_of(model, self.images)
        given = _Given()
        model.blocks = nn.Sequential(given, *list(model.blocks)[index:])
        device = next(model.parameters()).device
        outputs = []
        for chunk, given.tokens in zip(self.images.split(CHUNK), self.tokens.split(CHUNK), strict=True):
            with accelerator().autocast():
                outputs.append(model(chunk.to(device)).float().cpu())
        return torch.cat(outputs)


class _Given(nn.Module):
    """Stands in for blocks whose output is known."""

    tokens: Tensor

    def forward(self, _tokens: Tensor, **_arguments: Any) -> Tensor:
        return self.tokens
