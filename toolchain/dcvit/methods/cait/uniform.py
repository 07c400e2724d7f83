"""The same share of every head and MLP cut: what stands in for widths that training finds, and a baseline."""

from collections.abc import Sequence

from dcvit.errors import TargetError
from dcvit.methods.cait.prunable import PrunableLayer, most_macs
from dcvit.plan import BlockPlan, CompressionPlan


def uniform_widths(layers: Sequence[PrunableLayer], macs: float, multiple: int) -> list[int]:
    """The width of each layer so that together they save at least `macs`, at nearly one share everywhere.

    Heads have few widths to choose from, so theirs are rounded to the nearest and the MLPs make up for the rest.

    Raises:
        TargetError: If not even the least widths save that much.
    """
    if macs > (most := most_macs(layers)):
        raise TargetError(
            f"--macs-reduction: narrowing every head and MLP to its least width saves {most / 1e6:.1f} M MACs, "
            f"and {macs / 1e6:.1f} M are asked for"
        )
    share = macs / max(1, sum(layer.macs * layer.width for layer in layers))
    heads = [_rounded(layer, share, multiple) if layer.kind == "head_dim" else layer.width for layer in layers]
    while True:
        widths = _narrowed_mlps(layers, heads, macs, multiple)
        if _saved(layers, widths) >= macs:
            return widths
        # MLPs at their least width are not enough: all heads one step narrower.
        heads = [
            max(layer.least, width - multiple) if layer.kind == "head_dim" else width
            for layer, width in zip(layers, heads, strict=True)
        ]


def narrowed_plan(base: CompressionPlan, layers: Sequence[PrunableLayer], widths: Sequence[int]) -> CompressionPlan:
    """`base` with the given width for each layer."""
    entries: dict[int, BlockPlan] = {}
    for layer, width in zip(layers, widths, strict=True):
        if width < layer.width:
            entry = entries.get(layer.block, base.block(layer.block))
            entries[layer.block] = entry.model_copy(update={layer.kind: width})
    return base.with_blocks(*entries.values())


def _rounded(layer: PrunableLayer, share: float, multiple: int) -> int:
    return min(layer.width, max(layer.least, round(layer.width * (1 - share) / multiple) * multiple))


def _narrowed_mlps(layers: Sequence[PrunableLayer], heads: Sequence[int], macs: float, multiple: int) -> list[int]:
    """The widest MLPs that save the rest, all of the same share, in steps of one unit of the widest."""
    mlps = [layer for layer in layers if layer.kind == "mlp_hidden"]
    steps = max((layer.width // multiple for layer in mlps), default=0)

    def at(step: int) -> list[int]:
        return [
            max(layer.least, layer.width - round(layer.width * step / steps / multiple) * multiple)
            if layer.kind == "mlp_hidden"
            else width
            for layer, width in zip(layers, heads, strict=True)
        ]

    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        if _saved(layers, at(middle)) >= macs:
            high = middle
        else:
            low = middle + 1
    return at(low) if steps else list(heads)


def _saved(layers: Sequence[PrunableLayer], widths: Sequence[int]) -> int:
    return sum(layer.macs * (layer.width - width) for layer, width in zip(layers, widths, strict=True))
