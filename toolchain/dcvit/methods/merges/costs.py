"""MACs of a model under any merge schedule, without counting each one anew."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dcvit.cost import count_macs
from dcvit.families import Family
from dcvit.layers import PrefixBlock
from dcvit.layers.token_grid import TokenGrid
from dcvit.model import build
from dcvit.plan import CompressionPlan, MacsConvention, Merge
from dcvit.subject import original_of
from dcvit.types import TimmModule


class MergeCosts:
    """What merging saves.

    Args:
        model: Follows the plan.
        family: Of the model.
        plan: What the model is; nothing merges in it yet. Its merge operator is that of the schedules.
        convention: How MACs are counted.

    Attributes:
        grid: Patch grid (H, W).
        depth: Blocks.
        classes: Of the logits; fewer than two where the model gives features.
        total: MACs of the unmerged model.

    Raises:
        InputError: If the architecture cannot merge.
    """

    def __init__(self, model: TimmModule, family: Family, plan: CompressionPlan, convention: MacsConvention) -> None:
        self._family, self._plan, self._convention = family, plan, convention
        self._original = original_of(plan)
        architecture = family.architecture(self._original)
        self.grid, self.depth = architecture.grid, architecture.depth
        axis = "horizontal" if self.grid[1] > 1 else "vertical"
        probe = (Merge.model_validate({"after": 1, "axis": axis}),)
        family.check(self._original, plan.replace(merges=probe))
        self._blocks = [_BlockCost.of(family.block(model, index), convention) for index in range(self.depth)]
        self.classes = architecture.num_classes if plan.head is None else plan.head.num_classes
        self._dim = architecture.blocks[0].embed_dim
        self._reductions: dict[tuple[Merge, ...], float] = {}
        self._tail = 0.0
        """MACs of one token behind the blocks: a final norm or attention pooling works on what merging leaves."""

        def count(merges: tuple[Merge, ...]) -> int:
            merged = plan.replace(merges=merges)
            return count_macs(build(merged, device="meta"), architecture.input_size, convention).total

        self.total = count(())
        gone = self._tokens(())[-1] - self._tokens(probe)[-1]
        self._tail = (self.total - count(probe) - self.saved(probe)) / gone

    def saved(self, merges: Sequence[Merge]) -> float:
        """MACs that a schedule saves; negative if merging costs more."""
        before, after = self._tokens(()), self._tokens(merges)
        blocks = sum(
            cost.macs(old) - cost.macs(new) for cost, old, new in zip(self._blocks, before, after, strict=True)
        )
        return blocks + self._tail * (before[-1] - after[-1]) - self._merging(merges)

    def reduction(self, merges: tuple[Merge, ...]) -> float:
        """The same as a share of the unmerged model's MACs."""
        if merges not in self._reductions:
            self._reductions[merges] = self.saved(merges) / self.total
        return self._reductions[merges]

    def _tokens(self, merges: Sequence[Merge]) -> list[int]:
        """In front of each block, and behind the last one, which no merge stands behind."""
        return self._family.tokens(self._original, self._plan.replace(merges=tuple(merges)))

    def _merging(self, merges: Sequence[Merge]) -> int:
        """MACs of the merges themselves: a linear one maps each pair; the `dcvit` convention knows no such layer."""
        if self._plan.merge_operator == "mean" or self._convention == "dcvit":
            return 0
        grid, macs = TokenGrid.unmerged(self.grid), 0
        for merge in merges:
            grid = grid.merged(merge.axis)
            macs += len(grid.sizes) * 2 * self._dim**2
        return macs


@dataclass(frozen=True)
class _BlockCost:
    """MACs of a block: for each token, and for each pair of tokens."""

    token: int
    pair: int

    @classmethod
    def of(cls, block: TimmModule, convention: MacsConvention) -> "_BlockCost":
        if isinstance(block, PrefixBlock):  # all but its keys and values is of the prefix tokens, which never merge
            if not hasattr(block, "attn"):
                return cls(0, 0)
            products = block.num_prefix_tokens * block.attn.kv.out_features  # QKᵀ and AV of the prefix's queries
            norm = 4 * block.norm1.normalized_shape[0]
            return cls(block.attn.kv.weight.numel() + (products if convention == "full" else norm), 0)
        token = sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear))
        attention = getattr(block, "attn", None)
        if convention == "full":
            return cls(token, 0 if attention is None else 2 * attention.num_heads * attention.head_dim)
        norms = {name: layer for name, layer in block.named_modules() if isinstance(layer, nn.LayerNorm)}
        for name, layer in norms.items():
            heads = attention.num_heads if attention is not None and name.startswith("attn.") else 1
            token += 4 * heads * layer.normalized_shape[0]
        return cls(token, 0)

    def macs(self, tokens: int) -> int:
        return self.token * tokens + self.pair * tokens**2
