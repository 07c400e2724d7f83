"""What may be chosen about cuts, free of torch: how narrow heads may become, and how damage is found."""

from typing import Literal

from dcvit.variant import FUSED_HEAD_DIM

Way = Literal["exact", "predicted"]
"""To weigh a cut: the rest of the network runs, or what becomes of its own block tells."""

MIN_HEAD_DIM = FUSED_HEAD_DIM
"""Channels that every head keeps at least: below that TensorRT has no fused attention."""


def least_head_dim(whole: int, multiple: int, wanted: int = MIN_HEAD_DIM) -> int:
    """Channels that a head of `whole` channels keeps at least: `wanted`, as a multiple of `multiple`, or all it has."""
    return min(whole, -(-wanted // multiple) * multiple)
