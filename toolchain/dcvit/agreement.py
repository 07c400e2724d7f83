"""How far two models' logits agree where they cannot be equal to rounding."""

import torch
from torch import Tensor


def cosine(logits: Tensor, expected: Tensor) -> float:
    """Cosine between two sets of logits [n, classes, ...], each image's mean taken off (it changes no probability).

    A noise of the share ε of the logits gives 1 − ε²/2; logits that are not finite agree with none, and give -1.
    """
    if not (torch.isfinite(logits).all() and torch.isfinite(expected).all()):
        return -1.0
    ours, theirs = ((part.double() - part.double().mean(1, keepdim=True)).flatten() for part in (logits, expected))
    scale = (ours.norm() * theirs.norm()).item()
    return (ours @ theirs).item() / scale if scale else float(torch.equal(ours, theirs))


def rows(logits: Tensor) -> Tensor:
    """Logits of images [n, classes] as they are, those of pixels [n, classes, H, W] as [n · H · W, classes]."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


def finite(logits: Tensor) -> Tensor:
    """Where all logits [n, classes, ...] of a place [n, ...] are finite."""
    return torch.isfinite(logits).all(1)
