"""What a model folder says about itself."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dcvit.files import plain_name
from dcvit.preprocessing import Preprocessing

FileName = Annotated[str, AfterValidator(plain_name)]
"""Of a file in the folder itself: a name that leads out of it raises InputError."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileEntry(_Strict):
    """One file of the folder."""

    sha256: str
    bytes: int


class Manifest(_Strict):
    """Where a compressed model comes from and what is in its folder.

    Attributes:
        method: The method that found the plan.
        plan_digest: sha256 of the plan's canonical JSON.
        preprocessing: How images are prepared.
        settings: Every setting of the run, as given or by default.
        data: Fingerprint of the images used; None where no data was.
        classes: Names of the model's classes, in the order of its outputs, as the data or a class map gave them; None
            where they are not known.
        metrics: What the run measured (MACs, parameters, errors, seconds).
        versions: Of the packages that made it.
        repeat: What else a run is repeated from: the model's name and weights, sha256 of the checkpoint, the settings
            of the run, threads and kind of machine. Empty where it cannot be.
        exports: One entry for each ONNX file and engine, by file name.
        files: sha256 and size of every file in the folder but the manifest itself.
    """

    schema_version: Literal[1] = 1
    model: str
    method: str
    plan_digest: str
    seed: int
    preprocessing: Preprocessing
    settings: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    repeat: dict[str, Any] = Field(default_factory=dict)
    exports: dict[FileName, dict[str, Any]] = Field(default_factory=dict)
    files: dict[FileName, FileEntry] = Field(default_factory=dict)
