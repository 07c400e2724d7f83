"""--task: what a model is for."""

import functools
from collections.abc import Callable
from typing import Any

import click

TASKS = click.Choice(["classification", "segmentation"])


def task_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--task and --head of a command that makes a model."""
    for decorate in (
        click.option("--head", type=click.Choice(["linear", "multi-level"]),
                     help="Of a new segmentation model: what reads the last block, or several. [default: linear]"),
        click.option("--task", type=TASKS, help="'segmentation' puts a new head in place of a classifier's and trains "
                     "it along (--method cait, data with masks). [default: what MODEL is for]"),
    ):  # fmt: skip
        function = decorate(function)
    return function


def checked_task_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--task of a command that takes a model folder, which knows its task: another one is an error."""

    @click.option("--task", type=TASKS, help="What the model must be for. [default: what it is for]")
    @functools.wraps(function)
    def checked(task: str | None, **arguments: Any) -> Any:
        if task is not None:
            _check(arguments["folder"] if "folder" in arguments else arguments["model"], task)
        return function(**arguments)

    return checked


def _check(model: Any, task: str) -> None:
    from dcvit.errors import InputError
    from dcvit.folder.model_folder import ModelFolder

    found = ModelFolder(model).plan.task if ModelFolder.is_one(model) else "classification"
    if found != task:
        hint = "; `dcvit-tool compress --task segmentation` makes one" if task == "segmentation" else ""
        raise InputError(f"--task {task}: {model} is for {found}{hint}")
