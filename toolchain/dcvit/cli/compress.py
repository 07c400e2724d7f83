"""`dcvit-tool compress`."""

from pathlib import Path
from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.fields import was_given
from dcvit.cli.methods import ALL, method_options, read
from dcvit.flags import flags_of


@click.command("compress", cls=Command)
@click.argument("model", required=False)
@click.option(
    "--data", help="A folder of images, a tar of one, or 'digits'. Labels are used where a method learns from them."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The model folder to write.")
@click.option(
    "--from-manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Do the run of a model folder's manifest.json again: MODEL and settings are the file's, and --data and "
    "--checkpoint, given again, must be the same.",
)
@method_options
def command(model: str | None, data: str | None, out: Path, from_manifest: Path | None, **flags: Any) -> Any:
    """Make a model smaller: find a plan, recover accuracy, write a model folder.

    The default method needs a few unlabelled images. MODEL is a timm name or a model folder.
    """
    if from_manifest is not None:
        return _again(from_manifest, model, data, out, flags)
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    asked = read(model, flags)
    from dcvit.compression import compress

    return compress(model, data, out=out, target=asked.target, settings=asked.settings, **dict(asked.run))


def _again(manifest: Path, model: str | None, data: str | None, out: Path, flags: dict[str, Any]) -> Any:
    from dcvit.compression import compress
    from dcvit.repeat import GIVEN_AGAIN

    given = [name for name in flags if was_given(name)]
    options = {field.name: field.option for each in ALL for field in flags_of(each)}
    for name in given:
        if name not in GIVEN_AGAIN:
            option = options.get(name, f"--{name}")
            raise click.UsageError(f"{option}: --from-manifest decides it; leave it out")
    return compress(model, data, out=out, from_manifest=manifest, **{name: flags[name] for name in given})
