"""What an engine is built with, and for: checked before any work is done."""

from dataclasses import dataclass
from typing import Any

import torch

from dcvit.errors import InputError
from dcvit.runtimes import flavors
from dcvit.variant import Flavor

Profile = tuple[int, int, int]
"""Least number of images, the one that kernels are chosen for, and the most."""

DEFAULT_PROFILE: Profile = (1, 64, 256)

DEFAULT_COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")
"""GeForce and workstation GPUs from Ampere to Blackwell: what TensorRT-RTX is for."""


@dataclass(frozen=True)
class EngineTarget:
    """What an engine is built with, and for.

    Attributes:
        compute_capabilities: For TensorRT-RTX; None for TensorRT, which builds for the GPU at hand.
        compute_capability: Of the GPU at hand, for TensorRT.
    """

    flavor: Flavor
    version: str
    compute_capabilities: tuple[str, ...] | None
    compute_capability: str | None = None


def engine_target(
    flavor: Flavor | None,
    compute_capabilities: tuple[str, ...] | None,
    least: tuple[int, int] | None = None,
) -> EngineTarget:
    """Checks, before any work is done, that an engine can be built.

    Args:
        flavor: None takes the one that is installed.
        compute_capabilities: Of the GPUs that a TensorRT-RTX engine is for.
        least: The first capability that has fp8, where that is what the engine computes in.

    Raises:
        InputError: If the flavor is not installed, needs a GPU that is not there, or does not know a capability, or
            the GPU has no fp8.
    """
    flavor = flavor or flavors.default_flavor()
    trt = flavors.load(flavor)
    if flavor == "tensorrt":
        if compute_capabilities:
            raise InputError(
                "--compute-capability is for tensorrt-rtx; tensorrt builds for this machine's GPU "
                "(leave it out, or add --flavor tensorrt-rtx)"
            )
        if not torch.cuda.is_available():
            raise InputError(
                "TensorRT builds engines on the GPU that will run them, and there is none here; "
                "--flavor tensorrt-rtx builds without one"
            )
        here = "{}.{}".format(*torch.cuda.get_device_capability())
        _require_fp8((here,), least)
        return EngineTarget(flavor, trt.__version__, None, here)
    default = [each for each in DEFAULT_COMPUTE_CAPABILITIES if least is None or capability_numbers(each) >= least]
    chosen = tuple(dict.fromkeys(compute_capabilities or default))
    known = _known_capabilities(trt)
    if unknown := [capability for capability in chosen if capability not in known]:
        raise InputError(
            f"--compute-capability {unknown[0]}: TensorRT-RTX {trt.__version__} builds for {', '.join(known)}"
        )
    _require_fp8(chosen, least)
    return EngineTarget(flavor, trt.__version__, chosen)


def _require_fp8(compute_capabilities: tuple[str, ...], least: tuple[int, int] | None) -> None:
    if least is None:
        return
    for capability in compute_capabilities:
        if capability_numbers(capability) < least:
            raise InputError(
                f"--precision fp8: GPUs of compute capability {capability} have no fp8, which begins with "
                f"{'.'.join(map(str, least))}; choose --precision int8 or fp16"
            )


def capability_numbers(capability: str) -> tuple[int, ...]:
    """The numbers of a capability such as 8.9."""
    return tuple(map(int, capability.split(".")))


def _known_capabilities(trt: Any) -> list[str]:
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in names]
