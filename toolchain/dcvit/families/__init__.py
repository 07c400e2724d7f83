"""What each architecture is and what a plan may do to it."""

from dcvit.errors import InputError
from dcvit.families.base import Architecture, BlockSpec, Family
from dcvit.families.beit import BeitFamily
from dcvit.families.class_attention import ClassAttentionFamily
from dcvit.families.eva import EvaFamily
from dcvit.families.resnet import ResnetFamily
from dcvit.families.swin import SwinFamily, SwinV2Family
from dcvit.families.vit import VitFamily
from dcvit.types import TimmModule

__all__ = ["FAMILIES", "Architecture", "BlockSpec", "Family", "family_of", "matching_family", "supported_architectures"]

FAMILIES: tuple[Family, ...] = (
    VitFamily(),
    EvaFamily(),
    BeitFamily(),
    ClassAttentionFamily(),
    SwinFamily(),
    SwinV2Family(),
    ResnetFamily(),
)


def supported_architectures() -> str:
    """The supported architectures in words, for messages."""
    return "; ".join(family.supported for family in FAMILIES)


def matching_family(model: TimmModule) -> Family | None:
    """The family that a timm model is of, cut or not, and whether or not a plan can handle it; None for any other."""
    return next((family for family in FAMILIES if family.matches(model)), None)


def family_of(model: TimmModule) -> Family:
    """The family that a timm model belongs to.

    Raises:
        InputError: If no family takes the model; the message says why and lists what is supported.
    """
    family = matching_family(model)
    if family is None:
        what = f"architecture {type(model).__name__}"
    elif reason := family.unsupported_reason(model):
        what = f"{type(model).__name__} with {reason}"
    else:
        return family
    raise InputError(f"{what} is not supported; supported: {supported_architectures()}")
