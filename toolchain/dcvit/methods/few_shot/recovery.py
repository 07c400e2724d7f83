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
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.plan import BlockPlan
from dcvit.progress import say
from dcvit.types import TimmModule

HELD_OUT = 8
"""One image of so many is neither fitted nor trained on."""

FEWEST = 4
"""Images of which one is held out; of fewer none is, and nothing is judged."""

TRIAL = 1 / 10
"""Share of the steps of a trial of a learning rate."""

FOLLOW_UP = 1 / 8
"""Share of the steps that a student trains which was cut from a trained one."""


def held_out(images: int) -> int:
    """How many of so many images are neither fitted nor trained on."""
    return max(1, images // HELD_OUT) if images >= FEWEST else 0


def recover_at_once(
    job: Job[SearchSettings], entries: Sequence[BlockPlan], examination: Examination, after: Earlier | None = None
) -> TimmModule:
    """Cuts and refits all blocks front to back, then trains the whole student once.

    After an earlier result only what is cut further is refitted, and a share of the steps is enough, at the rate that
    did best before. Weights that were refitted in closed form generalise well, and steps on a few images can cost more
    than they gain: a share of the images (`HELD_OUT`) is neither fitted nor trained on, and says at what learning rate
    to train, and whether that did any good. If not, the student is the one that is refitted on all images.
    """
    steps = job.settings.steps if entries or job.merges else 0  # nothing is lost that could be recovered
    orders = examination.orders | {
        entry.index: torch.arange(hidden_width(job.family.block(job.model, entry.index).mlp))
        for entry in entries
        if entry.mlp_hidden is not None and entry.index not in examination.orders
    }
    cuts = list(entries)
    if after is not None:
        cuts, orders = _further(after.entries, entries, orders)
        steps = math.ceil(steps * FOLLOW_UP)

    def refitted(without: int) -> TimmModule:
        with job.watch.stage("refit"):
            if after is None:
                student = job.merged()
            else:
                student = copy.deepcopy(after.student).to(next(job.model.parameters()).device)
            operate(student, job.wanted(without), job.family, job.start, cuts, orders)
        return student.eval()

    student = refitted(job.views.held_out if steps else 0)
    with job.watch.stage("recovery"):
        if not (steps and job.views.held_out):
            job.train(student, entries, steps, "recovering", last_block=job.depth - 1, after=after)
            return student.eval()
        job.training = found = _train_judged(job, student, entries, steps, after)
    if found.kept:
        return student.eval()
    name = score_of(job.start).words.name
    say(f"training does no good on the {found.images} images that it does not see ({name} {found.before:.3g} → "
        f"{found.after:.3g}): the weights are refitted on all images, and stay so")  # fmt: skip
    return refitted(0)


def _train_judged(
    job: Job[SearchSettings], student: TimmModule, entries: Sequence[BlockPlan], steps: int, after: Earlier | None
) -> Training:
    """Trains in place, at the learning rate that does best in short trials; says what that did on unseen images."""
    images = job.calibration[len(job.calibration) - job.views.held_out :]
    wanted = logits_of(job.model, images)
    where: dict[str, Any] = {"last_block": job.depth - 1, "after": after}

    def unseen(model: TimmModule) -> float:
        found = score_of(job.start).measure(logits_of(model, images), wanted)
        (agreed,) = broadcast_object_list([found])  # of several processes the first decides
        return float(agreed)

    def tried(lr: float) -> float:
        short = math.ceil(steps * TRIAL)
        return job.try_training(student, entries, short, f"trying lr {lr:g}", unseen, lr=lr, **where)

    before, lr = unseen(student), job.recipe.lr
    if after is not None and after.lr is not None:
        lr = after.lr
    elif job.settings.learning_rates:
        trials = {each: tried(each) for each in job.settings.learning_rates}
        lr = min(trials, key=lambda each: (math.isnan(trials[each]), trials[each]))
    job.train(student, entries, steps, "recovering", lr=lr, **where)
    return Training(len(images), before, unseen(student), lr)


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
