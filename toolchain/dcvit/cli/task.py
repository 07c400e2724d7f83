"""--task: what a model is for."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dcvit.errors import InputError
from dcvit.flags import Flag
from dcvit.plan import Task


class TaskOption(BaseModel):
    """--task of a command that takes a model, which knows its task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Annotated[Task | None, Flag(default="what it is for")] = Field(
        default=None, description="What the model must be for."
    )


def check_task(model: Path | str, task: Task | None) -> None:
    """Checks that a model folder is for a task; a timm name is for classification.

    Raises:
        InputError: If it is for another one.
    """
    if task is None:
        return
    from dcvit.folder.model_folder import ModelFolder

    found = ModelFolder(model).plan.task if ModelFolder.is_one(model) else "classification"
    if found != task:
        hint = "; `dcvit-tool compress --task segmentation` makes one" if task == "segmentation" else ""
        raise InputError(f"--task {task}: {model} is for {found}{hint}")
