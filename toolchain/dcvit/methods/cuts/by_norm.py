"""Cutting a model to a plan without data: the nodes and channels of the largest weight norms stay."""

import copy

import torch
from torch import Tensor

from dcvit.layers import narrow_attention, qkv_layers
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.subject import Subject
from dcvit.types import TimmModule


def cut_by_norm(subject: Subject, plan: CompressionPlan) -> TimmModule:
    """A copy of the subject's model that follows `plan`, which cuts more than the subject's own."""
    student = copy.deepcopy(subject.model)
    new = [_beyond(subject.plan.block(entry.index), entry) for entry in plan.blocks]
    new = [entry for entry in new if entry != BlockPlan(index=entry.index)]
    narrowed = {entry.index: entry.mlp_hidden for entry in new if entry.mlp_hidden is not None}
    ranking = NodeRanking(subject.model, subject.family, list(narrowed), "norm")
    kept = {index: ranking.best(index, width) for index, width in narrowed.items()}
    for entry in new:
        if entry.head_dim is not None:
            put_strongest_first(subject.family.block(student, entry.index).attn)
    changes = subject.plan.original().replace(blocks=tuple(new))
    if plan.merges != subject.plan.merges:
        merging = ("merges", "merge_operator", "size_aware_attention")
        changes = changes.replace(**{key: getattr(plan, key) for key in merging})
    if plan.trims_last_block != subject.plan.trims_last_block:
        changes = changes.replace(trims_last_block=True)
    subject.family.apply(student, changes, kept)
    return student


@torch.no_grad()
def put_strongest_first(attention: TimmModule) -> None:
    """Reorders the channels of each head, in place and at equal output, so that cutting the last ones hurts least.

    A channel of q and k counts as the product of the norms of its two rows, one of v as that of its row and its column
    of proj.
    """
    heads, width = attention.num_heads, attention.head_dim
    q, k, v = torch.cat([layer.weight for layer in qkv_layers(attention)]).norm(dim=1).view(3, heads, width)
    out = attention.proj.weight.norm(dim=0).view(heads, width)
    narrow_attention(attention, *(_descending(score) for score in (q * k, v * out)))


def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)


def _beyond(old: BlockPlan, new: BlockPlan) -> BlockPlan:
    """What of an entry the model does not have already."""
    same = {
        name: None for name in ("removed", "mlp_hidden", "head_dim") if getattr(old, name) == getattr(new, name)
    }  # fmt: skip
    return new.model_copy(update=same)
