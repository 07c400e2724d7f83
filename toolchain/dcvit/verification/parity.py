"""Whether two runtimes compute the same, and how far apart they may be."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dcvit.artifacts import Precision
from dcvit.runtimes import Session
from dcvit.verification.checks import Check

RELATIVE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest difference of a logit, as a share of the largest logit of all.

Another runtime adds and rounds in another order. One rounding is off by at most u = 2⁻²⁴ (fp32) or 2⁻¹¹ (fp16),
relative to the value, and some ten of them a block reach the residual stream: over D = 12 … 40 blocks that is, as in a
random walk, u·√(10·D) = 11u … 20u, and the farthest of 10⁵ logits lies 4.5 deviations out: 50u … 90u.

- fp32: 90u is 5e-6. Measured on a trained DeiT-Tiny and on random models of up to 32 blocks: 4e-7 … 1.2e-6. The same
  models computed in fp16 by mistake are off by 3e-4 and more, so 1e-4 tells the two apart and leaves a factor of 20 for
  kernels that sum in other orders.
- fp16: 50u … 90u is 2.4e-2 … 4.4e-2 if every rounding were the worst one. Measured: 3e-4 (trained) … 1.5e-2 (a random
  DeiT III, whose layer scales of 1e-6 are subnormal in fp16). A lost bias, an overflow or a wrong operator changes
  logits by tens of percent.
"""


@dataclass(frozen=True)
class Reference:
    """Images and what PyTorch makes of them at fp32 on the CPU.

    Attributes:
        what: `real images` or `random input`.
        images: [n, C, H, W].
        logits: [n, classes], or [n, classes, H, W] of a segmentation model.
    """

    what: str
    images: Tensor
    logits: Tensor
    compare_top1: bool

    def tolerance(self, precision: Precision) -> float:
        """Largest difference that passes, in logits."""
        return RELATIVE_TOLERANCE[precision] * max(self.logits.abs().max().item(), 1e-6)


def check_parity(name: str, session: Session, reference: Reference, precision: Precision) -> list[Check]:
    """Compares a session with PyTorch: numbers, no NaN, and on real images the class that wins."""
    logits = session.infer(reference.images)
    name = f"{name} against PyTorch, {reference.what}"
    tolerance = reference.tolerance(precision)
    for what, output in (("PyTorch", reference.logits), ("the runtime", logits)):
        if bad := int((~torch.isfinite(output)).sum()):
            return [Check(name, False, f"{bad} logits of {what} are NaN or infinite", tolerance=tolerance)]
    error = (logits - reference.logits).abs().max().item()
    scale = reference.logits.abs().max().item()
    found = f"{len(logits)} images, off by {error / scale if scale else math.inf:.1e} of the largest logit"
    checks = [Check(name, error <= tolerance, found, error, tolerance)]
    if reference.compare_top1:
        checks.append(_top1(f"{name}, top-1", logits, reference.logits, tolerance))
    return checks


def _top1(name: str, logits: Tensor, expected: Tensor, tie: float) -> Check:
    """The same class must win, but where PyTorch itself has the two as good as level (an untrained model often has).

    A lead of less than the tolerance counts as level: rounding alone may turn it.
    """
    winner, other = expected.argmax(1), logits.argmax(1)
    lead = (expected.gather(1, winner[:, None]) - expected.gather(1, other[:, None]))[:, 0]
    differs = winner != other
    wrong = int((differs & (lead > tie)).sum())
    level = int(differs.sum()) - wrong
    detail = f"{winner.numel() - wrong - level} of {winner.numel()} agree"
    if level:
        detail += f", {level} as good as level"
    return Check(name, wrong == 0, detail)
