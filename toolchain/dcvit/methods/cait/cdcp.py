"""Consistent dynamic channel pruning (CAIT, arXiv 2309.15755, with the compactors of ResRep, 2007.03260).

A unit of an attention is one channel of q and k and one of v in every head, so that every head keeps the same number
and the pruned block is a plain timm attention; a unit of an MLP is a hidden node. A unit's importance is the Fisher
information of a gate on it, E[(∂L/∂gate)²]: to second order the loss that its removal costs, in one unit for heads and
nodes of all blocks. It adds up over units, so that importance a MAC can rank chunks of any size (Fisher pruning, Theis
et al., 1801.05787). Row norms alone could not tell units apart at the start, where every row of a compactor has norm 1.
"""

import logging
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.hardware import accelerator
from dcvit.layers import hidden_width
from dcvit.methods.cait.compacted import CompactedLayer
from dcvit.methods.cait.prunable import choose_units, most_macs, prunable_layers
from dcvit.methods.cait.settings import CdcpSettings
from dcvit.methods.target import Target
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.types import TimmModule

log = logging.getLogger(__name__)


class ChannelPruning:
    """Narrows heads and MLPs of a student while it trains (a `dcvit.training.pruner.Pruner`).

    Compactors are put behind q, k, v and fc1 in place; the student's outputs stay what they were. While it trains, the
    rows of units that are masked get no gradient and shrink; units are re-ranked from scratch, so a masked one whose
    row still matters returns. `fold` leaves plain, narrower timm layers.

    Args:
        student: Follows the plan; a Vision Transformer.
        family: Of the student.
        plan: What the student is: merges, attention-free blocks and widths so far.
        target: How wide heads and MLPs may become, and how MACs are counted.
        macs_to_save: MACs that the narrowed student has to cost less.
        settings: When and how fast.

    Raises:
        InputError: If the architecture cannot be narrowed, or as many MACs cannot be saved.
    """

    def __init__(
        self,
        student: TimmModule,
        family: Family,
        plan: CompressionPlan,
        target: Target,
        *,
        macs_to_save: float,
        settings: CdcpSettings | None = None,
    ) -> None:
        self.student, self.family, self.plan = student, family, plan
        self.macs_to_save, self.settings = macs_to_save, settings or CdcpSettings()
        self._multiple = target.width_multiple
        self.largest_cut = 0.0
        """Largest norm of a row that the last fold cut; 0 if every masked row had vanished."""
        layers = prunable_layers(
            student,
            family,
            plan,
            multiple=target.width_multiple,
            keep_heads=target.keep_heads,
            min_head_dim=target.min_head_dim,
            min_mlp_hidden=self.settings.min_mlp_hidden,
            macs_convention=target.macs_convention,
        )
        if macs_to_save > (most := most_macs(layers)):
            raise InputError(
                f"channel pruning cannot save {macs_to_save / 1e6:.1f} M MACs: with every head and MLP of this plan "
                f"at its least width it saves {most / 1e6:.1f} M"
            )
        self._compacted = [CompactedLayer.attach(layer, family.block(student, layer.block)) for layer in layers]

    @property
    def no_weight_decay(self) -> frozenset[str]:
        """The compactors: decay would shrink every row, masked or not."""
        compactors = {id(each.linear(block).compactor) for each, block in self._with_blocks()}
        return frozenset(name for name, tensor in self.student.named_parameters() if id(tensor) in compactors)

    @property
    def macs_saved(self) -> int:
        """MACs that the masked units cost."""
        return sum(each.layer.macs * (each.layer.width - each.width) for each in self._compacted)

    def before_step(self) -> None:
        """Notes what the gradients say about each unit, then drops those of masked rows."""
        for each, block in self._with_blocks():
            each.note_and_drop_gradients(block)

    def after_step(self, step: int, steps: int, lr: float) -> None:  # noqa: ARG002 (see `CdcpSettings.shrink`)
        """Shrinks masked rows by a proximal step, and now and then masks other units."""
        for each, block in self._with_blocks():
            each.shrink(block, self.settings.shrink / steps, self.settings.vanish_norm)
        if self.settings.ranks_after(step + 1, steps):
            self._mask(self.macs_to_save * self.settings.goal(step + 1, steps))

    def widths(self) -> dict[str, list[int]]:
        """Channels a head (`head_dim`) and nodes an MLP (`mlp_hidden`) still has, by block; 0 where there is none."""
        found: dict[str, list[int]] = {"head_dim": [], "mlp_hidden": []}
        for index in range(len(self.student.blocks)):
            block = self.family.block(self.student, index)
            found["head_dim"].append(block.attn.head_dim if hasattr(block, "attn") else 0)
            found["mlp_hidden"].append(hidden_width(block.mlp) if hasattr(block, "mlp") else 0)
        for each in self._compacted:
            found[each.layer.kind][each.layer.block] = each.width
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Masks and sensitivities of every compacted layer; the compactors are among the student's weights."""
        return {
            f"{each.name}.{key}": tensor.detach().cpu()
            for each in self._compacted
            for key, tensor in (("mask", each.mask), ("sensitivity", each.sensitivity))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a saved state back."""
        for each in self._compacted:
            each.mask, each.sensitivity = state[f"{each.name}.mask"], state[f"{each.name}.sensitivity"].clone()

    def fold(self) -> tuple[BlockPlan, ...]:
        """Folds the student; see `fold_into`."""
        return self.fold_into(self.student)

    def fold_into(self, model: TimmModule) -> tuple[BlockPlan, ...]:
        """Replaces the compacted layers of the student, or of a copy such as its moving average, by plain narrow ones.

        The rows that stay are folded exactly; masked ones are cut, and `largest_cut` says how much of them was left.
        Where training ended before the target was met, the rest is cut here.

        Returns:
            The plan's entries of the blocks that have become narrower.
        """
        if self.macs_saved < self.macs_to_save:
            self._mask(self.macs_to_save)
        entries: dict[int, BlockPlan] = {}
        largest = 0.0
        for each in self._compacted:
            largest = max(largest, each.fold(self.family.block(model, each.layer.block)))
            if each.width < each.layer.width:
                entry = entries.get(each.layer.block, self.plan.block(each.layer.block))
                entries[each.layer.block] = entry.model_copy(update={each.layer.kind: each.width})
        self.largest_cut = largest
        if largest > self.settings.vanish_norm:
            log.warning("rows of norm up to %.3g had not vanished and were cut", largest)
        return tuple(entries.values())

    def _with_blocks(self) -> list[tuple[CompactedLayer, TimmModule]]:
        """Every compacted layer and the student's block that it is in."""
        return [(each, self.family.block(self.student, each.layer.block)) for each in self._compacted]

    def _mask(self, macs: float) -> None:
        """Ranks all units from scratch and masks the least important ones that cost at least `macs`."""
        importance = self._importance()
        layers = [each.layer for each in self._compacted]
        scores = [each.sort(-1).values.sum((0, 1)) for each in importance]
        counts = choose_units(layers, scores, macs, self._multiple)
        for each, score, count in zip(self._compacted, importance, counts, strict=True):
            least = score.argsort(dim=-1, stable=True)[..., :count]
            each.mask = torch.zeros(score.shape, dtype=torch.bool).scatter_(-1, least, True)

    def _importance(self) -> list[Tensor]:
        """[parts, heads, width] of each layer, equal in all processes."""
        learned = any(bool(each.sensitivity.any()) for each in self._compacted)
        found = [
            (each.importance(block) if learned else each.weight_norms(block)).cpu()
            for each, block in self._with_blocks()
        ]
        if accelerator().num_processes > 1:  # a last digit that differs must not give them different masks
            found = broadcast_object_list(found)
        return found
