"""The MLPs of timm that can be narrowed: plain ones, and gated ones, whose nodes are a product of two projections."""

from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn

from dcvit.types import TimmModule


def cannot_narrow(mlp: TimmModule) -> str | None:
    """Why the nodes of an MLP cannot be cut one by one, in words; None when they can."""
    if type(mlp) not in (Mlp, GluMlp, SwiGLU):
        return f"MLPs of type {type(mlp).__name__}"
    # It is taken over all nodes together.
    return None if isinstance(mlp.norm, nn.Identity) else "a norm inside the MLP"


def hidden_width(mlp: TimmModule) -> int:
    """Hidden nodes M: inputs of fc2."""
    return int(mlp.fc2.in_features)


def input_weights(mlp: TimmModule) -> tuple[Tensor, ...]:
    """The weights [M, C] that the nodes are made with: one, or of a gated MLP two."""
    if isinstance(mlp, SwiGLU):
        return mlp.fc1_g.weight, mlp.fc1_x.weight
    return mlp.fc1.weight.chunk(2) if isinstance(mlp, GluMlp) else (mlp.fc1.weight,)
