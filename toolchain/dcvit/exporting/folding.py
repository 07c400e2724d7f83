"""What a model computes for nothing, folded into its weights before it is traced; see `layers/folding.py` for how."""

import copy
from typing import Any

from torch import Tensor, nn

from dcvit.layers.folding import (
    fold_attention_scale,
    fold_layer_scale,
    fold_normalisation,
    fold_patch_embedding,
    join_attention,
)
from dcvit.preprocessing import Preprocessing
from dcvit.types import TimmModule
from dcvit.variant import QUANTIZED, Precision, Variant

FUSED_ATTENTION = 23
"""The first opset with an operator for attention as a whole, which scales the logits itself."""
PATCH_EMBEDDING, NORMALISATION = "patch embedding", "normalisation"
LAYER_SCALE, ATTENTION_SCALE = "layer scale", "attention scale"
_FOR_GPUS: frozenset[Precision] = frozenset({"fp16", "bf16"})
"""Where a patch embedding becomes a matrix product: a GPU's convolution takes many times as long (docs/gpu.md), and on
CPUs, which fp32 and int8 files are for, no gain was found (benchmarks/folds.py)."""


def fold(
    model: TimmModule, variant: Variant, opset: int, preprocessing: Preprocessing
) -> tuple[TimmModule, tuple[str, ...]]:
    """A copy that computes the same for less, and the names of what was folded.

    Where `NORMALISATION` is among the names, the copy takes pixels: uint8 [B, H, W, C].

    Args:
        model: On the CPU; it stays as it is.
        variant: Of the file.
        opset: Of the file.
        preprocessing: How the images that the model takes were normalised.
    """
    model, folds = copy.deepcopy(model), []
    if (variant.precision in _FOR_GPUS or variant.explicit) and fold_patch_embedding(model):
        folds.append(PATCH_EMBEDDING)
    # int8 and fp8 leave the first product in float, and are calibrated on normalised images.
    if variant.with_preprocessing and variant.precision not in QUANTIZED and fold_normalisation(model, preprocessing):
        model.register_forward_pre_hook(_as_images)
        folds.append(NORMALISATION)
    if fold_layer_scale(model):
        folds.append(LAYER_SCALE)
    if opset >= FUSED_ATTENTION:
        join_attention(model)
    elif fold_attention_scale(model):
        folds.append(ATTENTION_SCALE)
    return model, tuple(folds)


def _as_images(_model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    pixels: Tensor = inputs[0]
    return (pixels.float().permute(0, 3, 1, 2),)
