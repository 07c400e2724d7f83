"""A moving average of a model's weights."""

import torch
from torch import Tensor, nn


class MovingAverage:
    """Follows a model's parameters; early on faster than `decay` says, as timm's `ModelEmaV3` can."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the parameters after optimiser step `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), parameters, 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Puts a saved average back."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """Replaces the model's parameters by their average; buffers stay."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])
