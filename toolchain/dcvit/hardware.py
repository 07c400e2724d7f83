"""Where training runs and in which precision: chosen by what the machine does fast."""

import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from accelerate import Accelerator

from dcvit.types import TimmModule


@cache
def accelerator() -> Accelerator:
    """The process's Accelerate handle: one device a process, bf16 autocast where the hardware has it.

    Started by `torchrun` or `accelerate launch`, several processes share the work.
    """
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if has_bf16() else "no")


def has_bf16() -> bool:
    """Whether this machine has instructions for bf16.

    Without them torch computes in bf16 all the same, and takes longer than in fp32: three times as long (DeiT-Tiny at
    32 px, batch 128, 2 threads of an Ice Lake Xeon) on a CPU that has AVX-512 alone, which oneDNN calls supported.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def give_memory_back() -> None:
    """Returns what models in this process have freed to the system: glibc keeps small pieces for itself."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@contextmanager
def fast_backward(model: TimmModule) -> Iterator[None]:
    """Turns fused attention off for a block of training on CPU, whose fused backward is several times slower."""
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    if accelerator().device.type != "cpu":
        fused = []
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True
