"""What the machine does fast."""

import platform

import pytest
import torch

from dcvit.hardware import accelerator, has_bf16
from dcvit.runtimes.pytorch import TorchSession, _note_emulation


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "found"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_bf16_needs_instructions_and_not_avx512_alone(
    monkeypatch: pytest.MonkeyPatch, *, avx512_bf16: bool, amx: bool, found: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bf16() == found


def test_a_gpu_that_emulates_bf16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(*, including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bf16()


def test_training_computes_in_bf16_where_the_machine_has_it() -> None:
    assert accelerator().mixed_precision == ("bf16" if has_bf16() else "no")


@pytest.mark.parametrize("has", [True, False])
def test_a_session_says_once_that_bf16_is_emulated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, has: bool
) -> None:
    monkeypatch.setattr("dcvit.hardware.has_bf16", lambda: has)
    _note_emulation.cache_clear()
    for precision in ("bf16", "fp32", "bf16"):
        TorchSession(torch.nn.Identity(), 1, precision, "cpu")
    assert [record.message for record in caplog.records if "emulates" in record.message] == (
        [] if has else ["this machine has no instructions for bf16: PyTorch emulates it, and takes longer than in fp32"]
    )
    _note_emulation.cache_clear()
