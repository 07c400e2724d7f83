"""Asymmetric token merging (CAIT, arXiv 2309.15755) as a module that hangs on a block.

The mathematics and the GPU kernels are in `dcvit_kernels`. Merges attach to timm's own blocks by forward hooks: no
forward is copied, block indices and weight names stay timm's, and torch.compile, torch.export and deepcopy all follow.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dcvit_kernels
from dcvit.plan import Axis, MergeOperator


class Merged(NamedTuple):
    """Patch tokens around one merge: [B, H·W, C] `before` it, and [B, H'·W', C] `after`."""

    before: Tensor
    after: Tensor


class TokenMerge(nn.Module):
    """Merges neighbouring tokens in pairs along one axis of the patch grid.

    The prefix tokens pass unchanged; the last row or column of an odd side merges with itself.

    Args:
        dim: Embedding width C.
        grid: Patch grid (H, W) before the merge.
        axis: `horizontal` halves W, `vertical` halves H.
        num_prefix_tokens: Class, distillation and register tokens in front of the patches.
        operator: `mean`, or `linear`: W [C, 2C] and bias, which start as the mean and are trained.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], axis: Axis, num_prefix_tokens: int, operator: MergeOperator = "mean"
    ) -> None:
        super().__init__()
        self.seen: dict[
            int, list[Merged]
        ] = {}  # by thread: what goes in and comes out, while `merges_seen` asks for it
        self.grid, self.axis, self.num_prefix_tokens = grid, axis, num_prefix_tokens
        if operator == "linear":
            half = 0.5 * torch.eye(dim)
            self.weight: nn.Parameter | None = nn.Parameter(torch.cat([half, half], dim=1))
            self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(dim))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

    @property
    def merged_grid(self) -> tuple[int, int]:
        """Patch grid (H', W') after the merge."""
        return dcvit_kernels.merged_grid(self.grid, self.axis)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [B, P + H·W, C] to [B, P + H'·W', C]."""
        prefix = self.num_prefix_tokens
        if self.weight is None or self.bias is None:
            merged = dcvit_kernels.merge_mean(x, self.grid, self.axis, prefix)
        else:
            merged = dcvit_kernels.merge_linear(x, self.weight, self.bias, self.grid, self.axis, prefix)
        if (seen := self.seen.get(_thread())) is not None:
            seen.append(Merged(x[:, prefix:], merged[:, prefix:]))
        return merged

    def extra_repr(self) -> str:
        operator = "mean" if self.weight is None else "linear"
        return f"{self.axis}, grid={self.grid}→{self.merged_grid}, operator={operator}"


def attach_merge(block: nn.Module, merge: TokenMerge) -> None:
    """Lets `merge` act on the block's output; its weights are called `merge.*` (`merge2.*` for a second one)."""
    taken = sum(isinstance(child, TokenMerge) for child in block.children())
    block.add_module("merge" if taken == 0 else f"merge{taken + 1}", merge)
    if taken == 0:
        block.register_forward_hook(_merge_output)


@contextmanager
def merges_seen(model: nn.Module) -> Iterator[list[Merged]]:
    """The merges of the one forward pass that runs inside, in the order in which they happen.

    Several threads may run the model at once: each sees its own.
    """
    seen: list[Merged] = []
    thread = _thread()
    merges = [module for module in model.modules() if isinstance(module, TokenMerge)]
    for merge in merges:
        merge.seen[thread] = seen
    try:
        yield seen
    finally:
        for merge in merges:
            del merge.seen[thread]


def _thread() -> int:
    """Of this thread; a compiled graph has no use for it, and cannot ask."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def carry_merges(old: nn.Module, new: nn.Module) -> nn.Module:
    """Moves the merges that hang on a block to the module that replaces it, and returns that module."""
    for child in [child for child in old.children() if isinstance(child, TokenMerge)]:
        attach_merge(new, child)
    return new


def attach_size_bias(attention: nn.Module, sizes: Tensor) -> None:
    """Makes attention size-aware: the logits of a key that stands for s tokens get + log s (as in ToMe, 2210.09461).

    Args:
        attention: A timm attention, which takes `attn_mask`.
        sizes: [N], how many tokens each token stands for (1 for a prefix token).
    """
    _set_size_bias(attention, sizes.float().log()[None, None, None])


def carry_size_bias(old: nn.Module, new: nn.Module) -> None:
    """Gives `new` the size bias of the attention that it replaces, if that one has any."""
    bias = getattr(old, "size_bias", None)
    if bias is not None:
        _set_size_bias(new, bias)


def apply_merges(block: nn.Module, tokens: Tensor) -> Tensor:
    """What the merges that hang on a block make of its own output, [B, N, C] to [B, N', C]."""
    for child in block.children():
        if isinstance(child, TokenMerge):
            tokens = child(tokens)
    return tokens


def _set_size_bias(attention: nn.Module, bias: Tensor) -> None:
    attention.register_buffer("size_bias", bias, persistent=False)
    attention.register_forward_pre_hook(_add_size_bias, with_kwargs=True)


def _merge_output(block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return apply_merges(block, output)


def _add_size_bias(attention: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
    bias = attention.get_buffer("size_bias").to(inputs[0].dtype)
    mask = kwargs.get("attn_mask")
    return inputs, kwargs | {"attn_mask": bias if mask is None else mask + bias}
