"""A timm Vision Transformer that predicts a class for every pixel, with merging undone in front of its head."""

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dcvit.dense.backbone import as_map
from dcvit.dense.head import SegmentationHead, head_levels
from dcvit.dense.unmerge import merge_steps, undo
from dcvit.errors import InputError
from dcvit.layers import Merged, merges_seen
from dcvit.layers.token_grid import patch_grid
from dcvit.plan import HeadPlan
from dcvit.types import TimmModule


class SegmentationVit(VisionTransformer):
    """timm's model and its weights' names, but for `head`, which gives class scores [B, classes, height, width].

    `attach_head` makes one of a classifier. All that timm and this package know about a Vision Transformer holds for
    it; merges are looked up in its blocks when it runs.
    """

    head: SegmentationHead

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Class scores [B, classes, height, width] of images [B, 3, height, width]."""
        with merges_seen(self) as seen:
            levels = self.forward_intermediates(
                x, indices=self.head.levels, output_fmt="NLC", intermediates_only=True, attn_mask=attn_mask
            )
        scores: Tensor = self.head(self._maps(levels, seen))
        return scores

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens after the final norm, [B, N, C], and class scores of every patch, [B, classes, H, W]."""
        with merges_seen(self) as seen:
            tokens, levels = self.forward_intermediates(images, indices=self.head.levels, output_fmt="NLC")
        return self.fc_norm(tokens), self.head.of_patches(self._maps(levels, seen))

    def _maps(self, levels: Sequence[Tensor], seen: Sequence[Merged]) -> list[Tensor]:
        maps = []
        for block, tokens in zip(self.head.levels, levels, strict=True):
            restored = undo(tokens, merge_steps(self, block), self.head.plan.unmerge, seen, self._normed)
            maps.append(as_map(restored, self.patch_embed.grid_size))
        return maps

    def _normed(self, tokens: Tensor) -> Tensor:
        """With average pooling timm keeps the final norm in `fc_norm`; the other of the two is the identity."""
        normed: Tensor = self.fc_norm(self.norm(tokens))
        return normed

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Not for a head that may read several blocks: call the model itself."""
        raise NotImplementedError("a segmentation head reads maps of blocks; call the model, or a DenseBackbone")


_KINDS: dict[Any, type[SegmentationVit]] = {VisionTransformer: SegmentationVit}


def _segmenting(kind: type) -> type[SegmentationVit]:
    """The class that predicts pixels and is otherwise `kind` (DeiT's distilled model embeds positions its own way)."""
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Segmentation{kind.__name__}", (SegmentationVit, kind), {})
    return _KINDS[kind]


def attach_head(model: TimmModule, head: HeadPlan) -> SegmentationVit:
    """Turns a classifier into a segmentation model, in place; the classifier's head goes, the new one is random.

    Raises:
        InputError: If the model is no Vision Transformer, pads its images, or has not the blocks that the head reads.
    """
    if not isinstance(model, VisionTransformer) or isinstance(model, SegmentationVit):
        raise InputError(
            f"segmentation needs a Vision Transformer of timm (vit_*, deit_*, deit3_*), not {type(model).__name__}"
        )
    if patch_grid(model) != tuple(model.patch_embed.grid_size):
        raise InputError(
            "segmentation: dynamic_img_pad adds a border that is no part of the image; give another img_size"
        )
    pooling = "avg" if model.attn_pool is not None else None  # whose layer goes with the classifier
    model.reset_classifier(0, *([] if pooling is None else [pooling]))
    patches = model.patch_embed
    try:
        levels = head_levels(head, len(model.blocks))
        new = SegmentationHead(model.embed_dim, patches.grid_size, patches.img_size, head, levels)
    except ValueError as error:
        raise InputError(f"segmentation head: {error}") from error
    weight = next(model.parameters())
    model.head = new.to(weight.device, weight.dtype)
    model.num_classes = head.num_classes
    # No factory of timm takes a class to build, and the instance is complete: only its forward changes.
    model.__class__ = _segmenting(type(model))
    model.train(model.training)
    return model
