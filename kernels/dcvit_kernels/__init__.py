"""Asymmetric token merging for Vision Transformers: Triton kernels on CUDA, plain PyTorch elsewhere.

Triton is imported only when a kernel is launched, so this package works without it.
"""

from dcvit_kernels.merge import merge_linear, merge_linear_norm, merge_mean, merge_mean_norm, unmerge, use_kernels
from dcvit_kernels.reference import Axis, merged_grid

__all__ = [
    "Axis",
    "merge_linear",
    "merge_linear_norm",
    "merge_mean",
    "merge_mean_norm",
    "merged_grid",
    "unmerge",
    "use_kernels",
]
