"""Whether two runtimes compute the same, and how far apart they may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcvit.agreement import cosine
from dcvit.variant import QUANTIZED, Precision
from dcvit.verification.checks import Check

RELATIVE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 0.16}
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
- bf16: eight times fp16, as u = 2⁻⁸ is. Measured on a trained DeiT-Tiny: 8e-3. That alone would let a lost bias pass,
  so the cosine must hold too.
"""

LEAST_COSINE: dict[Precision, float] = {"bf16": 0.99, "int8": 0.98, "fp8": 0.98}
"""Least cosine between two runtimes' logits, a noise of the share ε giving 1 − ε²/2.

- bf16: a rounding is off by u/√3 = 2.3e-3 on average, √(10·D) of them by 2.5 … 4.5 %. Three times that is 14 %, 0.99.
  That is for the model least fit for bf16; for the model at hand `Expected.least_cosine` asks for more.
- int8 and fp8: a noise of 2 … 8 % (see `exporting/quantization.py`), and twice to three times that is 20 %, 0.98.
  Measured: 0.9999; a tensor with a wrong scale changes logits by tens of percent. There is no bound on a single logit:
  where one value of a token was never seen in calibration it is clipped, as eight bits do.
"""

TIMES_PYTORCH = 3
"""How many times PyTorch's own bf16 noise another runtime's may be.

PyTorch rounds every intermediate result, those of norms and softmax too, so hardly anything makes more noise in bf16.
Measured with OpenVINO on some 50 models with random weights (14 families of timm, widths of 32 … 768, 3 … 12 blocks,
heads of 8 … 64 channels, merged and cut): PyTorch's noise is 0.4 … 2.7 % of the logits, OpenVINO's 0.8 … 1.35 times
that. An attention bias that OpenVINO read wrongly (`exporting/bias.py`) made 22 % where the last four blocks of twelve
had it (cosine 0.977), and 13 % where the last two had it: 0.9915, which 0.99 alone would let pass.
"""

LEAST_NOISE = 0.02
"""Share of the logits that any bf16 computation may be off by: three times what the roundings of a single block make,
√10·u/√3 = 0.7 %."""

LEAST_COSINE_ON_NOISE = 0.8
"""For int8 and fp8 on random pixels. Their ranges were set on images, and noise lies outside them: this finds broken
files only. Measured: 0.9999 on a trained DeiT-Tiny, calibrated on CIFAR-10."""


@dataclass(frozen=True)
class Expected:
    """Images and what PyTorch makes of them at fp32 on the CPU.

    Attributes:
        what: `real images` or `random input`.
        images: [n, C, H, W].
        logits: [n, classes].
        real: Whether the images are real ones; then the class that wins is compared too.
        at_bf16: What PyTorch makes of them at bf16; asked for where a bf16 computation is judged.
        alone: What PyTorch makes of the first few of them, one at a time, at fp32 on the CPU.
    """

    what: str
    images: Tensor
    logits: Tensor
    real: bool
    at_bf16: Callable[[], Tensor]
    alone: Tensor

    def tolerance(self, precision: Precision) -> float | None:
        """Largest difference that passes, in logits; None where single logits have no bound."""
        relative = RELATIVE_TOLERANCE.get(precision)
        return None if relative is None else relative * max(self.logits.abs().max().item(), 1e-6)

    def least_cosine(self, precision: Precision) -> float | None:
        """Least cosine that passes; None where the largest difference says enough."""
        if precision in QUANTIZED and not self.real:
            return LEAST_COSINE_ON_NOISE
        if precision == "bf16":
            return max(LEAST_COSINE["bf16"], self._least_cosine_by_pytorch())
        return LEAST_COSINE.get(precision)

    def _least_cosine_by_pytorch(self) -> float:
        own = math.sqrt(2 * max(1 - cosine(self.at_bf16(), self.logits), 0))
        return 1 - max(TIMES_PYTORCH * own, LEAST_NOISE) ** 2 / 2

    def tie(self, precision: Precision) -> float:
        """A lead in logits that noise of this precision may turn.

        For int8 and fp8 that is 4.5 deviations of the difference of two logits, each off by the noise that the cosine
        allows.
        """
        tolerance = self.tolerance(precision)
        if tolerance is not None:
            return tolerance
        noise = math.sqrt(2 * (1 - LEAST_COSINE[precision]))
        return 4.5 * math.sqrt(2) * noise * self.logits.std(1).mean().item()


def check_logits(name: str, logits: Tensor, expected: Expected, precision: Precision) -> list[Check]:
    """Compares a runtime's logits with PyTorch's: numbers, no NaN, and on real images the class that wins."""
    name = f"{name} against PyTorch, {expected.what}"
    check = agrees(name, logits, expected.logits, expected, precision)
    checks = [check]
    if expected.real and check.max_abs_error is not None:
        checks.append(_top1(f"{name}, top-1", logits, expected.logits, expected.tie(precision)))
    return checks


def agrees(
    name: str,
    logits: Tensor,
    wanted: Tensor,
    expected: Expected,
    precision: Precision,
    times: float = 1,
    said: str = "",
) -> Check:
    """Whether two runtimes' logits of the same images are close enough for the precision.

    Args:
        name: Of the check.
        logits: The runtime's, [n, classes].
        wanted: What they are compared with, [n, classes].
        expected: Says how far apart they may be.
        precision: Of the runtime's computation.
        times: How many times that, for noise that both have.
        said: Stands in front of what was found.
    """
    tolerance, least_cosine = expected.tolerance(precision), expected.least_cosine(precision)
    tolerance = None if tolerance is None else times * tolerance
    for what, output in (("PyTorch", wanted), ("the runtime", logits)):
        if bad := int((~torch.isfinite(output)).sum()):
            return Check(name, False, f"{said}{bad} logits of {what} are NaN or infinite", tolerance=tolerance)
    error = (logits - wanted).abs().max().item()
    scale = wanted.abs().max().item()
    found = f"{said}{len(logits)} images, off by {error / scale if scale else math.inf:.1e} of the largest logit"
    passed = tolerance is None or error <= tolerance
    if least_cosine is not None:
        least = 1 - times**2 * (1 - least_cosine)  # a noise of the share ε gives 1 − ε²/2
        found_cosine = cosine(logits, wanted)
        passed = passed and found_cosine >= least
        found += f", cosine {found_cosine:.5f} (at least {least:.5g})"
    return Check(name, passed, found, error, tolerance)


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
