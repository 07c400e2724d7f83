"""Damages predicted from what a cut does to its own block: the network behind it runs for a few cuts alone.

To first order an error e of a block's output moves an output by Σ g·e over the tokens, where g is that output's
gradient. So a few passes backwards, once for all cuts, give every block what it needs, and a cut costs what its own
block does: all of it is linear in depth. For logits, those of each image's likeliest classes are followed, and the KL
is that of the moved ones, however large; for features, sums with random signs, whose mean square is the squared error.
A network is not linear, so predictions are corrected by some cuts that are measured as well, as many whatever the
depth.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dcvit.errors import InputError
from dcvit.hardware import accelerator, fast_backward
from dcvit.methods.cuts.measured import Cut, MeasuredModel, Noted, by_blocks
from dcvit.methods.cuts.wanted_tokens import hooks
from dcvit.types import TimmModule

DIRECTIONS = 8
"""Gradients that are taken of the outputs of each image, K."""

SENSITIVE_IMAGES = 64
"""Images, of those that damage is scored on, that errors are weighed on."""

ANCHORS = (1 / 6, 1 / 2, 5 / 6)
"""Where in the depth blocks lie whose cuts are measured too, as shares of the blocks that may be cut."""

MEASURED = {"mlp": (2, 5), "heads": (0,), "attention": (0,), "block": (0,)}
"""Which of an anchor's cuts are measured, by kind and by how many wider ones came before."""

SLOPES = (0.8, 1.3)
"""Between which the exponent of the correction must lie, or so few measured cuts would decide too much."""

ABOVE_ROUNDING = 1e-5
"""MeasuredModel damages below this are half the rounding of bfloat16, which predictions do not have."""

_LEAST = 1e-30

PASS = 16
"""Images that pass backwards at once."""


class Sensitivities:
    """How the outputs change with the output of each block, in a few directions of each image.

    Args:
        measured: Its teacher and score.
        images: [s, C, H, W].

    Raises:
        InputError: If the outputs are those of pixels.
    """

    def __init__(self, measured: MeasuredModel, images: Tensor) -> None:
        device = next(measured.teacher.parameters()).device
        found: list[list[Tensor]] = [[] for _ in range(measured.depth)]
        outputs_seen, directions_seen = [], []
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad(), fast_backward(measured.teacher):
            for chunk in images.split(PASS):
                outputs, tokens = _forward(measured, chunk.to(device))
                seen = outputs.detach().float().cpu()
                if measured.score.name == "kl" and seen.ndim > 2:
                    raise InputError("--examination predicted is for models with one output an image; leave it out")
                directions = _directions(seen, measured.score.name, generator)
                parts = [
                    torch.autograd.grad(outputs, tokens, direction.to(outputs), retain_graph=True)
                    for direction in directions
                ]
                for index, each in enumerate(zip(*parts, strict=True)):
                    found[index].append(torch.stack(each).float().cpu())
                outputs_seen.append(seen)
                directions_seen.append(directions)
        self._outputs, self._directions = torch.cat(outputs_seen), torch.cat(directions_seen, dim=1)
        self._of_logits = measured.score.name == "kl"
        whole = [torch.cat(parts, dim=1) for parts in found]
        # fp16 holds what lies within its range of the largest entry.
        self._scales = [float(part.abs().max().clamp_min(1e-30)) for part in whole]
        self._gradients = [(part / scale).half() for part, scale in zip(whole, self._scales, strict=True)]

    def damage(self, index: int, error: Tensor) -> float:
        """Of an error [s, N, C] of the output of block `index`, behind its merges."""
        moves = []
        for start in range(0, len(error), PASS):
            part = error[start : start + PASS].float()
            gradient = self._gradients[index][:, start : start + PASS].to(part.device).float()
            moves.append((gradient * part).flatten(2).sum(2).double().cpu())
        moved = torch.cat(moves, dim=1) * self._scales[index]  # [K, s]
        return self._kl(moved) if self._of_logits else self._feature_error(moved)

    def _kl(self, moved: Tensor) -> float:
        """Of classes whose logits move so, the rarest of each image taken together."""
        shares = self._outputs.double().softmax(1)
        single = self._directions.double()
        # Of a class alone its probability; of the rest, whose direction is a mean of theirs, the sum of them.
        before = (shares * (single > 0)).sum(2).clamp_min(1e-30).log()
        after = (before + moved).log_softmax(0)
        return float((before.exp() * (before - after)).sum(0).mean())

    def _feature_error(self, moved: Tensor) -> float:
        features = self._outputs.double()
        spread = (features - features.mean(0)).square().sum().clamp_min(1e-12)
        return float(moved.square().mean(0).sum() / spread)


def _forward(measured: MeasuredModel, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs and, of each block, the tokens that it hands on; gradients reach all of these and no weight."""
    seen: list[Tensor] = []
    blocks = [measured.family.block(measured.teacher, index) for index in range(measured.depth)]
    # Registered last, so they see what merges have made of the output.
    handles = [block.register_forward_hook(lambda _m, _i, output: seen.append(output)) for block in blocks]
    handles.append(
        blocks[0].register_forward_pre_hook(lambda _m, inputs: (inputs[0].detach().requires_grad_(), *inputs[1:]))
    )
    with hooks(*handles), accelerator().autocast():
        return measured.teacher(images), seen


def _directions(outputs: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """What of the outputs [s, …] is followed back: [K, s, …].

    Of logits those of the likeliest classes and, where there are more than K, the mean of the others by their
    probabilities; of features sums with random signs, whose mean square is the squared size of what is summed.
    """
    if kind == "feature_error":
        signs = torch.randint(0, 2, (DIRECTIONS, *outputs.shape), generator=generator)
        return signs.to(outputs) * 2 - 1
    shares, classes = outputs.softmax(1), outputs.shape[1]
    alone = classes if classes <= DIRECTIONS else DIRECTIONS - 1
    likeliest = shares.argsort(dim=1, descending=True)[:, :alone]
    single = torch.nn.functional.one_hot(likeliest, classes).to(outputs).transpose(0, 1)
    if alone == classes:
        return single
    others = (shares.clamp_min(1e-30) * (1 - single.sum(0))).unsqueeze(0)
    return torch.cat([single, others / others.sum(2, keepdim=True)])


class Predicted:
    """Scores cuts as `MeasuredModel` does, from their own block; some are measured too, and correct the others.

    Args:
        measured: What measures, on `SENSITIVE_IMAGES` images at most, whose gradients are kept; it is advanced here.
        blocks: Those with cuts, in order. Some cuts of `ANCHORS` of them are measured.
    """

    def __init__(self, measured: MeasuredModel, blocks: Sequence[int]) -> None:
        self._measured = measured
        self._sensitivities = Sensitivities(measured, measured.images)
        self._anchors = {blocks[int(place * len(blocks))] for place in ANCHORS}
        self.found: dict[Cut, Noted] = {}
        self._behind: Tensor | None = None

    def judge(self, student: TimmModule, cut: Cut) -> None:
        """Notes what a cut of the present block is predicted to do."""
        measured = self._measured
        if self._behind is None:
            self._behind = measured.behind(measured.teacher, cut.block, measured.tokens)
        error = measured.behind(student, cut.block, measured.tokens) - self._behind
        before = sum((other.block, other.kind) == (cut.block, cut.kind) for other in self.found)
        anchor = cut.block in self._anchors and before in MEASURED[cut.kind]
        raw = self._sensitivities.damage(cut.block, error)
        self.found[cut] = Noted(measured.measure(student, cut.block) if anchor else None, raw)

    def advance(self, index: int) -> None:
        """Goes on to the block behind `index`."""
        self._measured.advance(index)
        self._behind = None

    def damages(self) -> dict[Cut, float]:
        """Of all cuts that were judged, by blocks, corrected by those that were measured."""
        known = [(cut, each.predicted, each.exact) for cut, each in by_blocks(self.found) if each.predicted is not None]
        line = _line([(raw, exact) for _, raw, exact in known if exact is not None and exact > ABOVE_ROUNDING])
        return {cut: line(raw) for cut, raw, _ in known}


def _line(pairs: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """From a prediction to a damage, fitted to pairs of both: a straight line between their logarithms."""
    slope, shift = 1.0, 0.0
    if pairs:
        x, y = np.log(np.maximum(pairs, _LEAST)).T
        spread = float(np.square(x - x.mean()).sum())
        if spread > 0:
            slope = float(np.clip(((x - x.mean()) * (y - y.mean())).sum() / spread, *SLOPES))
        shift = float(y.mean() - slope * x.mean())
    return lambda raw: float(np.exp(shift + slope * np.log(max(raw, _LEAST))))
