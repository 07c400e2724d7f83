"""A run that is resumed must be the one that was started: every option of every method, old value against new."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dcvit import run_record
from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.flags import choices_of, flags_of, nested, plain_type
from dcvit.methods.base import MethodSettings
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.registry import METHODS
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.settings import RunSettings
from dcvit.subject import Subject, open_subject
from dcvit.training.finetune import Finetuning
from dcvit.training.recipe import TrainingRecipe

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
STARTS = {
    "speedup": {"speedup": 1.5},
    "runtime": {"speedup": 1.5, "runtime": "onnxruntime"},
    **{name: {"speedup": 1.5} for name in ("precision", "batch", "threads", "latency_table")},
}
"""Fields of a target that mean something beside another one alone."""


@pytest.fixture(scope="module")
def subject() -> Subject:
    return open_subject("vit_tiny_patch16_224", model_kwargs=TINY, weights="random")


def other_than(value: Any, info: FieldInfo) -> Any:
    """Another value that a field takes."""
    kind = plain_type(info.annotation)
    if choices := choices_of(kind):
        return next(choice for choice in choices if choice != value)
    if kind is bool:
        return not value
    if kind is CompressionPlan:
        return CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=TINY)
    if get_origin(kind) is tuple:
        return (0, 255)
    if kind in (int, float):
        tried = [kind(1), kind(2), 0.25, 3]
        return next(each for each in tried if each != value and accepts(info, each))
    return {dict: {"num_classes": 3}, str: "horizontal@1"}.get(get_origin(kind) or kind, Path("other.safetensors"))


def accepts(info: FieldInfo, value: float) -> bool:
    """Whether a number is in a field's range."""
    limits = [(each, name) for each in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(each, name)]
    tests = {"ge": value.__ge__, "gt": value.__gt__, "le": value.__le__, "lt": value.__lt__}
    return all(tests[name](getattr(each, name)) is True for each, name in limits) or not limits


def options() -> Iterator[tuple[str, type[BaseModel], tuple[str, ...]]]:
    for method in METHODS.values():
        for model in (Target, method.settings, RunSettings):
            for field in flags_of(model):
                if method.knows(field.name) and field.name not in run_record.NO_RESULT:
                    yield method.name, model, field.path


@pytest.mark.parametrize(
    ("method", "model", "path"), list(options()), ids=lambda part: part if isinstance(part, str) else None
)
def test_a_changed_option_is_refused_by_name_with_both_values(
    method: str, model: type[BaseModel], path: tuple[str, ...], subject: Subject, tmp_path: Path
) -> None:
    def said(changed: Any) -> dict[str, Any]:
        parts: dict[type[BaseModel], Any] = {
            Target: Target.model_validate(STARTS.get(path[-1], {})), RunSettings: RunSettings(),
        }  # fmt: skip
        own: type[MethodSettings] = METHODS[method].settings
        parts.setdefault(own, own.model_validate({}))
        if changed is not None:
            base = parts[model].model_dump(exclude_unset=True)
            parts[model] = model.model_validate(base | nested({path: changed}))
        return run_record.describe(subject, "images", parts[Target], parts[own], parts[RunSettings])

    field = next(each for each in flags_of(model) if each.path == path)
    before = said(None)
    run_record.write(tmp_path / "checkpoints", before)
    run_record.check_same(tmp_path / "checkpoints", before)
    start = STARTS.get(path[-1], {}).get(path[-1], field.info.get_default())
    changed = "torch" if path == ("runtime",) else other_than(start, field.info)
    with pytest.raises(InputError) as refused:
        run_record.check_same(tmp_path / "checkpoints", said(changed))
    text = str(refused.value)
    assert text.startswith(f"{field.option}: the run in {tmp_path} was started with ")
    assert "\n" not in text
    assert "--resume" in text
    old, new = text.split(" was started with ")[1].split(", and now it is ")
    assert old != new.split(";")[0]


def test_what_changes_no_result_may_be_changed(subject: Subject, tmp_path: Path) -> None:
    settings = CaitSettings()
    run_record.write(tmp_path, run_record.describe(subject, "images", Target(), settings, RunSettings()))
    other = RunSettings(
        cache=tmp_path / "cache", checkpoint_minutes=1, tensorboard=tmp_path, resume=True, overwrite=True
    )
    run_record.check_same(tmp_path, run_record.describe(subject, "images", Target(), settings, other))


def test_other_weights_and_other_images_are_named(subject: Subject, tmp_path: Path) -> None:
    settings = CaitSettings()
    run_record.write(tmp_path, run_record.describe(subject, "a/images", Target(), settings, RunSettings()))
    run_record.check_same(tmp_path, run_record.describe(subject, "moved/images", Target(), settings, RunSettings()))
    with pytest.raises(InputError, match=r"--data: .* was started with images, and now it is others"):
        run_record.check_same(tmp_path, run_record.describe(subject, "others", Target(), settings, RunSettings()))
    torch.manual_seed(7)
    other = open_subject("vit_tiny_patch16_224", model_kwargs=TINY, weights="random")
    with pytest.raises(InputError, match="the weights of MODEL: "):
        run_record.check_same(tmp_path, run_record.describe(other, "images", Target(), settings, RunSettings()))


def test_a_broken_record_is_one_line(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / run_record.RUN).write_text("{")
    with pytest.raises(InputError, match="cannot be read; start anew with --overwrite"):
        run_record.check_same(tmp_path, {})


@pytest.mark.parametrize("multiple", ["4", "16"])
def test_widths_of_a_pruning_that_was_stopped_cannot_be_changed(
    multiple: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It went on with the old ones and said the new ones, or ended as an internal error."""
    settings = CaitSettings(widths="cdcp", training=TrainingRecipe(epochs=1, batch_size=16))
    monkeypatch.setattr(Finetuning, "_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with monkeypatch.context() as patch:
        patch.setattr(Finetuning, "_time_to_save", lambda *_: True)
        with pytest.raises(KeyboardInterrupt):
            compress(
                "vit_tiny_patch16_224", "digits", out=tmp_path / "out", macs_reduction=0.4, settings=settings,
                merge="horizontal@2", samples=32, model_kwargs=TINY, weights="random",
            )  # fmt: skip
    arguments = [
        "compress", "vit_tiny_patch16_224", "--random-init", "--model-kwargs", json.dumps(TINY), "--data", "digits",
        "--samples", "32", "--method", "cait", "--widths", "cdcp", "--epochs", "1", "--batch-size", "16", "--merge",
        "horizontal@2", "--macs-reduction", "0.4", "--width-multiple", multiple, "--resume", "-o",
        str(tmp_path / "out"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli(arguments)
    assert ended.value.code == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"--width-multiple: the run in {tmp_path / 'out'} was started with 8, and now it is {multiple};" in error
