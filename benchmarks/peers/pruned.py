"""DeiT narrowed by Torch-Pruning (arXiv 2301.12900) through its public interface: a baseline to compare with.

Heads and MLPs become narrower, by the same share everywhere, least norm first; the embedding width stays, as in our own
pruning. Install it with `pip install 'dcvit-tool[bench]'`.
"""

import copy
import warnings

import torch

from dcvit.errors import InputError
from dcvit.types import TimmModule


def prune(model: TimmModule, share: float, *, round_to: int | None = None) -> TimmModule:
    """A copy of a timm `VisionTransformer` without a share of each head's channels and of each MLP's nodes.

    Args:
        model: On the CPU; its `patch_embed.img_size` is that of the example that its layers are traced with.
        share: Of the channels and nodes, to be removed.
        round_to: Widths are multiples of this.

    Raises:
        InputError: If Torch-Pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise InputError("torch-pruning is not installed; `pip install 'dcvit-tool[bench]'`") from error
    student = copy.deepcopy(model).requires_grad_(True)  # it follows the layers through autograd's graph
    attentions = [block.attn for block in student.blocks]
    fused = [attention.fused_attn for attention in attentions]
    for attention in attentions:
        attention.fused_attn = False  # whose graph it does not see through
    whole = [student.patch_embed.proj, student.head]  # the embedding width, and the classes
    whole += [layer for block in student.blocks for layer in (block.attn.proj, block.mlp.fc2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parameters that belong to no layer, and stay
        pruner = torch_pruning.pruner.BasePruner(
            student,
            torch.randn(1, 3, *student.patch_embed.img_size),
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=share,
            ignored_layers=whole,
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
            prune_head_dims=True,
            round_to=round_to,
        )
        pruner.step()
    for attention, was_fused in zip(attentions, fused, strict=True):
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
        attention.scale = attention.head_dim**-0.5
        attention.fused_attn = was_fused
    return student.requires_grad_(False).eval()
