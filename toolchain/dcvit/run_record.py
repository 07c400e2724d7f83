"""What a run was started with, kept beside its checkpoints: what is resumed must be the same run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dcvit.errors import InputError
from dcvit.files import base_name, json_text, whole_file
from dcvit.flags import option_named
from dcvit.methods.base import MethodSettings
from dcvit.methods.target import Target
from dcvit.settings import RunSettings
from dcvit.stages import weights_digest
from dcvit.subject import Subject

RUN = "run.json"

NO_RESULT = {"cache", "checkpoint_minutes", "tensorboard", "resume", "overwrite"}
"""Fields of a run that change nothing of what comes of it, and so may be changed when it is resumed."""


def describe(
    subject: Subject, data: str | None, target: Target, settings: MethodSettings, run: RunSettings, **more: Any
) -> dict[str, Any]:
    """Everything that a result depends on, by the option that says it.

    Every field of target, settings and run is in it, those that are added later too, but for `NO_RESULT`.

    Args:
        subject: The model.
        data: What the images are called.
        target: What is to be reached.
        settings: Of the method.
        run: The other settings.
        more: What a command has beside these, by option.
    """
    said = {
        "MODEL": subject.plan.model,
        "--data": None if data is None else base_name(data),
        "--method": settings.method,
        **_by_option(target, Target),
        **_by_option(settings, type(settings)),
        **_by_option(run, RunSettings, NO_RESULT),
        **more,
        "the weights of MODEL": weights_digest(subject.model.state_dict())[:12],
    }
    if run.checkpoint is not None:
        said["--checkpoint"] = run.checkpoint.name
    return dict(json.loads(json_text(said)))


def check_same(place: Path, said: Mapping[str, Any]) -> None:
    """Checks that the run which left its checkpoints at a place was started with the same.

    Raises:
        InputError: If it was not; the message names the first option that differs, and both values.
    """
    path = place / RUN
    if not path.is_file():
        return
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read; start anew with --overwrite") from error
    for option in said:
        if before.get(option) != said[option]:
            old, new = _short(before.get(option)), _short(said[option])
            raise InputError(
                f"{option}: the run in {place.parent} was started with {old}, and now it is {new}; give the same to "
                "--resume, or start anew with --overwrite"
            )


def write(place: Path, said: Mapping[str, Any]) -> None:
    """Keeps what a run is started with."""
    with whole_file(place / RUN) as aside:
        aside.write_text(json_text(said, indent=2) + "\n", encoding="utf-8")


def _by_option(values: BaseModel, model: type[BaseModel], leaves_out: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    """The fields, those of settings within them too, by what they are called to the user."""
    found: dict[str, Any] = {}

    def add(settings: BaseModel, path: tuple[str, ...]) -> None:
        for name in type(settings).model_fields:
            value = getattr(settings, name)
            if not path and name in leaves_out:
                continue
            if isinstance(value, BaseModel) and name not in ("plan", "head"):
                add(value, (*path, name))
            else:
                plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else _plain(value)
                found[option_named((*path, name), model)] = plain

    add(values, ())
    return found


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
