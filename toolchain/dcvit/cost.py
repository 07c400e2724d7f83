"""What a model costs: MACs in two conventions, and parameters."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcvit.plan import MacsConvention


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one image.

    Attributes:
        total: MACs of the whole model.
        by_module: MACs under each module that computes something, by its name in the model.
    """

    total: int
    by_module: dict[str, int] = field(default_factory=dict)

    def under(self, modules: Iterable[str]) -> int:
        """MACs of the named modules together (0 for one that computes nothing or does not exist)."""
        return sum(self.by_module.get(name, 0) for name in modules)


def count_macs(model: nn.Module, input_size: tuple[int, int, int], convention: MacsConvention = "full") -> MacCount:
    """Counts the MACs of one forward pass of one image, without computing it.

    Args:
        model: Any module that takes images; its weights are not touched.
        input_size: (channels, height, width).
        convention: `full` counts every multiply-accumulate, QKᵀ and AV included. `dcvit` counts as the DC-ViT paper
            (arXiv 2403.18708) does: convolutions, linear layers, and 4·N·C for a layer norm over N tokens.
    """
    # On the meta device nothing is computed, and fused attention is counted, which the CPU's is not.
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    images = torch.empty(1, *input_size, device="meta", dtype=dtype)
    counter = _count_full if convention == "full" else _count_dcvit
    with _evaluating(model), torch.no_grad():
        return counter(model, meta, images)


def count_params(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _count_full(model: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> MacCount:
    counter = FlopCounterMode(display=False)
    with counter:
        torch.func.functional_call(model, tensors, (images,))
    root = type(model).__name__ + "."
    by_module = {
        name.removeprefix(root): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return MacCount(counter.get_total_flops() // 2, by_module)


def _count_dcvit(model: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> MacCount:
    by_module: Counter[str] = Counter()

    def count(name: str, macs: int) -> None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            by_module[".".join(parts[:end])] += macs
        by_module[""] += macs

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if isinstance(module, nn.LayerNorm):
                count(name, 4 * output.numel())
            elif isinstance(module, nn.Linear):
                count(name, output.numel() * module.in_features)
            elif isinstance(module, nn.Conv2d):
                count(name, output.numel() * module.weight[0].numel())

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        torch.func.functional_call(model, tensors, (images,))
    finally:
        for handle in handles:
            handle.remove()
    total = by_module.pop("", 0)
    return MacCount(total, dict(by_module))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
