"""Identity-initialised linear adaptors, which hang on a layer by a hook (PRACTISE, arXiv 2202.07861)."""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Layer: TypeAlias = nn.Linear | nn.Conv2d

NAME = "adaptor"
"""What an adaptor is called in the layer that it hangs on."""


def adapt_input(layer: Layer) -> Layer:
    """Puts an adaptor in front of a layer and returns it: what the layer reads goes through the adaptor first."""
    adaptor = _attach(layer, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)
    layer.register_forward_pre_hook(_adapt_input)
    return adaptor


def adapt_output(layer: Layer) -> Layer:
    """Puts an adaptor behind a layer and returns it: what the layer puts out goes through the adaptor."""
    adaptor = _attach(layer, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
    layer.register_forward_hook(_adapt_output)
    return adaptor


def _attach(layer: Layer, width: int) -> Layer:
    """Linear(C, C) with a zero bias for a linear layer; a 1×1 convolution for a convolution, without a bias [choice].

    Either could be folded into the layer, but a layer has room for one adaptor only.
    """
    if NAME in dict(layer.named_children()):
        raise ValueError("the layer has an adaptor already")
    identity = torch.eye(width).to(layer.weight)
    if isinstance(layer, nn.Linear):
        adaptor: Layer = nn.Linear(width, width, device="meta")
        adaptor.weight, adaptor.bias = nn.Parameter(identity), nn.Parameter(torch.zeros(width).to(layer.weight))
    else:
        adaptor = nn.Conv2d(width, width, 1, bias=False, device="meta")
        adaptor.weight = nn.Parameter(identity[:, :, None, None])
    layer.add_module(NAME, adaptor)
    return adaptor


def _adapt_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return (layer.get_submodule(NAME)(inputs[0]), *inputs[1:])


def _adapt_output(layer: nn.Module, _inputs: Any, output: Tensor) -> Any:
    return layer.get_submodule(NAME)(output)
