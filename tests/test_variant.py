"""One variant of a model: its files' names, what cannot be, and its way through JSON."""

from typing import Any

import pytest
from pydantic import ValidationError

from dcvit.errors import InputError
from dcvit.variant import PRECISIONS, Variant


def test_the_default_is_that_of_every_command() -> None:
    assert Variant() == Variant.of(64, "fp32", with_preprocessing=False)
    assert Variant().onnx_name == "model.b64.fp32.onnx"
    assert Variant().export_command("FOLDER") == "dcvit-tool export FOLDER"


def test_names_of_files() -> None:
    half, pixels = Variant.of(8, "fp16"), Variant.of(8, "int8", with_preprocessing=True)
    assert (half.onnx_name, pixels.onnx_name) == ("model.b8.fp16.onnx", "model.b8.int8.u8.onnx")
    assert half.engine_name("tensorrt-rtx") == "model.b8.fp16.tensorrt-rtx.engine"
    assert pixels.engine_name("tensorrt") == "model.b8.int8.u8.tensorrt.engine"


@pytest.mark.parametrize(
    ("variant", "flavor", "command"),
    [
        (Variant.of(8), None, "--batch 8"),
        (Variant.of(64, "int8"), None, "--precision int8 --data IMAGES"),
        (Variant(with_preprocessing=True), None, "--with-preprocessing"),
        (Variant.of(4, "bf16"), "tensorrt", "--batch 4 --precision bf16 --trt --flavor tensorrt"),
    ],
)
def test_the_command_that_makes_the_file(variant: Variant, flavor: Any, command: str) -> None:
    assert variant.export_command("FOLDER", flavor) == f"dcvit-tool export FOLDER {command}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_at_changes_the_precision_alone(precision: Any) -> None:
    other = Variant.of(8, "bf16", with_preprocessing=True).at(precision)
    assert other == Variant.of(8, precision, with_preprocessing=True)


def test_what_no_variant_can_be_is_refused_whichever_way_it_is_made() -> None:
    empty, unknown = (
        "--batch 0: a batch holds at least one image",
        "--precision fp4: choose fp32, fp16, bf16, int8 or fp8",
    )
    ways: list[tuple[Any, str]] = [
        (lambda: Variant.of(0), empty),
        (lambda: Variant(batch=0), empty),
        (lambda: Variant.model_validate_json('{"batch": 0}'), empty),
        (lambda: Variant.of(4, "fp4"), unknown),  # type: ignore[arg-type]
        (lambda: Variant(precision="fp4"), unknown),  # type: ignore[arg-type]
        (lambda: Variant().at("fp4"), unknown),  # type: ignore[arg-type]
    ]
    for make, message in ways:
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == message


def test_it_is_frozen_and_knows_no_other_field() -> None:
    variant = Variant.of(4)
    with pytest.raises(ValidationError, match="frozen"):
        variant.batch = 8
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Variant.model_validate({"threads": 2})
    assert len({variant, Variant.of(4), Variant.of(8)}) == 2


def test_there_and_back_through_json() -> None:
    variant = Variant.of(4, "bf16", with_preprocessing=True)
    text = variant.model_dump_json()
    assert text == '{"batch":4,"precision":"bf16","with_preprocessing":true,"dynamic":false,"for_engine":false}'
    assert Variant.model_validate_json(text) == variant
