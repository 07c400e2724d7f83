"""Cutting a timm MLP or attention to fewer channels, in place; the rest of the weights stay as they are."""

import math

import torch
from timm.layers import GluMlp, SwiGLU
from torch import Tensor, nn

from dcvit.types import TimmModule


def narrow_mlp(mlp: TimmModule, kept: Tensor) -> None:
    """Keeps the hidden nodes `kept` [M'] (indices) of a timm MLP: rows of fc1 and its bias, columns of fc2.

    A gated MLP has a row for the gate and one for the value of each node. The bias of fc2 stays whole.
    """
    if isinstance(mlp, SwiGLU):
        mlp.fc1_g, mlp.fc1_x = rows_of(mlp.fc1_g, kept), rows_of(mlp.fc1_x, kept)
    elif isinstance(mlp, GluMlp):
        mlp.fc1 = rows_of(mlp.fc1, torch.cat([kept, mlp.fc2.in_features + kept]))
    else:
        mlp.fc1 = rows_of(mlp.fc1, kept)
    mlp.fc2 = _linear(mlp.fc2, mlp.fc2.weight[:, kept], mlp.fc2.bias)


def narrow_attention(attention: TimmModule, kept: Tensor, kept_values: Tensor | None = None) -> None:
    """Keeps the channels `kept` [h, d'] (indices within each head) of a timm `Attention`'s q and k, and of its v too.

    timm scales the logits by d'^-½ afterwards; √(d'/d) goes into the q weights, so that the logits of the kept channels
    are what they were.

    Args:
        attention: Cut in place; one for the prefix tokens alone will do too.
        kept: Of q and k, whose channels meet in a product.
        kept_values: Of v, whose channels are the inputs of proj, where they are others.
    """
    heads, width = kept.shape
    full = heads * attention.head_dim
    offsets = torch.arange(heads, device=kept.device)[:, None] * attention.head_dim
    rows = (offsets + kept).flatten()
    values = rows if kept_values is None else (offsets + kept_values).flatten()
    qkv = torch.cat([rows, full + rows, 2 * full + values])
    layers = qkv_layers(attention)
    weight = torch.cat([layer.weight for layer in layers])[qkv]
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])[qkv]
    rescale = math.sqrt(width / attention.head_dim)
    weight[: heads * width] *= rescale
    if bias is not None:
        bias[: heads * width] *= rescale
    if len(layers) == 1:
        attention.qkv = _linear(layers[0], weight, bias)
    else:
        queries, others = slice(heads * width), slice(heads * width, None)
        attention.q = _linear(layers[0], weight[queries], None if bias is None else bias[queries])
        attention.kv = _linear(layers[1], weight[others], None if bias is None else bias[others])
    attention.proj = _linear(attention.proj, attention.proj.weight[:, values], attention.proj.bias)
    attention.head_dim, attention.attn_dim, attention.scale = width, heads * width, width**-0.5


def can_narrow_heads(attention: TimmModule) -> bool:
    """Whether channels of the heads can go: a norm of q and k would act on all channels of a head together."""
    return isinstance(attention.q_norm, nn.Identity)


def qkv_layers(attention: TimmModule) -> list[nn.Linear]:
    """The layers that make q, k and v, in this order: one for all, or one for q and one for k and v."""
    return [attention.qkv] if hasattr(attention, "qkv") else [attention.q, attention.kv]


def rows_of(linear: nn.Linear, kept: Tensor | slice) -> nn.Linear:
    """A linear layer with the outputs `kept` alone: these rows of its weight [out, in] and bias [out], copied."""
    return _linear(linear, linear.weight[kept], None if linear.bias is None else linear.bias[kept])


def _linear(like: nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=like.weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=like.weight.requires_grad)
    return linear
