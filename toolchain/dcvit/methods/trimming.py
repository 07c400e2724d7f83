"""A last block that works on the prefix tokens alone, where the head reads nothing else: no logit changes.

It is the only cut without damage, so it comes first. What reads patch tokens behind the last block finds none any more:
a backbone without a head keeps them, unless its user says otherwise.
"""

import torch

from dcvit.families import Family
from dcvit.model import build
from dcvit.plan import CompressionPlan
from dcvit.subject import Subject, original_of
from dcvit.types import TimmModule


def costs_nothing(subject: Subject) -> bool:
    """Whether the last block can be trimmed, and nobody but a classifier reads what is behind it."""
    lost = any(block.removed == "block" for block in subject.plan.blocks)  # it may be the last one
    if lost or subject.plan.head is not None or not subject.architecture.num_classes:
        return False
    return subject.family.cannot_trim(original_of(subject.plan)) is None


def trimmed(model: TimmModule, family: Family, plan: CompressionPlan) -> TimmModule:
    """The model with its last block trimmed, in place; of another plan nothing is done to it.

    Args:
        model: It follows the plan in all else.
        family: Its family.
        plan: Of the model to be.
    """
    if plan.trims_last_block:
        family.apply(model, plan.original().replace(trims_last_block=True))
    return model


def untrimmed(model: TimmModule, plan: CompressionPlan) -> TimmModule:
    """A copy whose last block works on all tokens again: the same weights, the same logits."""
    whole: TimmModule = build(plan.replace(trims_last_block=False))
    state, last = model.state_dict(), f"blocks.{len(whole.blocks) - 1}.attn."
    for kind in ("weight", "bias"):
        if f"{last}q.{kind}" in state:
            parts = [state.pop(f"{last}{part}.{kind}") for part in ("q", "kv")]
            state[f"{last}qkv.{kind}"] = torch.cat(parts)
    whole.load_state_dict(state)
    return whole.train(model.training)
