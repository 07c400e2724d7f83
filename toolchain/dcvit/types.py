"""Names for types that their library leaves open."""

from typing import Any, TypeAlias

TimmModule: TypeAlias = Any
"""An nn.Module of timm. timm ships no types, and torch types a module's attributes as `Tensor | Module`."""
