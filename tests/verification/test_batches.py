"""A runtime whose rows depend on their place, their neighbours or the batch is found, in every precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import Session
from dcvit.variant import Precision
from dcvit.verification import verify
from dcvit.verification.batches import check_session
from dcvit.verification.checks import Check
from dcvit.verification.parity import Expected

BATCH, IMAGES, CLASSES = 4, 8, 10
Fault = Callable[[Tensor, int], Tensor]
"""What a faulty runtime makes of the right rows of one batch, and the number of the batch."""


def model(images: Tensor) -> Tensor:
    """Any function of each image alone."""
    weight = torch.randn(CLASSES, images[0].numel(), generator=torch.Generator().manual_seed(0))
    return images.flatten(1) @ weight.T


class Faulty(Session):
    """Computes the model, and then makes a mistake."""

    def __init__(self, fault: Fault, batch: int = BATCH) -> None:
        super().__init__(batch, "CPU", 1)
        self._fault, self._runs = fault, 0

    def load(self, images: Tensor) -> None:
        self._images = images

    def execute(self) -> None:
        self._runs += 1

    def logits(self) -> Tensor:
        return self._fault(model(self._images), self._runs)


def checks(fault: Fault, precision: Precision = "fp32", batch_of_one: Callable[[Tensor], Tensor] | None = None) -> dict:
    images = torch.randn(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    right = model(images)
    expected = Expected("random input", images, right, False, lambda: right, model(images[:4]))
    found: list[Check] = list(check_session("file", Faulty(fault), [expected], precision, batch_of_one))
    return {check.name.split(": ")[-1]: check.passed for check in found}


def right(rows: Tensor, _run: int) -> Tensor:
    return rows


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_runtime_that_is_right_passes(precision: Precision) -> None:
    assert all(checks(right, precision).values())
    assert len(checks(right, precision)) == 4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_row_that_depends_on_its_place(precision: Precision) -> None:
    def later_rows_smaller(rows: Tensor, _run: int) -> Tensor:
        return rows * torch.tensor([1.0, 1.0, 1.0, 0.5])[:, None]

    assert not checks(later_rows_smaller, precision)["equal images"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_rows_that_stay_where_others_were(precision: Precision) -> None:
    def stale() -> Fault:
        """From its third batch on, the first image's rows are those of the batch before: right to parity."""
        before: list[Tensor] = []

        def fault(rows: Tensor, run: int) -> Tensor:
            before.append(rows)
            return rows if run <= 3 else torch.cat([before[-2][:1], rows[1:]])

        return fault

    found = checks(stale(), precision)
    assert found["file against PyTorch, random input"]
    assert not found["permuted batch"]


def test_rows_close_to_each_other_are_told_apart_in_bf16() -> None:
    """An untrained model gives nearly the same for all images, within any tolerance of bf16."""
    close = torch.randn(IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 1e-3 + 1
    wanted = model(close)
    expected = Expected("random input", close, wanted, False, lambda: wanted, model(close[:4]))
    seen: list[Tensor] = []

    def exchanged(rows: Tensor, run: int) -> Tensor:
        seen.append(rows)
        return rows.flip(0) if run == 5 else rows  # two batches are for parity, one for equal images

    found = {check.name: check for check in check_session("file", Faulty(exchanged), [expected], "bf16")}
    assert found["file: equal images"].passed
    check = found["file: permuted batch"]
    assert check.max_abs_error is not None
    assert check.tolerance is not None
    assert check.max_abs_error < check.tolerance
    assert not check.passed
    assert check.detail == "4 of 8 rows are another image's"


def test_a_batch_that_is_not_what_one_image_gives() -> None:
    def of_one(images: Tensor) -> Tensor:
        return model(images) * 0.9

    assert checks(right, "fp32", model)["batch 1"]
    assert not checks(right, "fp32", of_one)["batch 1"]
    assert not checks(lambda rows, _run: rows * 0.9)["batch 1"]


def test_rows_that_are_not_finite_fail_and_hold_no_number() -> None:
    def broken(rows: Tensor, run: int) -> Tensor:
        return rows if run <= 2 else rows * torch.inf

    found = checks(broken)
    assert not found["equal images"]
    assert not found["permuted batch"]


def test_the_file_of_batch_1_is_what_a_batch_is_compared_with(exported_copy: ModelFolder) -> None:
    export(exported_copy, 1, "fp32")
    details = {check.name: check.detail for check in verify(exported_copy.path).checks}
    assert "the file of batch 1" in details["model.b4.fp32.onnx: ONNX Runtime: batch 1"]
    for name in ("model.b1.fp32.onnx", "model.b4.fp16.onnx"):
        assert "PyTorch, one image at a time" in details[f"{name}: ONNX Runtime: batch 1"]
