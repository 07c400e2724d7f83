"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import BaseModel, ConfigDict, Field

from dcvit.cli.fields import takes, was_given
from dcvit.cli.method_command import MethodCommand
from dcvit.cli.methods import ALL, method_options, read
from dcvit.flags import Argument, Flag, flags_of


class Options(BaseModel):
    """What is compressed, on which images, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str | None, Argument()] = None
    data: Annotated[str | None, Flag()] = Field(
        default=None,
        description="A folder of images, a tar of one, or 'digits'. Labels are used where a method learns from them.",
    )
    validation: Annotated[str | None, Flag(metavar="DATA", default="a fifth of --data is held out")] = Field(
        default=None, description="Images that --max-drop is measured on, by their labels where they have some."
    )
    out: Annotated[Path, Flag(short="-o")] = Field(description="The model folder to write.")
    from_manifest: Annotated[Path | None, Flag(metavar="FILE", path="file")] = Field(
        default=None,
        description="Do the run of a model folder's manifest.json again: MODEL and settings are the file's, and --data "
        "and --checkpoint, given again, must be the same.",
    )


EXAMPLES = (
    "dcvit-tool compress deit_small_patch16_224 --data images/ --macs-reduction 0.3 -o small",
    "dcvit-tool compress deit_small_patch16_224 --checkpoint mine.safetensors \\\n"
    "      --model-kwargs '{\"num_classes\": 37}' --data images/ --speedup 1.5 -o small",
    "dcvit-tool compress deit_tiny_patch16_224 --data train/ --preset cait-tiny --epochs 30 -o small",
)


@click.command("compress", cls=MethodCommand, examples=EXAMPLES)
@takes(Options)
@method_options
def command(given: Options, **flags: Any) -> Any:
    """Make a model smaller: find a plan, recover accuracy, write a model folder.

    The default method needs a few unlabelled images. MODEL is a timm name or a model folder.
    """
    if given.from_manifest is not None:
        return _again(given, flags)
    if given.model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    asked = read(given.model, flags)
    asked.method.check_target(asked.target)
    from dcvit.compression import compress

    more = dict(asked.run) | {"validation": given.validation}
    return compress(given.model, given.data, out=given.out, target=asked.target, settings=asked.settings, **more)


def _again(asked: Options, flags: dict[str, Any]) -> Any:
    from dcvit.compression import compress
    from dcvit.repeat import GIVEN_AGAIN

    given = [name for name in flags if was_given(name)]
    options = {field.name: field.option for each in ALL for field in flags_of(each)}
    for name in given:
        if name not in GIVEN_AGAIN:
            option = options.get(name, f"--{name}")
            raise click.UsageError(f"{option}: --from-manifest decides it; leave it out")
    again = {name: flags[name] for name in given} | {"validation": asked.validation}
    return compress(asked.model, asked.data, out=asked.out, from_manifest=asked.from_manifest, **again)
