"""The same run again, from the manifest of its model folder: everything that decided it, but images and files."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from dcvit.bench.machine import this_machine
from dcvit.errors import InputError, first_line
from dcvit.files import base_name, sha256_of
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.base import MethodSettings
from dcvit.methods.registry import METHODS
from dcvit.methods.target import Target
from dcvit.progress import say
from dcvit.run_record import NO_RESULT
from dcvit.settings import RunSettings
from dcvit.stages import weights_digest
from dcvit.subject import Subject
from dcvit.versions import package_versions

GIVEN_AGAIN = {*NO_RESULT, "checkpoint"}
"""Fields of a run that are no part of what is repeated: files must be given again."""


def describe(model: str | Path | nn.Module, subject: Subject, run: RunSettings, *, alone: bool) -> dict[str, Any]:
    """What a manifest holds for a run to be repeated, beside method, settings, target and seed.

    Args:
        model: As the user gave it.
        subject: The same, opened.
        run: What the run was told.
        alone: Whether this is all that decides it; a point of a frontier also depends on the others.
    """
    checkpoint = run.checkpoint
    of_timm = not isinstance(model, nn.Module) and not ModelFolder.is_one(model)
    return {
        "alone": alone,
        "model": str(model) if of_timm else None,
        "model_in_words": subject.weights,
        "weights_sha256": weights_digest(subject.model.state_dict()),
        "checkpoint": None if checkpoint is None else {"name": checkpoint.name, "sha256": sha256_of(checkpoint)},
        "run": run.model_dump(mode="json", exclude=GIVEN_AGAIN),
        "threads": torch.get_num_threads(),
        "machine": this_machine().kind,
        "system": f"{platform.system()} {platform.machine()}",
    }


@dataclass(frozen=True)
class Repeated:
    """A run as its manifest tells it.

    Attributes:
        path: The manifest.
        manifest: What it says.
        target: That was to be reached.
        settings: Of the method.
        run: The other settings; those of `GIVEN_AGAIN` are as the user gives them now.
    """

    path: Path
    manifest: Manifest
    target: Target
    settings: MethodSettings
    run: RunSettings

    def model(self, given: str | Path | nn.Module | None) -> str | Path | nn.Module:
        """The model to start from: the timm name of the run, or what the user gives for a folder or a module.

        Raises:
            InputError: If another name is given, or nothing where the manifest cannot know it.
        """
        before: str | None = self.manifest.repeat["model"]
        if before is None and given is None:
            raise InputError(
                f"{self.path}: the run started from {self.manifest.repeat['model_in_words']}; give it as MODEL"
            )
        if before is not None and given is not None and given != before:
            raise InputError(f"MODEL: the run of {self.path} was of {before}, and now it is {given}; leave it out")
        found = given if before is None else before
        assert found is not None
        return found

    def check_subject(self, subject: Subject) -> None:
        """Raises InputError if the weights to start from are not those of the run."""
        if weights_digest(subject.model.state_dict()) != self.manifest.repeat["weights_sha256"]:
            raise InputError(
                f"MODEL: its weights ({subject.weights}) are not those that the run of {self.path} started from "
                f"({self.manifest.repeat['model_in_words']})"
            )

    def check_images(self, fingerprint: Mapping[str, Any] | None) -> None:
        """Raises InputError if images are not those of the run: what they are called does not count."""
        before, now = (_nameless(each) for each in (self.manifest.data, fingerprint))
        if before == now:
            return
        differs = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        raise InputError(
            f"--data: {differs} of the images is {_short(now.get(differs))}, and was {_short(before.get(differs))} in "
            f"the run of {self.path}; give the same images"
        )


def read(path: Path, given: RunSettings) -> Repeated:
    """Reads the run of a manifest.

    Args:
        path: `manifest.json` of a model folder.
        given: What the user gives beside it: nothing but fields of `GIVEN_AGAIN`.

    Raises:
        InputError: If it is no manifest, or one that cannot be repeated; if the checkpoint is not that of the run.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--from-manifest: {path} cannot be read: {first_line(error)}") from error
    if not manifest.repeat.get("alone") or manifest.method not in METHODS:
        raise InputError(
            f"--from-manifest: {path} does not hold all that repeats a run; it is of a frontier, which is made again "
            "as a whole, or of an older version"
        )
    kind = METHODS[manifest.method].settings
    settings = {name: manifest.settings[name] for name in kind.model_fields if name in manifest.settings}
    again = {name: getattr(given, name) for name in GIVEN_AGAIN}
    try:
        repeated = Repeated(
            path,
            manifest,
            Target.model_validate(manifest.settings.get("target", {})),
            kind.model_validate(settings),
            RunSettings.model_validate(manifest.repeat["run"] | again),
        )
        _check_checkpoint(repeated, given.checkpoint)
        _tell_differences(manifest)
    except (ValidationError, KeyError, TypeError) as error:
        raise InputError(f"--from-manifest: {path} cannot be read: {first_line(error)}") from error
    return repeated


def _check_checkpoint(repeated: Repeated, given: Path | None) -> None:
    before = repeated.manifest.repeat["checkpoint"]
    if before is None:
        if given is not None:
            raise InputError(f"--checkpoint: the run of {repeated.path} had none; leave it out")
        return
    if given is None:
        raise InputError(f"--checkpoint: the run of {repeated.path} started from {before['name']}; give it again")
    if not given.is_file():
        raise InputError(f"--checkpoint: there is no file {given}")
    if sha256_of(given) != before["sha256"]:
        raise InputError(
            f"--checkpoint: {base_name(given)} is not the file of the run of {repeated.path}: its sha256 is "
            f"{_short(sha256_of(given))}, and was {_short(before['sha256'])}"
        )


def _tell_differences(manifest: Manifest) -> None:
    """Says what may change the last bits of the weights."""
    before = manifest.versions | {name: manifest.repeat[name] for name in ("threads", "machine", "system")}
    now: dict[str, Any] = package_versions() | {
        "threads": torch.get_num_threads(),
        "machine": this_machine().kind,
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in before | now:
        if before.get(name) != now.get(name):
            say(f"not as in the run: {name} is {now.get(name)}, and was {before.get(name)}; weights may differ")


def _nameless(fingerprint: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fingerprint or {}).items() if name != "source"}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"
