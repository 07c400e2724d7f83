"""A last block that works on the prefix tokens alone, for heads that read nothing else: the same logits for less."""

import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.layers.attention_free_block import AttentionFreeBlock
from dcvit.layers.narrow import rows_of
from dcvit.layers.token_merge import carry_size_bias
from dcvit.types import TimmModule


class PrefixAttention(nn.Module):
    """timm's `Attention` with queries from the prefix tokens only; keys and values come from all tokens.

    Args:
        attention: Its weights are taken over; those of `qkv` are divided into `q` and `kv`.
        num_prefix_tokens: P.
    """

    def __init__(self, attention: TimmModule, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens, self.num_heads = num_prefix_tokens, attention.num_heads
        self.head_dim, self.scale, self.fused_attn = attention.head_dim, attention.scale, attention.fused_attn
        width = self.num_heads * self.head_dim
        self.q, self.kv = rows_of(attention.qkv, slice(width)), rows_of(attention.qkv, slice(width, None))
        self.q_norm, self.k_norm, self.attn_drop = attention.q_norm, attention.k_norm, attention.attn_drop
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        carry_size_bias(attention, self)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Maps tokens [B, N, C] to [B, P, C]; the mask is added to the logits [B, h, P, N]."""
        heads = (self.num_heads, self.head_dim)
        q = self.q_norm(self.q(x[:, : self.num_prefix_tokens]).unflatten(-1, heads).transpose(1, 2))
        k, v = self.kv(x).unflatten(-1, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        k = self.k_norm(k)
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1)
            logits = logits if attn_mask is None else logits + attn_mask
            mixed = self.attn_drop(logits.softmax(-1)) @ v
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class PrefixBlock(nn.Module):
    """A pre-norm block of timm that maps tokens [B, N, C] to the prefix tokens [B, P, C] behind it, exactly.

    No token behind the prefix can reach the head any more, so queries, the projection and the MLP skip them.

    Args:
        block: Its modules are taken over under their own names; its attention may be gone.
        num_prefix_tokens: P.
    """

    def __init__(self, block: TimmModule, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        if not isinstance(block, AttentionFreeBlock):
            self.norm1, self.ls1, self.drop_path1 = block.norm1, block.ls1, block.drop_path1
            self.attn = PrefixAttention(block.attn, num_prefix_tokens)
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Maps tokens [B, N, C] to [B, P, C]."""
        prefix = x[:, : self.num_prefix_tokens]
        if hasattr(self, "attn"):
            prefix = prefix + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        return prefix + self.drop_path2(self.ls2(self.mlp(self.norm2(prefix))))
