"""The modules that a plan puts into a model."""

from dcvit.layers.attention_free_block import AttentionFreeBlock
from dcvit.layers.narrow import narrow_attention, narrow_mlp
from dcvit.layers.token_merge import TokenMerge, apply_merges, attach_merge, attach_size_bias, carry_merges

__all__ = [
    "AttentionFreeBlock",
    "TokenMerge",
    "apply_merges",
    "attach_merge",
    "attach_size_bias",
    "carry_merges",
    "narrow_attention",
    "narrow_mlp",
]
