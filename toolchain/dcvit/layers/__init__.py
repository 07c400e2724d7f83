"""The modules that a plan puts into a model."""

from dcvit.layers.attention_free_block import AttentionFreeBlock
from dcvit.layers.layer_scale import mlp_scale
from dcvit.layers.mlp import cannot_narrow, hidden_width, input_weights
from dcvit.layers.narrow import can_narrow_heads, narrow_attention, narrow_mlp, qkv_layers
from dcvit.layers.prefix_block import PrefixBlock
from dcvit.layers.removed_block import RemovedBlock
from dcvit.layers.token_merge import (
    Merged,
    TokenMerge,
    apply_merges,
    attach_merge,
    attach_size_bias,
    carry_merges,
    merges_seen,
)

__all__ = [
    "AttentionFreeBlock",
    "Merged",
    "PrefixBlock",
    "RemovedBlock",
    "TokenMerge",
    "apply_merges",
    "attach_merge",
    "attach_size_bias",
    "can_narrow_heads",
    "cannot_narrow",
    "carry_merges",
    "hidden_width",
    "input_weights",
    "merges_seen",
    "mlp_scale",
    "narrow_attention",
    "narrow_mlp",
    "qkv_layers",
]
