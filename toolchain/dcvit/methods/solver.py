"""Our search: measure the damage of every cut once, solve for any target, refit the weights, then train.

Past the paper in three ways: the nodes that stay are chosen and the others made up for in closed form, widths and the
number of attention-free blocks are free, and what was measured serves every later target.
"""

from collections.abc import Mapping, Sequence

import torch

from dcvit.errors import InputError
from dcvit.methods.allocate import BlockDamage, OutOfReachError, allocate
from dcvit.methods.damage import FRACTIONS, Examination, examine
from dcvit.methods.job import Job
from dcvit.methods.structure import UnitCost
from dcvit.methods.surgery import operate
from dcvit.plan import BlockPlan
from dcvit.training.hardware import accelerator
from dcvit.training.stages import StageResult
from dcvit.types import TimmModule


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
) -> list[BlockPlan]:
    """Plan entries of the least predicted damage that save `macs`.

    Raises:
        InputError: If no cut saves that much; the message gives the most that can be saved.
    """
    try:
        allocations = allocate(damages, costs, hidden, macs, multiple)
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


def recover_at_once(job: Job, entries: Sequence[BlockPlan], examination: Examination) -> TimmModule:
    """Cuts and refits all blocks front to back, then trains the whole student once."""
    student = job.merged()
    teacher = job.merged() if job.merges else job.model
    orders = examination.orders | {
        entry.index: torch.arange(job.family.block(job.model, entry.index).mlp.fc1.out_features)
        for entry in entries
        if entry.mlp_hidden is not None and entry.index not in examination.orders
    }
    with job.watch.stage("refit"):
        operate(student, teacher, job.family, job.start, entries, orders, job.calibration)
    with job.watch.stage("recovery"):
        job.train(student, entries, job.settings.steps, "recovering", last_block=job.depth - 1)
    return student.eval()
