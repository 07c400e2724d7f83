"""What each architecture is and what a plan may do to it."""

from dcvit.errors import InputError
from dcvit.families.base import Architecture, BlockSpec, Family
from dcvit.families.beit import BeitFamily
from dcvit.families.class_attention import CaitFamily
from dcvit.families.eva import EvaFamily
from dcvit.families.resnet import ResnetFamily
from dcvit.families.swin import SwinFamily, SwinV2Family
from dcvit.families.vit import VitFamily
from dcvit.types import TimmModule

__all__ = ["FAMILIES", "Architecture", "BlockSpec", "Family", "family_of", "supported_architectures"]

FAMILIES: tuple[Family, ...] = (
    VitFamily(),
    EvaFamily(),
    BeitFamily(),
    CaitFamily(),
    SwinFamily(),
    SwinV2Family(),
    ResnetFamily(),
)


def supported_architectures() -> str:
    """The supported architectures in words, for messages."""
    return "; ".join(family.supported for family in FAMILIES)


def family_of(model: TimmModule) -> Family:
    """The family that a timm model belongs to.

    Raises:
        InputError: If no family takes the model; the message says why and lists what is supported.
    """
    for family in FAMILIES:
        if family.matches(model):
            if reason := family.unsupported_reason(model):
                raise InputError(
                    f"{type(model).__name__} with {reason} is not supported; supported: {supported_architectures()}"
                )
            return family
    raise InputError(f"architecture {type(model).__name__} is not supported; supported: {supported_architectures()}")
