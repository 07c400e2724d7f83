"""Adds partial sums up, in a fixed order, and stores them in the dtype that is wanted: one launch for two tensors."""

# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcvit_kernels.geometry import cdiv
from dcvit_kernels.launch import INTERPRETED, Launch

BLOCK_ROWS, BLOCK_COLUMNS = (4, 16) if INTERPRETED else (16, 128)


@triton.jit(do_not_specialize=["rows", "first_size", "columns"])
def column_sums_kernel(
    partial, first, second, rows, first_size, columns, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Sum `partial` [rows, columns] over its rows: the first `first_size` sums to `first`, the others to `second`."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0.0, tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(partial + row.to(tl.int64)[:, None] * columns + column[None, :], mask, 0.0)
    value = tl.sum(total, axis=0)
    is_first = column < first_size
    tl.store(first + column, value.to(first.dtype.element_ty), is_first)
    tl.store(
        second + tl.where(is_first, 0, column - first_size),
        value.to(second.dtype.element_ty),
        (column < columns) & ~is_first,
    )


def column_sums(partial_rows: int, first_size: int, second_size: int, device: int) -> Launch:
    """The launch that sums fp32 `[rows, first + second]`; call it with (partial, first, second)."""
    columns = first_size + second_size
    grid = (cdiv(columns, BLOCK_COLUMNS),)
    constants = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS}
    return Launch(column_sums_kernel, device, grid, (partial_rows, first_size, columns), constants)


def partial_sums(x: Tensor, rows: int, columns: int) -> Tensor:
    """Room for partial sums, beside `x`."""
    return torch.empty((rows, columns), dtype=torch.float32, device=x.device)
