"""`dcvit-tool plan`."""

from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import JsonObject, target_from, target_options
from dcvit.cli.training import joint_options, refuse_training_flags, take_preset


@click.command("plan", cls=Command)
@click.argument("model")
@click.option("--method", type=click.Choice(["dcvit", "cait"]), default="dcvit", show_default=True)
@target_options
@joint_options
@click.option("--model-kwargs", type=JsonObject(), default=None, help="Arguments of timm.create_model, as JSON.")
def command(model: str, model_kwargs: dict[str, Any] | None, **flags: Any) -> Any:
    """Show what would be cut, and MACs, parameters and tokens before and after.

    MODEL is a timm name or a model folder. Needs no data and no weights.
    """
    from dcvit.methods.cait.proposal import summarize_jointly
    from dcvit.methods.cait.settings import CaitSettings
    from dcvit.methods.few_shot.proposal import propose, summarize_proposal
    from dcvit.subject import open_shapes

    take_preset(model, flags)
    method = flags.pop("method")
    subject = open_shapes(model, model_kwargs)
    if method == "cait":
        settings = CaitSettings(prune=flags.pop("prune") is not False, widths=flags.pop("widths"))
        return summarize_jointly(subject, target_from(**flags), settings)
    refuse_training_flags(flags, method)
    wanted = target_from(**flags)
    return summarize_proposal(subject, wanted, propose(subject, wanted))
