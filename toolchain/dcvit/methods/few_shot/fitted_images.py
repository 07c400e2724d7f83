"""What refits are made on: the few images and, where these are too few for the least squares, views of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dcvit.data import FewShot
from dcvit.families import BlockSpec
from dcvit.preprocessing import Preprocessing
from dcvit.progress import track

TOKENS_A_NODE = 40
"""Tokens that a fit should see for each hidden node of an MLP. With fewer, what it learns of the images by heart
costs more than the ridge can save; views of the same images are then worth nearly as much as others."""

MAX_VIEWS = 16
"""Of each image, itself included."""

MAX_TOKENS = 70_000
"""With views, so that a fit stays cheap beside the examination: 355 images of 197 tokens."""

MAX_BYTES, BYTES = 512 << 20, 4
"""Of the tokens in front of a block, which take no more with views, and of one number."""


def views_needed(images: int, tokens: Sequence[int], blocks: Sequence[BlockSpec]) -> int:
    """How many views of each image, itself included, the fits of these blocks should see.

    Args:
        images: How many there are.
        tokens: Of an image in front of each block, N.
        blocks: Their widths.
    """
    enough = max(block.mlp_hidden / number for number, block in zip(tokens, blocks, strict=True)) * TOKENS_A_NODE
    largest = max(number * block.embed_dim for number, block in zip(tokens, blocks, strict=True)) * BYTES
    most = min(MAX_BYTES // (images * largest), MAX_TOKENS // (images * min(tokens)), MAX_VIEWS)
    return max(1, min(math.ceil(enough / images), most))


def with_views(images: Tensor, few_shot: FewShot, preprocessing: Preprocessing, views: int, seed: int) -> Tensor:
    """The images [n, C, H, W] behind augmented views of them, `views` of each in all.

    Every second image, counted through all of them, belongs to one half, on which the ridge is chosen: all views of an
    image stand in the same one. Of an odd number the last image has no view.
    """
    if views == 1:
        return images
    even = len(images) // 2 * 2
    made = [few_shot.augmented(preprocessing, seed * MAX_VIEWS + number)[:even]
            for number in track(range(views - 1), "augmenting")]  # fmt: skip
    return torch.cat([*made, images])
