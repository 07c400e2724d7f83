"""A Vision Transformer, merged or not, as a source of feature maps."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dcvit.dense.unmerge import merge_steps, undo
from dcvit.errors import InputError
from dcvit.layers import merges_seen
from dcvit.layers.token_grid import patch_grid
from dcvit.plan import Unmerge
from dcvit.types import TimmModule

Indices = int | Sequence[int] | None
"""As in timm: the last n blocks, these blocks (negative ones count from the end), or None for all."""


class DenseBackbone(nn.Module):
    """Gives the outputs of chosen blocks as maps [B, C, H, W] on the full patch grid, whatever was merged before them.

    The blocks are run by timm's own `forward_intermediates`; only the merges are undone here.

    Args:
        model: A timm Vision Transformer, such as `dcvit.load(folder)` returns. Its images have one size (`img_size`).
        indices: The blocks whose output `forward` returns.
        norm: Apply the model's final norm to every map.
        unmerge: How merged tokens become a full map (`HeadPlan.unmerge`).

    Attributes:
        grid: Patch grid (H, W) of every map.
        reduction: Pixels (vertical, horizontal) of one patch.
        num_features: Channels C of every map.

    Raises:
        InputError: If the model is no Vision Transformer, or has no such block.
    """

    def __init__(
        self, model: TimmModule, indices: Indices = None, *, norm: bool = False, unmerge: Unmerge = "residual"
    ) -> None:
        super().__init__()
        if not isinstance(model, VisionTransformer):
            raise InputError(
                f"{type(model).__name__} merges no tokens; its own forward_intermediates gives maps of every stage"
            )
        self.model, self.norm, self.unmerge = model, norm, unmerge
        self.indices = block_indices(len(model.blocks), indices)
        self.grid: tuple[int, int] = patch_grid(model)
        self.reduction: tuple[int, int] = model.patch_embed.feat_ratio(as_scalar=False)
        self.num_features: int = model.embed_dim

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images [B, 3, H·p, W·p] to one map [B, C, H, W] for each chosen block, by ascending block."""
        maps: list[Tensor] = self.forward_intermediates(
            images, self.indices, norm=self.norm, stop_early=True, intermediates_only=True
        )
        return maps

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """What timm's method does, with its arguments and results, but with every intermediate on the full grid.

        Prefix tokens and the final features (of which a merged model has fewer) are as timm returns them.
        """
        chosen = block_indices(len(self.model.blocks), indices)
        normed: Callable[[Tensor], Tensor] = self.model.norm if norm else nn.Identity()
        with merges_seen(self.model) as seen:
            result = self.model.forward_intermediates(
                x,
                indices=chosen,
                return_prefix_tokens=return_prefix_tokens,
                stop_early=stop_early,
                output_fmt="NLC",
                intermediates_only=intermediates_only,
                output_dict=output_dict,
                attn_mask=attn_mask,
            )

        def one(entry: Any, block: int) -> Any:
            if isinstance(entry, tuple):  # with the block's prefix tokens
                return one(entry[0], block), *map(normed, entry[1:])
            tokens = undo(entry, merge_steps(self.model, block), self.unmerge, seen, normed)
            return tokens if output_fmt == "NLC" else as_map(tokens, self.grid)

        def restored(intermediates: list[Any]) -> list[Any]:
            return [one(entry, block) for entry, block in zip(intermediates, chosen, strict=True)]

        if output_dict:
            result["image_intermediates"] = restored(result["image_intermediates"])
            return result
        if intermediates_only:
            return restored(result)
        final, intermediates = result
        return final, restored(intermediates)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens [B, H·W, C] of a grid (H, W) as a map [B, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def block_indices(depth: int, indices: Indices) -> list[int]:
    """The blocks that timm's `indices` mean, counted from 0, ascending.

    Raises:
        InputError: If the model has no such block.
    """
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        if not 0 < indices <= depth:
            raise InputError(f"indices: a model of {depth} blocks has no last {indices}; give 1 to {depth}")
        return list(range(depth - indices, depth))
    if wrong := [index for index in indices if not -depth <= index < depth]:
        raise InputError(f"indices: there is no block {wrong[0]}; the {depth} blocks are numbered 0 to {depth - 1}")
    return sorted({index % depth for index in indices})
