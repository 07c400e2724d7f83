"""How the solver's students recover: weights refitted in closed form, then trained where that helps."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from dcvit.layers import hidden_width
from dcvit.methods.cuts.damage import Examination
from dcvit.methods.cuts.scores import logits_of, score_of
from dcvit.methods.cuts.surgery import best_nodes, operate
from dcvit.methods.few_shot.job import Earlier, Job, Training
from dcvit.plan import BlockPlan
from dcvit.progress import say
from dcvit.types import TimmModule

HELD_OUT = 8
"""One image of so many is not trained on."""

FOLLOW_UP = 1 / 8
"""Share of the steps that a student trains which was cut from a trained one."""


def recover_at_once(
    job: Job[Any], entries: Sequence[BlockPlan], examination: Examination, after: Earlier | None = None
) -> TimmModule:
    """Cuts and refits all blocks front to back, then trains the whole student once.

    After an earlier result only what is cut further is refitted, and a share of the steps is enough. Weights that were
    refitted in closed form generalise well, and some steps on a few images can cost more than they gain: a share of the
    images (`HELD_OUT`) is not trained on, and says whether what was trained stays.
    """
    steps = job.settings.steps if entries or job.merges else 0  # nothing is lost that could be recovered
    orders = examination.orders | {
        entry.index: torch.arange(hidden_width(job.family.block(job.model, entry.index).mlp))
        for entry in entries
        if entry.mlp_hidden is not None and entry.index not in examination.orders
    }
    with job.watch.stage("refit"):
        if after is None:
            student, cuts = job.merged(), list(entries)
        else:
            student = copy.deepcopy(after.student).to(next(job.model.parameters()).device)
            cuts, orders = _further(after.entries, entries, orders)
            steps = math.ceil(steps * FOLLOW_UP)
        operate(student, job.wanted(), job.family, job.start, cuts, orders)
    with job.watch.stage("recovery"):
        _train(job, student, entries, steps, after)
    return student.eval()


def _train(job: Job[Any], student: TimmModule, entries: Sequence[BlockPlan], steps: int, after: Earlier | None) -> None:
    """Trains in place; what made it worse on the images that no step saw, is taken back."""

    def unseen() -> float:
        found = score_of(job.start).measure(logits_of(student, held_out), logits_of(job.model, held_out))
        (agreed,) = broadcast_object_list([found])  # of several processes the first decides
        return float(agreed)

    held_out = job.calibration[len(job.calibration) - job.views.held_out :]
    judged = bool(steps and len(held_out))
    refitted = {name: weight.clone() for name, weight in student.state_dict().items()} if judged else {}
    before = unseen() if judged else 0.0
    job.train(student, entries, steps, "recovering", last_block=job.depth - 1, after=after)
    if not judged:
        return
    job.training = Training(len(held_out), before, unseen())
    if not job.training.kept:
        student.load_state_dict(refitted)
        say(
            f"{steps} steps made it worse on {len(held_out)} images that they did not see "
            f"({score_of(job.start).words.name} {before:.3g} → {job.training.after:.3g}): the refitted weights stay"
        )


def _further(
    earlier: Sequence[BlockPlan], entries: Sequence[BlockPlan], orders: Mapping[int, Tensor]
) -> tuple[list[BlockPlan], dict[int, Tensor]]:
    """The entries as changes of a student that follows the earlier ones, and the orders of the nodes that it has."""
    had = {entry.index: entry for entry in earlier}
    cuts, left = [], dict(orders)
    for entry in entries:
        before = had.get(entry.index)
        if before is None:
            cuts.append(entry)
            continue
        removed = None if entry.removed == before.removed else entry.removed
        head_dim = None if entry.head_dim == before.head_dim else entry.head_dim
        width = None if entry.mlp_hidden == before.mlp_hidden else entry.mlp_hidden
        if width is not None and before.mlp_hidden is not None:
            order = orders[entry.index]
            nodes = best_nodes(order, before.mlp_hidden)
            left[entry.index] = torch.searchsorted(nodes, order[len(order) - before.mlp_hidden :])
        if (removed, head_dim, width) != (None, None, None):
            cuts.append(BlockPlan(index=entry.index, removed=removed, head_dim=head_dim, mlp_hidden=width))
    return cuts, left
