"""Our search: measure the damage of every cut once, and solve for any target.

Past the paper in four ways: the nodes that stay are chosen and the others made up for in closed form, heads may be
narrowed too, widths and the number of attention-free blocks are free, and what was measured serves every later target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from accelerate.utils import broadcast_object_list

from dcvit.folder.records import BlockDamage
from dcvit.hardware import accelerator
from dcvit.methods.cuts.damage import FRACTIONS, HEAD_FRACTIONS, Examination, PossibleCuts, examine
from dcvit.methods.cuts.least_squares import READ_SHARE
from dcvit.methods.few_shot.allocate import NO_BLOCK, BlockWidths, OutOfReachError, Price, allocate, check_damages
from dcvit.methods.few_shot.job import Job
from dcvit.methods.target import MEASURED, Reach
from dcvit.plan import BlockPlan
from dcvit.stages import StageResult

NOT_EXAMINED = {
    "method", "search", "steps", "trial_steps", "nodes", "training",
    "macs_reduction", "macs_convention", "min_head_dim", "keep_heads", "merge", "size_aware", "trim_last_block",
    *MEASURED,
}  # fmt: skip
"""Settings and fields of a target that change no damage: those of the training, and what merges and cuts say."""


def examined(job: Job[Any], cuts: PossibleCuts, multiple: int) -> Examination:
    """`examine` of the merged model, from disk if an equal job did it before; several processes share it."""
    process = accelerator()

    def found_now(*, shared: bool) -> Examination:
        return examine(
            job.merged(), job.family, job.start, cuts, job.calibration, job.metric, multiple,
            job.settings.examination, shared=shared,
        )  # fmt: skip

    def compute() -> StageResult:
        found = found_now(shared=False) if together is None else together
        check_damages(found.damages)
        orders = {str(block): order for block, order in found.orders.items()}
        record = {str(block): damage.model_dump(mode="json") for block, damage in found.damages.items()}
        return StageResult(orders, record)

    key = job.key(but=NOT_EXAMINED, **asdict(cuts), fractions=(FRACTIONS, HEAD_FRACTIONS), read_share=READ_SHARE)
    together: Examination | None = None
    with job.watch.stage("examination"):
        if process.num_processes > 1:
            (kept_before,) = broadcast_object_list([job.store.holds("examined", key)])
            together = None if kept_before else found_now(shared=True)
        with process.main_process_first():  # the others find its result in the store
            kept = job.store.run("examined", key, compute)
    damages = {int(block): BlockDamage.model_validate(entry) for block, entry in kept.record.items()}
    return Examination({int(block): order for block, order in kept.tensors.items()}, damages)


def solve(
    damages: Mapping[int, BlockDamage],
    prices: Mapping[int, Price],
    whole: Mapping[int, BlockWidths],
    wanted: float,
    total: float,
    multiple: int,
    after: Sequence[BlockPlan] = (),
    saved: float = 0,
    least: float = 0,
) -> list[BlockPlan]:
    """Plan entries of the least predicted damage that save `wanted`; blocks cut `after` these only lose more.

    `whole` are the widths of the blocks as they are, and entries say what becomes of these. `total` and `saved`, what
    the model costs and what of it is gone already, and the `least` that can be asked for are for the message.

    Raises:
        InputError: If no cut saves that much; the message gives the most that can be saved.
    """
    try:
        limits = {entry.index: widths_of(entry, whole[entry.index]) for entry in after if entry.index in whole}
        allocated = allocate(damages, prices, whole, wanted, multiple, limits)
    except OutOfReachError as error:
        most = most_saved(damages, prices, whole)
        reach = Reach(least / total, (saved + most) / total)
        raise reach.refusal((saved + wanted) / total, "cutting blocks") from error
    return [_entry(block, widths, whole[block]) for block, widths in allocated.items() if widths != whole[block]]


def widths_of(entry: BlockPlan, whole: BlockWidths) -> BlockWidths:
    """What a plan makes of a block that was `whole`."""
    if entry.removed == "block":
        return NO_BLOCK
    head_dim = 0 if entry.removed == "attention" else entry.head_dim or whole.head_dim
    return BlockWidths(head_dim, entry.mlp_hidden or whole.mlp_hidden)


def _entry(block: int, widths: BlockWidths, whole: BlockWidths) -> BlockPlan:
    if widths == NO_BLOCK:
        return BlockPlan(index=block, removed="block")
    if not widths.head_dim:
        return BlockPlan(index=block, removed="attention", mlp_hidden=widths.mlp_hidden)
    return BlockPlan(
        index=block,
        head_dim=widths.head_dim if widths.head_dim < whole.head_dim else None,
        mlp_hidden=widths.mlp_hidden if widths.mlp_hidden < whole.mlp_hidden else None,
    )


def most_saved(
    damages: Mapping[int, BlockDamage], prices: Mapping[int, Price], whole: Mapping[int, BlockWidths]
) -> float:
    """What is saved where every block loses all that was measured, in the currency of the prices."""
    most = 0.0
    for block, damage in damages.items():
        price, now, attention = prices[block], whole[block], 0.0
        if now.head_dim:
            attention = price.attention(min(damage.heads, default=now.head_dim), now.head_dim)
            if damage.attention is not None:
                attention = max(attention, price.attention(0, now.head_dim))
        narrowed = attention + price.mlp(min(damage.mlp, default=now.mlp_hidden), now.mlp_hidden)
        most += narrowed if damage.block is None else max(narrowed, price.block())
    return most
