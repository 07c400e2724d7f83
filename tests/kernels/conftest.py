"""How the kernel tests run: natively where a GPU is, otherwise in Triton's interpreter.

`TRITON_INTERPRET=1 pytest tests/kernels` runs them in the interpreter on a machine with a GPU too.
"""

import os
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch

NATIVE = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"


def _interpret_kernels() -> None:
    """Import the kernels for the interpreter, whatever has imported Triton before.

    Triton reads TRITON_INTERPRET when it decorates a function. Importing timm is enough to import Triton, and then its
    own functions (tl.sum, tl.cdiv and so on) are of the compiled kind already: they are replaced. Nothing else in a
    process without a GPU can run them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction

        replaced: dict[int, InterpretedFunction] = {}
        for name in [name for name in sys.modules if name.startswith("triton.language")]:
            for attribute, value in list(vars(sys.modules[name]).items()):
                if isinstance(value, JITFunction):
                    interpreted = replaced.setdefault(id(value), InterpretedFunction(value.fn))
                    setattr(sys.modules[name], attribute, interpreted)
        for module in ("sums", "pairs", "norm", "linear", "linear_backward", "eager"):
            import_module(f"dcvit_kernels.{module}")


if not NATIVE:
    _interpret_kernels()


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("cpu", id="interpreted", marks=pytest.mark.skipif(NATIVE, reason="runs natively here")),
        pytest.param(
            "cuda", id="native", marks=[pytest.mark.gpu, pytest.mark.skipif(not NATIVE, reason="needs an NVIDIA GPU")]
        ),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device the kernels run on."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        yield request.param


@pytest.fixture
def kernels_everywhere(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the public functions launch interpreted kernels on CPU tensors too."""
    monkeypatch.setattr("dcvit_kernels.merge._takes_kernels", lambda x: True)
    return device
