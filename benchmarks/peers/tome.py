"""Token merging by similarity, written from its paper (ToMe, arXiv 2210.09461): a baseline to compare with.

In every block, between attention and MLP: the tokens are split alternately into two sets; each token of the first one
draws an edge to the token of the second one whose key (mean over heads) is most similar; the r most similar pairs merge
by the mean, weighted by how many patches each token stands for. A token of size s gets + log s on the attention logits
of its key ("proportional attention"). The class token never merges.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcvit.types import TimmModule


class ToMe(nn.Module):
    """A timm `VisionTransformer` in which every block merges r tokens, or as many as it can.

    Args:
        model: Its weights are copied.
        r: Tokens that each block has fewer than the one before; where it is no whole number, the mean over blocks.
    """

    def __init__(self, model: TimmModule, r: float) -> None:
        super().__init__()
        self.model, self.r = copy.deepcopy(model), r

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        model = self.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        sizes = torch.ones_like(x[..., :1])
        for index, block in enumerate(model.blocks):
            attended, keys = _attention(block.attn, block.norm1(x), sizes)
            x = x + block.drop_path1(block.ls1(attended))
            x, sizes = _merge(x, sizes, keys, round(self.r * (index + 1)) - round(self.r * index))
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return model.forward_head(model.norm(x))


def _attention(attention: TimmModule, x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Proportional attention; also the mean key of each token, [B, N, d]."""
    batch, tokens, _ = x.shape
    q, k, v = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    logits = (q * attention.scale) @ k.transpose(-2, -1) + sizes.log()[:, None, None, :, 0]
    out = logits.softmax(-1).to(v.dtype) @ v
    return attention.proj(out.transpose(1, 2).flatten(2)), k.mean(1)


def _merge(x: Tensor, sizes: Tensor, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """r tokens fewer: [B, N, C] and [B, N, 1] to [B, N − r, C] and [B, N − r, 1]."""
    r = min(r, (x.shape[1] - 1) // 2)
    if r <= 0:
        return x, sizes
    with torch.no_grad():
        metric = F.normalize(keys.float(), dim=-1)
        similarity = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        class_token = torch.zeros_like(similarity[:, :, :1])
        class_token[:, 0] = -torch.inf
        best, partner = (similarity + class_token).max(-1)
        order = best.argsort(-1, descending=True)
        merged = order[:, :r]
        kept = order[:, r:].sort(-1).values
        into = partner.gather(1, merged)
    weighted = torch.cat([x * sizes, sizes], dim=-1)
    first, second = weighted[:, ::2], weighted[:, 1::2]
    width = weighted.shape[-1]
    moved = first.gather(1, merged[..., None].expand(-1, -1, width))
    stay = first.gather(1, kept[..., None].expand(-1, -1, width))
    second = second.scatter_add(1, into[..., None].expand(-1, -1, width), moved)
    weighted = torch.cat([stay, second], dim=1)
    sizes = weighted[..., -1:]
    return weighted[..., :-1] / sizes, sizes
