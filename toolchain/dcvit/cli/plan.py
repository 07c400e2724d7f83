"""`dcvit-tool plan`."""

from typing import Any

import click

from dcvit.cli.command import Command
from dcvit.cli.options import JsonObject, target_from, target_options


@click.command("plan", cls=Command)
@click.argument("model")
@click.option("--method", type=click.Choice(["dcvit"]), default="dcvit", show_default=True)
@target_options
@click.option("--model-kwargs", type=JsonObject(), default=None, help="Arguments of timm.create_model, as JSON.")
def command(model: str, method: str, model_kwargs: dict[str, Any] | None, **target: Any) -> Any:  # noqa: ARG001
    """Show what would be cut, and MACs, parameters and tokens before and after.

    MODEL is a timm name or a model folder. Needs no data and no weights.
    """
    from dcvit.methods.propose import propose, summarize_proposal
    from dcvit.subject import open_shapes

    wanted = target_from(**target)
    subject = open_shapes(model, model_kwargs)
    return summarize_proposal(subject, wanted, propose(subject, wanted))
