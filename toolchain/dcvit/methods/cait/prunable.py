"""Layers that channel pruning narrows: what a channel costs, and which layers give up how many for a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from timm.layers import Mlp
from torch import Tensor

from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.layers import PrefixBlock, can_narrow_heads
from dcvit.methods.cuts.choices import MIN_HEAD_DIM, least_head_dim
from dcvit.plan import CompressionPlan, MacsConvention
from dcvit.subject import original_of
from dcvit.types import TimmModule


@dataclass(frozen=True)
class PrunableLayer:
    """The attention or the MLP of one block.

    Its units are the channels of a head, one in every head at a time, or the hidden nodes.

    Attributes:
        kind: The field of the plan that says how wide it is.
        width: Units that it has.
        least: Units that it keeps at least.
        macs: MACs that one unit costs.
    """

    block: int
    kind: Literal["head_dim", "mlp_hidden"]
    width: int
    least: int
    macs: int

    def chunks(self, multiple: int) -> list[int]:
        """Units that go together, so that the width stays a multiple: their numbers, the first to go in front."""
        sizes, width = [], self.width
        while width > self.least:
            sizes.append(min(width % multiple or multiple, width - self.least))
            width -= sizes[-1]
        return sizes


def prunable_layers(
    model: TimmModule,
    family: Family,
    plan: CompressionPlan,
    *,
    multiple: int = 8,
    keep_heads: bool = False,
    min_head_dim: int = MIN_HEAD_DIM,
    min_mlp_hidden: int = 8,
    macs_convention: MacsConvention = "full",
) -> list[PrunableLayer]:
    """Every attention and MLP of a model that can be narrowed.

    Args:
        model: Follows the plan; may be on the meta device.
        family: Of the model.
        plan: Its merges decide how many tokens each block works on.
        multiple: Widths stay multiples of this.
        keep_heads: Leave the attention heads alone.
        min_head_dim: Channels that a wider head keeps at least.
        min_mlp_hidden: Nodes that an MLP keeps at least.
        macs_convention: How MACs are counted.

    Raises:
        InputError: If the architecture has no plain attention and MLP to narrow.
    """
    if family.cannot_prune is not None:
        raise InputError(f"{family.cannot_prune}; {plan.model} is a {family.name}")
    layers = []
    dim = model.embed_dim
    for index, tokens in enumerate(family.tokens(original_of(plan), plan)):
        block = family.block(model, index)
        attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        if isinstance(block, PrefixBlock):  # of its attention only keys and values are left; the MLP is nearly free
            attention, tokens = None, block.num_prefix_tokens
        if attention is not None and can_narrow_heads(attention) and not keep_heads:
            # A channel of a head: a row of q, k and v, a column of proj, and one term of each product in QKᵀ and AV.
            products = 2 * tokens**2 if macs_convention == "full" else 0
            macs = attention.num_heads * (4 * tokens * dim + products)
            least = least_head_dim(attention.head_dim, multiple, min_head_dim)
            layers.append(PrunableLayer(index, "head_dim", attention.head_dim, least, macs))
        if isinstance(mlp, Mlp):  # a gated one has two rows a node, which one compactor cannot narrow together
            least = -(-min_mlp_hidden // multiple) * multiple
            layers.append(PrunableLayer(index, "mlp_hidden", mlp.fc1.out_features, least, 2 * tokens * dim))
    return [layer for layer in layers if layer.width > layer.least]


def most_macs(layers: Sequence[PrunableLayer]) -> int:
    """MACs saved where every layer is as narrow as it may be."""
    return sum(layer.macs * (layer.width - layer.least) for layer in layers)


def choose_units(layers: Sequence[PrunableLayer], scores: Sequence[Tensor], macs: float, multiple: int) -> list[int]:
    """How many units each layer gives up to save at least `macs`, those of the least score a MAC first.

    Args:
        layers: Attention and MLPs compete.
        scores: Of each layer's units [width], ascending: the unit in front goes first.
        macs: To be saved.
        multiple: Widths stay multiples of this.
    """
    ranked: list[tuple[float, int, int]] = []
    for number, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        start, worth = 0, 0.0
        for size in layer.chunks(multiple):
            # The mean of ascending scores ascends but for rounding, and a layer's chunks must stay in their order.
            worth = max(worth, float(score[start : start + size].double().mean()) / layer.macs)
            ranked.append((worth, number, size))
            start += size
    ranked.sort(key=lambda chunk: chunk[0])
    saved, taken = 0, []
    for _, number, size in ranked:
        if saved >= macs:
            break
        taken.append((number, size))
        saved += layers[number].macs * size
    given_up = [0] * len(layers)
    needed: set[int] = set()
    for number, size in reversed(taken):  # the last one overshoots; some before it may then be needless
        if number not in needed and saved - layers[number].macs * size >= macs:
            saved -= layers[number].macs * size
        else:
            needed.add(number)
            given_up[number] += size
    return given_up
