"""Which hidden nodes of an MLP stay."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from dcvit.families import Family
from dcvit.layers import hidden_width, input_weights
from dcvit.types import TimmModule

NodeSelection = Literal["importance", "random", "norm"]


class NodeRanking:
    """Ranks the hidden nodes of each block's MLP.

    `random` is the paper's choice: a uniformly random subset. `importance` is E|a|·‖w‖, the mean size of a node's
    activation on calibration images times the norm of its column of fc2: how much the node puts into the residual
    stream. `norm` needs no images: ‖row of fc1‖·‖column of fc2‖, with both rows of a gated MLP.

    Args:
        model: The model to be cut.
        images: Calibration images [n, C, H, W]; only `importance` needs them.
        seed: Of the random choice.
    """

    def __init__(
        self,
        model: TimmModule,
        family: Family,
        blocks: Sequence[int],
        selection: NodeSelection,
        *,
        images: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.selection, self.seed = selection, seed
        self._scores: dict[int, Tensor] = {}
        mlps = {index: family.block(model, index).mlp for index in blocks}
        if selection == "importance":
            if images is None:
                raise ValueError("importance needs calibration images")
            sizes = mean_activations(model, mlps, images)
            self._scores = {i: sizes[i] * mlp.fc2.weight.detach().norm(dim=0) for i, mlp in mlps.items()}
        elif selection == "norm":
            self._scores = {
                index: math.prod(rows.detach().norm(dim=1) for rows in input_weights(mlp))
                * mlp.fc2.weight.detach().norm(dim=0)
                for index, mlp in mlps.items()
            }
        else:
            self._hidden = {index: hidden_width(mlp) for index, mlp in mlps.items()}

    def best(self, block: int, width: int) -> Tensor:
        """Indices [width] of the nodes that stay, ascending."""
        return self._best_first(block)[:width].sort().values

    def order(self, block: int) -> Tensor:
        """Indices [M] of all nodes, the ones to go first in front."""
        return self._best_first(block).flip(0)

    def _best_first(self, block: int) -> Tensor:
        if self.selection == "random":
            generator = torch.Generator().manual_seed(self.seed * 1009 + block)
            return torch.randperm(self._hidden[block], generator=generator)
        return self._scores[block].argsort(descending=True, stable=True)


@torch.no_grad()
def mean_activations(
    model: TimmModule, mlps: dict[int, Any], images: Tensor, batch_size: int = 64
) -> dict[int, Tensor]:
    """E|a| of each hidden node over images and tokens: [M] for each MLP."""
    sums = {index: torch.zeros(hidden_width(mlp), device=mlp.fc2.weight.device) for index, mlp in mlps.items()}
    counts = dict.fromkeys(mlps, 0)

    def collect(index: int) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].flatten(0, -2).float().abs()
            sums[index] += flat.sum(0)
            counts[index] += len(flat)

        return hook

    with _hooks([mlp.fc2.register_forward_pre_hook(collect(index)) for index, mlp in mlps.items()]):
        device = next(model.parameters()).device
        for batch in images.split(batch_size):
            model(batch.to(device))
    return {index: (total / counts[index]).cpu() for index, total in sums.items()}


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
