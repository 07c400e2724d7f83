"""Closed-form surgery on an MLP from calibration activations, before any gradient step.

An MLP's output layer is linear in its hidden activations A [T, M] (T tokens). So the nodes that can best be spared, and
the weights that make up for them, follow from the second moments of A and of the wanted output Y [T, C] alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3
"""Weight of the prior that pulls the fit to the original weights, in units of the mean second moment of a node."""


@dataclass
class Moments:
    """Second moments of activations and wanted outputs, summed over tokens, in float64.

    The activations carry a constant 1 as their last column, for the bias.

    Attributes:
        gram: AᵀA, [M + 1, M + 1].
        cross: AᵀY, [M + 1, C].
        energy: Sum of squares of Y around its mean is `energy - …`; kept as the plain sum of squares.
        tokens: T.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    tokens: int = 0

    @classmethod
    def empty(cls, hidden: int, width: int) -> "Moments":
        """No tokens yet, for M = `hidden` and C = `width`."""
        return cls(
            torch.zeros(hidden + 1, hidden + 1, dtype=torch.float64),
            torch.zeros(hidden + 1, width, dtype=torch.float64),
        )

    def add(self, activations: Tensor, wanted: Tensor) -> None:
        """Adds tokens: activations [..., M], wanted outputs [..., C]."""
        flat = activations.flatten(0, -2).double()
        flat = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
        target = wanted.flatten(0, -2).double()
        self.gram += (flat.T @ flat).cpu()
        self.cross += (flat.T @ target).cpu()
        self.energy += float(target.square().sum())
        self.tokens += len(flat)


def fit_output_layer(moments: Moments, kept: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The output layer on the kept nodes that best gives the wanted output, in the least-squares sense.

    Args:
        moments: Of the MLP's activations and the wanted output.
        kept: Indices [M'] of the nodes that stay.
        weight: The original weight of fc2, [C, M]; its kept columns are the prior.
        bias: The original bias, [C].

    Returns:
        Weight [C, M'] and bias [C], as the originals' type.
    """
    columns = torch.cat([kept, torch.tensor([len(moments.gram) - 1])])
    gram = moments.gram[columns][:, columns]
    prior = torch.cat([weight[:, kept], bias[:, None]], dim=1).double().T
    strength = RIDGE * gram.diagonal()[:-1].mean()
    ridge = torch.full((len(columns),), float(strength), dtype=torch.float64)
    ridge[-1] = 0.0  # the bias is free
    solution = torch.linalg.solve(gram + ridge.diag(), moments.cross[columns] + ridge[:, None] * prior)
    return solution[:-1].T.to(weight.dtype), solution[-1].to(bias.dtype)


def elimination_order(moments: Moments, weight: Tensor) -> Tensor:
    """The order in which nodes are best given up: one at a time, the rest making up for it (optimal brain surgeon).

    Giving up node j raises the squared error by ‖w_j‖² / (G⁻¹)_jj when the other weights are refitted; after each one
    the inverse Gram matrix and the weights are updated (Hassibi & Stork, 1993, on whole columns).

    Args:
        moments: Of the MLP's activations; the wanted output is not used.
        weight: fc2, [C, M].

    Returns:
        Node indices [M], the first to go first.
    """
    hidden = weight.shape[1]
    gram = moments.gram.clone()
    gram += torch.eye(hidden + 1, dtype=torch.float64) * (RIDGE * gram.diagonal()[:-1].mean())
    inverse = torch.linalg.inv(gram)
    # The bias column takes part in making up, but is never given up.
    weights = torch.cat([weight.double().T, torch.zeros(1, weight.shape[0], dtype=torch.float64)])
    alive = torch.ones(hidden + 1, dtype=torch.bool)
    alive[-1] = False
    order = []
    for _ in range(hidden):
        scores = weights.square().sum(1) / inverse.diagonal().clamp_min(1e-30)
        scores[~alive] = torch.inf
        node = int(scores.argmin())
        order.append(node)
        alive[node] = False
        pivot = inverse[node, node]
        column = inverse[:, node] / pivot
        weights -= column[:, None] * weights[node]
        inverse -= column[:, None] * inverse[node]
        # The node is out of the system: nothing may flow back through it.
        weights[node] = 0.0
        inverse[node] = 0.0
        inverse[:, node] = 0.0
    return torch.tensor(order)
