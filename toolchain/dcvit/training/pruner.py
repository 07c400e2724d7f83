"""What training needs to know of a method that narrows a model while it trains."""

from typing import Any, Protocol


class Pruner(Protocol):
    """Changes the widths of a student between optimiser steps.

    All processes of a run call it at the same steps with equal weights, so they take the same decisions.
    """

    @property
    def no_weight_decay(self) -> frozenset[str]:
        """Names of the student's parameters that weight decay must leave alone."""

    def before_step(self) -> None:
        """Edits the gradients, after they have been averaged, unscaled and clipped."""

    def after_step(self, step: int, steps: int, lr: float) -> None:
        """Edits weights and masks after optimiser step `step` (from 0) of `steps`, taken at learning rate `lr`."""

    def widths(self) -> dict[str, list[int]]:
        """Channels a head and nodes an MLP still has, by block, for the screen and the log."""

    def state_dict(self) -> dict[str, Any]:
        """All that is not among the student's weights: tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a saved state back."""
