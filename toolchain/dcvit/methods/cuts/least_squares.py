"""Closed-form surgery on an MLP from calibration activations, before any gradient step.

An MLP's output layer is linear in its hidden activations A [T, M] (T tokens). So the nodes that can best be spared, and
the weights that make up for them, follow from the second moments of A and of the wanted output Y [T, C] alone.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

RIDGE = 1e-3
"""Weight of the prior that pulls a fit to the original weights, in units of the mean second moment of a node, where
nothing tells how much of it is right."""

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights that are tried where every second image can tell: few images would else be learnt by heart."""

COMPACTED = 1 / 8
"""Once this share of the nodes is given up, their rows and columns are left out of all further products."""

READ_SHARE = 0.25
"""Of the weight of an image's tokens, what those together have that the head alone reads. All the others reach it
through attention: errors of them matter less one by one, and weighed alike they would drown a class token."""


@dataclass
class Moments:
    """Second moments of activations and wanted outputs, summed over tokens, in float64; of every second image apart.

    The activations carry a constant 1 as their last column, for the bias.

    Attributes:
        grams: AᵀA, of either half of the images, [2, M + 1, M + 1].
        crosses: AᵀY, [2, M + 1, C].
        read: How many tokens of an image, the first ones, the head alone reads, and which hold `READ_SHARE` of the
            weight; 0 where it reads all of them.
        images: That were added.
    """

    grams: Tensor
    crosses: Tensor
    read: int = 0
    images: int = 0
    _ridge: float | None = field(default=None, repr=False)

    @classmethod
    def empty(cls, hidden: int, width: int, device: torch.device | str = "cpu", read: int = 0) -> "Moments":
        """No tokens yet, for M = `hidden` and C = `width`."""
        grams = torch.zeros(2, hidden + 1, hidden + 1, dtype=torch.float64, device=device)
        return cls(grams, grams.new_zeros(2, hidden + 1, width), read)

    @property
    def gram(self) -> Tensor:
        """AᵀA of all images, [M + 1, M + 1]."""
        return self.grams.sum(0)

    @property
    def cross(self) -> Tensor:
        """AᵀY of all images, [M + 1, C]."""
        return self.crosses.sum(0)

    def add(self, activations: Tensor, wanted: Tensor) -> None:
        """Adds images: activations [n, ..., M], wanted outputs [n, ..., C]."""
        factors = self._factors(activations)
        for half in (0, 1):
            own = slice((half + self.images) % 2, None, 2)
            rows, aims = activations[own].float(), wanted[own].float()
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)
            if factors is not None:
                rows, aims = rows * factors, aims * factors
            flat = rows.flatten(0, -2)
            # Products of one chunk in fp32, which is far faster; only their long sum needs float64.
            self.grams[half] += flat.T @ flat
            self.crosses[half] += flat.T @ aims.flatten(0, -2)
        self.images += len(activations)

    def _factors(self, activations: Tensor) -> Tensor | None:
        """Roots of the tokens' weights [N, 1], whose mean is 1; None where all weigh alike."""
        if not self.read or activations.shape[1] <= self.read:
            return None
        number, read = activations.shape[1], self.read
        share = max(READ_SHARE, read / number)
        weights = activations.new_full((number, 1), (1 - share) * number / (number - read), dtype=torch.float32)
        weights[:read] = share * number / read
        return weights.sqrt()

    def ridge(self, columns: Tensor, prior: Tensor, free: int) -> float:
        """Of `RIDGES` the one with which fits to one half of the images serve the other half best; found once.

        Args:
            columns: Of the activations that are fitted on, [K].
            prior: What the fit is pulled to, [C, K].
            free: Columns at the end that are not pulled.
        """
        if self._ridge is None:
            self._ridge = RIDGE if self.images < 2 else min(RIDGES, key=self._misfits(columns, prior, free).__getitem__)
        return self._ridge

    def _misfits(self, columns: Tensor, prior: Tensor, free: int) -> dict[float, float]:
        """Squared error on the half that was not fitted to, less a constant, by ridge. In fp32: it only compares."""
        scale = 1 / max(float(self.gram.diagonal()[columns].mean()), 1e-30)
        grams = [(scale * gram[columns][:, columns]).float() for gram in self.grams]
        crosses = [(scale * cross[columns]).float() for cross in self.crosses]
        mean = float(sum(gram.diagonal()[: len(columns) - free].mean() for gram in grams))
        misfits = dict.fromkeys(RIDGES, 0.0)
        for ridge in RIDGES:
            for fitted, other in ((0, 1), (1, 0)):
                weight = _solved(grams[fitted], crosses[fitted], prior.float(), ridge * mean, free)
                error = (weight * (grams[other] @ weight - 2 * crosses[other])).sum()
                misfits[ridge] += float(error) if torch.isfinite(error) else math.inf
        return misfits


def fit_output_layer(
    moments: Moments, kept: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The output layer on the kept nodes that best gives the wanted output, in the least-squares sense.

    Args:
        moments: Of the MLP's activations (all M nodes) and the wanted output.
        kept: Indices [M'] of the nodes that stay.
        weight: The present weight on them, [C, M']: the prior of a ridge regression.
        bias: The present bias, [C]; None where the layer has none.

    Returns:
        Weight [C, M'] and bias [C], of the originals' type; no bias where there was none.
    """
    device = moments.gram.device
    kept = kept.to(device)
    columns, prior = kept, weight
    if bias is not None:
        columns = torch.cat([kept, torch.tensor([len(moments.gram) - 1], device=device)])
        prior = torch.cat([weight, bias[:, None]], dim=1)
    gram, free = moments.gram[columns][:, columns], len(columns) - len(kept)
    prior = prior.to(device)
    strength = moments.ridge(columns, prior, free) * float(gram.diagonal()[: len(kept)].mean())
    solution = _solved(gram, moments.cross[columns], prior.double(), strength, free)
    fitted = None if bias is None else solution[-1].to(bias.dtype)
    return solution[: len(kept)].T.to(weight.dtype), fitted


def _solved(gram: Tensor, cross: Tensor, prior: Tensor, strength: float, free: int) -> Tensor:
    """The ridge fit [K, C] for moments AᵀA [K, K] and AᵀY [K, C], pulled to a prior [C, K] but for the last columns."""
    ridge = torch.full((len(gram),), strength, dtype=gram.dtype, device=gram.device)
    ridge[len(gram) - free :] = 1e-12 if gram.dtype == torch.float64 else 1e-6 * strength
    return _solve(gram + ridge.diag(), cross + ridge[:, None] * prior.T)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix` [K, K]⁻¹ `right`, of a symmetric matrix that is positive but for rounding: by Cholesky where it is."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, right) if failed else torch.cholesky_solve(right, factor)


def elimination_order(gram: Tensor, weight: Tensor, group: int = 8, *, bias: bool = True) -> Tensor:
    """The order in which hidden nodes are best given up, the rest making up for them.

    Without node j the squared error grows by ‖w_j‖² / (G⁻¹)_jj once the other weights are refitted: optimal brain
    surgeon (Hassibi & Stork, 1993) on whole columns. The cheapest nodes go, `group` at a time; then the inverse Gram
    matrix and the weights are brought up to date.

    Args:
        gram: AᵀA with the constant last, [M + 1, M + 1].
        weight: fc2, [C, M].
        group: Nodes between two updates; 1 is exact and slower.
        bias: Whether the layer has one, which makes up for means.

    Returns:
        Node indices [M], the first to go first.
    """
    hidden = weight.shape[1]
    if not bias:  # then the constant stands for nothing: a node apart from the others, which is never given up
        gram = gram.clone()
        gram[-1, :-1] = gram[:-1, -1] = 0
    ridge = RIDGE * gram.diagonal()[:-1].mean() + 1e-12
    inverse = torch.linalg.inv(gram + ridge * torch.eye(hidden + 1, dtype=gram.dtype, device=gram.device))
    # The bias helps to make up, but is never given up.
    weights = torch.cat([weight.double().T, weight.new_zeros(1, weight.shape[0], dtype=torch.float64)])
    left = torch.arange(hidden + 1, device=gram.device)
    gone = torch.zeros(hidden + 1, dtype=torch.bool, device=gram.device)
    gone[-1] = True
    order: list[Tensor] = []
    spent = 0
    for start in range(0, hidden, group):
        growth = (weights.square().sum(1) / inverse.diagonal().clamp_min(1e-30)).masked_fill(gone, torch.inf)
        nodes = growth.argsort(stable=True)[: min(group, hidden - start)]
        order.append(left[nodes])
        gone[nodes] = True
        rows = inverse[nodes]
        columns = torch.linalg.solve(rows[:, nodes], inverse[:, nodes], left=False)
        weights.addmm_(columns, weights[nodes], alpha=-1)
        inverse.addmm_(columns, rows, alpha=-1)
        spent += len(nodes)
        if spent > COMPACTED * len(left):
            stay = ~gone
            stay[-1] = True
            left, weights, inverse = left[stay], weights[stay], inverse[stay][:, stay].contiguous()
            gone, spent = left == hidden, 0
    return torch.cat(order)
