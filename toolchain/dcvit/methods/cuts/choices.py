"""What may be chosen about cuts, free of torch: how narrow heads may become, and how damage is found."""

from typing import Literal

from dcvit.variant import FUSED_HEAD_DIM

Way = Literal["exact", "predicted"]
"""To weigh a cut: the rest of the network runs, or what becomes of its own block tells."""

MIN_HEAD_DIM = FUSED_HEAD_DIM
"""Channels that a wider head keeps at least: fused attention kernels begin here, or are no faster below."""

NARROWER_HEAD_DIM = 8
"""The same for heads that have no more than `MIN_HEAD_DIM` to begin with."""


def least_head_dim(whole: int, multiple: int, wanted: int = MIN_HEAD_DIM) -> int:
    """Channels that a head of `whole` channels keeps at least, a multiple of `multiple`.

    `wanted` is for heads that are wider than it; the others may go down to `NARROWER_HEAD_DIM`.
    """
    least = wanted if whole > wanted else min(NARROWER_HEAD_DIM, wanted)
    return -(-least // multiple) * multiple
