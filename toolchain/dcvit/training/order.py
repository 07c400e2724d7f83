"""Which images make up which step: a pure function of the seed, so that a run can go on in the middle of an epoch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dcvit.data import derived_seed


@dataclass(frozen=True)
class Draw:
    """Images that are computed at once: one part of one process's share of a step.

    Attributes:
        step: The optimiser step, from 0.
        positions: [b], places in the endless stream of all images of all epochs.
        epochs: [b], epoch of each image.
        indices: [b], the images.
    """

    step: int
    positions: Tensor
    epochs: Tensor
    indices: Tensor


class Order:
    """Every image once an epoch, in an order of its own; a batch may reach into the next epoch.

    Args:
        images: How many there are.
        batch_size: Images a step, over all processes and parts; a multiple of their number.
        parts: Parts of a batch that one process computes one after the other.
        process: This process's number, of `processes`.
    """

    def __init__(
        self, images: int, batch_size: int, seed: int, *, parts: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        self.images, self.batch_size, self.seed, self.parts = images, batch_size, seed, parts
        self._shares = parts * processes
        self._first = process * parts
        self._permutations: dict[int, Tensor] = {}

    def draws(self, start: int, steps: int) -> Iterator[Draw]:
        """The parts of steps `start` to `steps` − 1, one after the other."""
        for step in range(start, steps):
            for part in range(self.parts):
                yield self._draw(step, self._share(self._first + part))

    def _share(self, number: int) -> Tensor:
        """Places in a batch of one share: with each place its mirror image, since timm's mixup pairs these."""
        half = torch.arange(number, self.batch_size // 2, self._shares)
        middle = torch.arange(self.batch_size // 2, self.batch_size - self.batch_size // 2)
        return torch.cat([half, middle if number == 0 else middle[:0], self.batch_size - 1 - half.flip(0)])

    def _draw(self, step: int, places: Tensor) -> Draw:
        positions = step * self.batch_size + places
        epochs = positions // self.images
        indices = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            indices[chosen] = self._permutation(epoch)[positions[chosen] % self.images]
        return Draw(step, positions, epochs, indices)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            while len(self._permutations) > 1:  # a batch reaches into two epochs, of tiny sets into more
                self._permutations.pop(next(iter(self._permutations)))
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            self._permutations[epoch] = torch.randperm(self.images, generator=generator)
        return self._permutations[epoch]
