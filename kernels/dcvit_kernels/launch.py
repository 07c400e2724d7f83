"""Launches that are made once for each layout of their tensors, and then cost two microseconds.

Triton's own launch finds out anew at every call which program its arguments ask for: it binds them, looks at each
number and pointer, and builds a key. Here the caller has a key already (shapes, strides, dtypes, alignment), everything
but the tensors is fixed with it, and what is left is to hand pointers to the compiled program.
"""

from collections.abc import Hashable
from typing import Any

import torch
import triton
from torch import Tensor

# Triton reads TRITON_INTERPRET when it decorates a kernel, so the mode is settled once, at import.
INTERPRETED: bool = triton.knobs.runtime.interpret

# More layouts than this are no fixed set: whoever feeds that many pays for Triton's own launch now and then.
MOST_PLANS = 4096


def check_device(x: Tensor) -> None:
    """Raise RuntimeError unless kernels run where `x` is."""
    if not (x.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"x is on {x.device}; the kernels need a CUDA tensor (or TRITON_INTERPRET=1 before the first import)"
        )


class Launch:
    """A kernel with its grid, its numbers and its constants; call it with the tensors, which come first.

    Only for tensors of one layout: on the same device, and aligned alike to 16 bytes, as Triton builds a program for
    aligned pointers and another for others.
    """

    __slots__ = (
        "_current_device", "_device", "_enter", "_exit", "_function", "_grid", "_kernel", "_metadata", "_options",
        "_run", "_stream", "_tail", "_x", "_y", "_z", "program",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Any,
        device: int,
        grid: tuple[int, ...],
        numbers: tuple[float, ...],
        constants: dict[str, Any],
        warps: int = 4,
        stages: int = 3,
    ) -> None:
        """Fix everything but the tensors: `device` is the index of the GPU, -1 in the interpreter."""
        self._kernel, self._device, self._grid = kernel, device, grid
        self._x, self._y, self._z = (*grid, 1, 1)[:3]
        names = kernel.arg_names[-len(constants) :]
        self._tail = (*numbers, *(constants[name] for name in names))
        self._options = {"num_warps": warps, "num_stages": stages}
        self._run: Any = None
        self.program: Any = None

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device."""
        # A profiler of Triton's hangs on the hooks, which its own launch serves.
        if self._run is None or self._current_device() != self._device or self._enter.calls or self._exit.calls:
            self._launch(tensors)
        else:
            self._run(
                self._x, self._y, self._z, self._stream(self._device), self._function, self._metadata,
                None, None, None, *tensors, *self._tail,
            )  # fmt: skip

    def _launch(self, tensors: tuple[Tensor, ...]) -> None:
        """Launch as Triton does, which compiles at the first time, and keep the compiled program."""
        if self._device < 0:
            program = self._kernel[self._grid](*tensors, *self._tail, **self._options)
        else:
            with torch.cuda.device(self._device):
                program = self._kernel[self._grid](*tensors, *self._tail, **self._options)
        if self._run is None and program is not None:  # the interpreter gives none
            self.keep(program)

    def keep(self, program: Any) -> None:
        """Launch `program`, which Triton compiled for this layout, from now on."""
        driver, runtime = triton.runtime.driver.active, triton.knobs.runtime
        self.program, self._function, self._metadata = program, program.function, program.packed_metadata
        self._enter, self._exit = runtime.launch_enter_hook, runtime.launch_exit_hook
        self._current_device, self._stream = driver.get_current_device, driver.get_current_stream
        self._run = program.run


class Plans(dict[Hashable, Any]):
    """What an operator keeps for each layout that it has met."""

    def keep(self, key: Hashable, plan: Any) -> Any:
        """Keep and return `plan`."""
        if len(self) >= MOST_PLANS:
            self.clear()
        self[key] = plan
        return plan
