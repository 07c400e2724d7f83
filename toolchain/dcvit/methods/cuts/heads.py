"""Narrower attention heads in closed form: each head's channels are turned until the first ones carry most.

A head's logits q·k and its output v·Wₒ stay what they are if q, k and v are each multiplied by an invertible matrix,
and its inverse into the other side. The matrices that are chosen here sort the channels: of q and k, by the mean square
of their part in the logits; of v, by that of what they add to the tokens. Then the first d' channels are the best that
a plain attention of this width can have for these two aims, which no choice among the original channels is.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from dcvit.layers import narrow_attention, qkv_layers
from dcvit.methods.cuts.least_squares import Moments, fit_output_layer
from dcvit.methods.cuts.wanted_tokens import CHUNK, EnoughError, hooks
from dcvit.types import TimmModule

_NOISE = 1e-7
"""Eigenvalues below this share of the largest are rounding, for moments are summed from products in fp32."""


class HeadFit:
    """How one block's attention is best narrowed, to any width, seen on calibration tokens.

    Args:
        block: Its attention is plain: one that `can_narrow_heads` takes. It stays as it is.
        tokens: In front of the block, [n, N, C].
        arguments: What the family gives each block beside the tokens.
        read: Tokens of an image, the first ones, that the head alone reads; 0 where it reads the others too.
    """

    @torch.no_grad()
    def __init__(self, block: TimmModule, tokens: Tensor, arguments: Mapping[str, Any], read: int = 0) -> None:
        self._tokens, self._arguments, self._read = tokens, arguments, read
        attention = block.attn
        self._heads, self._width = attention.num_heads, attention.head_dim
        moments, wanted = _HeadMoments(self._heads, self._width, tokens.device), []
        for qkv, mixed, output in self._pass(block):
            moments.add(qkv, mixed)
            wanted.append(output)
        self._wanted = wanted
        self._turn(attention, moments)

    def _turn(self, attention: TimmModule, moments: "_HeadMoments") -> None:
        layers, shape = qkv_layers(attention), (3, self._heads, self._width)
        weight = torch.cat([layer.weight for layer in layers]).double().unflatten(0, shape)
        output = attention.proj.weight.double().T.unflatten(0, shape[1:])  # [h, d, C]
        root_q, inverse_q = _roots(moments.queries)
        root_k, inverse_k = _roots(moments.keys)
        root_v, inverse_v = _roots(moments.outputs if attention.proj.bias is None else moments.centred_outputs)
        left, strength, right = torch.linalg.svd(root_q @ root_k)
        halves = strength.sqrt()[:, None]
        turned_v = torch.linalg.svd(root_v @ output, full_matrices=False).U
        turns = torch.stack(
            [inverse_q @ left * halves, inverse_k @ right.transpose(1, 2) * halves, inverse_v @ turned_v]
        )
        self._weight = torch.einsum("phie,phic->phec", turns, weight).flatten(0, 2)
        self._bias = None
        if layers[0].bias is not None:
            bias = torch.cat([layer.bias for layer in layers]).double().unflatten(0, shape)
            self._bias = torch.einsum("phie,phi->phe", turns, bias).flatten()
        self._output = (turned_v.transpose(1, 2) @ root_v @ output).flatten(0, 1).T

    @torch.no_grad()
    def narrow(self, block: TimmModule, head_dim: int) -> None:
        """Leaves `head_dim` channels to the heads of a block that is equal to the one seen; refits `proj`; in place."""
        attention = block.attn
        layers = qkv_layers(attention)
        rows = [layer.out_features for layer in layers]
        for layer, weight in zip(layers, self._weight.split(rows), strict=True):
            layer.weight.copy_(weight)
        if self._bias is not None:
            for layer, bias in zip(layers, self._bias.split(rows), strict=True):
                layer.bias.copy_(bias)
        attention.proj.weight.copy_(self._output)
        channels = torch.arange(head_dim, device=self._weight.device).expand(self._heads, -1)
        narrow_attention(attention, channels)
        _balance(attention)
        proj = attention.proj
        moments = Moments.empty(proj.in_features, proj.out_features, self._tokens.device, self._read)
        for (_, mixed, _), wanted in zip(self._pass(block), self._wanted, strict=True):
            moments.add(mixed, wanted)
        weight, bias = fit_output_layer(moments, torch.arange(proj.in_features), proj.weight, proj.bias)
        proj.weight.copy_(weight)
        if bias is not None:
            proj.bias.copy_(bias)

    def _pass(self, block: TimmModule) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        """For each chunk: q, k and v as they are computed, what the heads put out, and what `proj` makes of it."""
        attention = block.attn
        inner: list[Tensor] = []
        outer: list[Tensor] = []

        def note(_proj: TimmModule, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outer.extend([inputs[0], output])
            raise EnoughError  # the MLP need not run

        handles = [
            layer.register_forward_hook(lambda _m, _i, output: inner.append(output)) for layer in qkv_layers(attention)
        ]
        with hooks(*handles, attention.proj.register_forward_hook(note)):
            for chunk in self._tokens.split(CHUNK):
                inner.clear()
                outer.clear()
                with suppress(EnoughError):
                    block.forward(chunk, **self._arguments)
                mixed, output = outer
                yield list(inner), mixed, output


def _balance(attention: TimmModule) -> None:
    """Makes q and k of a channel as large as each other, and v and its column of `proj`, in place.

    No product changes, but an optimiser that takes equal steps in all weights needs it.
    """
    layers, shape = qkv_layers(attention), (3, attention.num_heads, attention.head_dim)
    rows = [layer.out_features for layer in layers]
    sizes = torch.cat([layer.weight for layer in layers]).norm(dim=1).unflatten(0, shape).clamp_min(1e-12)
    columns = attention.proj.weight.norm(dim=0).unflatten(0, shape[1:]).clamp_min(1e-12)
    queries_up, values_up = (sizes[1] / sizes[0]).sqrt(), (columns / sizes[2]).sqrt()
    factors = torch.stack([queries_up, 1 / queries_up, values_up]).flatten()
    for layer, factor in zip(layers, factors.split(rows), strict=True):
        layer.weight.mul_(factor[:, None])
        if layer.bias is not None:
            layer.bias.mul_(factor)
    attention.proj.weight.div_(values_up.flatten())


class _HeadMoments:
    """Second moments of each head, summed over tokens, in float64.

    Attributes:
        queries: Of q, [h, d, d].
        keys: Of k about its mean in each image, which moves all logits of a query alike, [h, d, d].
        outputs: Of what the heads put out, [h, d, d].
        sums: Of the same, [h, d].
        tokens: That were counted for these two.
    """

    def __init__(self, heads: int, width: int, device: torch.device) -> None:
        self._shape = (heads, width)
        self.queries = torch.zeros(heads, width, width, dtype=torch.float64, device=device)
        self.keys = torch.zeros_like(self.queries)
        self.outputs = torch.zeros_like(self.queries)
        self.sums, self.tokens = self.queries.new_zeros(heads, width), 0

    def add(self, qkv: list[Tensor], mixed: Tensor) -> None:
        """Adds one chunk: q, k and v in one tensor [n, N, 3hd], or q and the others in two; the outputs [n, N, hd]."""
        parts = [each.unflatten(-1, (-1, *self._shape)).float() for each in qkv]
        queries, keys = parts[0][..., 0, :, :], (parts[0][..., 1, :, :] if len(parts) == 1 else parts[1][..., 0, :, :])
        self.queries += _squares(queries)
        self.keys += _squares(keys - keys.mean(1, keepdim=True))
        heads = mixed.unflatten(-1, self._shape).float()
        self.outputs += _squares(heads)
        self.sums += heads.sum((0, 1))
        self.tokens += heads.shape[:2].numel()

    @property
    def centred_outputs(self) -> Tensor:
        """About the mean, which the bias of `proj` takes up, [h, d, d]."""
        return self.outputs - self.sums[:, :, None] * self.sums[:, None, :] / self.tokens


def _squares(values: Tensor) -> Tensor:
    """Of [n, N, h, d], summed over images and tokens: [h, d, d]."""
    flat = values.flatten(0, 1).transpose(0, 1)
    return flat.transpose(1, 2) @ flat


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square roots of positive matrices [h, d, d], and the inverses of these roots."""
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp_min((_NOISE * values[:, -1:]).clamp_min(1e-12))
    turned = vectors.transpose(1, 2)
    return (vectors * values.sqrt()[:, None]) @ turned, (vectors * values.rsqrt()[:, None]) @ turned
