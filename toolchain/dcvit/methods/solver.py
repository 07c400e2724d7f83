"""Our search: measure the damage of every cut once, solve for any target, refit the weights, then train.

Past the paper in three ways: the nodes that stay are chosen and the others made up for in closed form, widths and the
number of attention-free blocks are free, and what was measured serves every later target.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dcvit.errors import InputError
from dcvit.layers import hidden_width
from dcvit.methods.allocate import Allocation, BlockDamage, OutOfReachError, allocate
from dcvit.methods.damage import FRACTIONS, Examination, examine
from dcvit.methods.job import Earlier, Job
from dcvit.methods.structure import UnitCost
from dcvit.methods.surgery import best_nodes, operate
from dcvit.plan import BlockPlan
from dcvit.training.hardware import accelerator
from dcvit.training.stages import StageResult
from dcvit.types import TimmModule

FOLLOW_UP = 1 / 8
"""Share of the steps that a student trains which was cut from a trained one."""


def examined(job: Job, blocks: Sequence[int], may_lose_attention: Sequence[int], multiple: int) -> Examination:
    """`examine` of the merged model, from disk if an equal job did it before."""

    def compute() -> StageResult:
        model = job.merged()
        found = examine(model, job.family, job.start, blocks, may_lose_attention, job.calibration, job.metric, multiple)
        orders = {str(block): order for block, order in found.orders.items()}
        record = {
            str(block): {"attention": damage.attention, "mlp": {str(w): kl for w, kl in damage.mlp.items()}}
            for block, damage in found.damages.items()
        }
        return StageResult(orders, record)

    key = job.key(
        blocks=list(blocks), may_lose_attention=list(may_lose_attention), multiple=multiple, fractions=FRACTIONS
    )
    with job.watch.stage("examination"), accelerator().main_process_first():  # the others find its result in the store
        kept = job.store.run("examined", key | {"metric": job.settings.metric}, compute)
    damages = {
        int(block): BlockDamage(entry["attention"], {int(width): kl for width, kl in entry["mlp"].items()})
        for block, entry in kept.record.items()
    }
    return Examination({int(block): order for block, order in kept.tensors.items()}, damages)


def solve(
    damages: Mapping[int, BlockDamage],
    costs: Mapping[int, UnitCost],
    hidden: int,
    macs: float,
    total: int,
    multiple: int,
    after: Sequence[BlockPlan] = (),
) -> list[BlockPlan]:
    """Plan entries of the least predicted damage that save `macs`; blocks cut `after` these only lose more.

    Raises:
        InputError: If no cut saves that much; the message gives the most that can be saved.
    """
    try:
        limits = {e.index: Allocation(e.index, e.removed is None, e.mlp_hidden or hidden) for e in after}
        allocations = allocate(damages, costs, hidden, macs, multiple, limits)
    except OutOfReachError as error:
        most = most_macs(damages, costs, hidden)
        raise InputError(
            f"--macs-reduction: {macs / total:.4f} is out of reach; cutting blocks takes at most {most / total:.4f}"
        ) from error
    return [
        BlockPlan(
            index=each.block,
            removed=None if each.keeps_attention else "attention",
            mlp_hidden=each.mlp_hidden if each.mlp_hidden < hidden or not each.keeps_attention else None,
        )
        for each in allocations
        if each.mlp_hidden < hidden or not each.keeps_attention
    ]


def most_macs(damages: Mapping[int, BlockDamage], costs: Mapping[int, UnitCost], hidden: int) -> float:
    """MACs saved where every block loses all that was measured."""
    return sum(
        costs[block].narrowed * (1 - min(damage.mlp) / hidden)
        + (costs[block].removed if damage.attention is not None else 0)
        for block, damage in damages.items()
    )


def recover_at_once(
    job: Job, entries: Sequence[BlockPlan], examination: Examination, after: Earlier | None = None
) -> TimmModule:
    """Cuts and refits all blocks front to back, then trains the whole student once.

    After an earlier result only what is cut further is refitted, and a share of the steps is enough.
    """
    steps = job.settings.steps
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
        operate(student, job.reference(), job.family, job.start, cuts, orders)
    with job.watch.stage("recovery"):
        job.train(student, entries, steps, "recovering", last_block=job.depth - 1, after=after)
    return student.eval()


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
        width = entry.mlp_hidden
        if width is not None and before.mlp_hidden is not None:
            order = orders[entry.index]
            nodes = best_nodes(order, before.mlp_hidden)
            left[entry.index] = torch.searchsorted(nodes, order[len(order) - before.mlp_hidden :])
        removed = None if entry.removed == before.removed else entry.removed
        width = None if width == before.mlp_hidden else width
        if removed is not None or width is not None:
            cuts.append(BlockPlan(index=entry.index, removed=removed, mlp_hidden=width))
    return cuts, left
