"""Closed-form surgery on an MLP from calibration activations, before any gradient step.

An MLP's output layer is linear in its hidden activations A [T, M] (T tokens). So the nodes that can best be spared, and
the weights that make up for them, follow from the second moments of A and of the wanted output Y [T, C] alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-3
"""Weight of the prior that pulls a fit to the original weights, in units of the mean second moment of a node."""


@dataclass
class Moments:
    """Second moments of activations and wanted outputs, summed over tokens, in float64.

    The activations carry a constant 1 as their last column, for the bias.

    Attributes:
        gram: AᵀA, [M + 1, M + 1].
        cross: AᵀY, [M + 1, C].
    """

    gram: Tensor
    cross: Tensor

    @classmethod
    def empty(cls, hidden: int, width: int, device: torch.device | str = "cpu") -> "Moments":
        """No tokens yet, for M = `hidden` and C = `width`."""
        gram = torch.zeros(hidden + 1, hidden + 1, dtype=torch.float64, device=device)
        return cls(gram, gram.new_zeros(hidden + 1, width))

    def add(self, activations: Tensor, wanted: Tensor) -> None:
        """Adds tokens: activations [..., M], wanted outputs [..., C]."""
        flat = activations.flatten(0, -2).float()
        flat = torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)
        # Products of one chunk in fp32, which is far faster; only their long sum needs float64.
        self.gram += flat.T @ flat
        self.cross += flat.T @ wanted.flatten(0, -2).float()


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
    gram = moments.gram[columns][:, columns]
    strength = float(RIDGE * gram.diagonal()[: len(kept)].mean())
    ridge = torch.full((len(columns),), strength, dtype=torch.float64, device=device)
    ridge[len(kept) :] = 1e-12  # the bias is free
    wanted = moments.cross[columns] + ridge[:, None] * prior.double().T.to(device)
    solution = torch.linalg.solve(gram + ridge.diag(), wanted)
    fitted = None if bias is None else solution[-1].to(bias.dtype)
    return solution[: len(kept)].T.to(weight.dtype), fitted


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
    gone = torch.zeros(hidden + 1, dtype=torch.bool, device=gram.device)
    gone[-1] = True
    order: list[Tensor] = []
    for start in range(0, hidden, group):
        growth = (weights.square().sum(1) / inverse.diagonal().clamp_min(1e-30)).masked_fill(gone, torch.inf)
        nodes = growth.argsort(stable=True)[: min(group, hidden - start)]
        order.append(nodes)
        gone[nodes] = True
        columns = torch.linalg.solve(inverse[nodes][:, nodes], inverse[:, nodes], left=False)
        weights -= columns @ weights[nodes]
        inverse -= columns @ inverse[nodes]
    return torch.cat(order)
