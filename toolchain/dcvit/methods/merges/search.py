"""Where tokens should merge: the schedule that harms a model's outputs least, for a number of MACs to save.

Every merge is measured alone. What several do together is predicted as the sum; the schedules of the least prediction
are then measured, and so are the neighbours of the best one until none of them is better.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from typing import Any, get_args

import torch
from accelerate.utils import broadcast_object_list
from rich.table import Table
from torch import Tensor

from dcvit.errors import InputError
from dcvit.families import Family
from dcvit.hardware import accelerator
from dcvit.layers.token_grid import TokenGrid
from dcvit.methods.cuts.scores import divergence
from dcvit.methods.cuts.wanted_tokens import CHUNK, first_tokens, hooks, through
from dcvit.methods.merges.costs import MergeCosts
from dcvit.plan import Axis, BlockPlan, CompressionPlan, MacsConvention, Merge, merges_text
from dcvit.progress import track
from dcvit.stages import StageResult, StageStore, weights_digest
from dcvit.types import TimmModule
from dcvit.versions import package_versions

MOST_MERGES = 3
MOST_PER_AXIS = 2
"""Longer schedules are not searched: an axis merged three times leaves one token for eight."""

CALIBRATION_IMAGES = 128
"""Images that merge schedules are tried on, at most."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 2 / 3)
"""Of the MACs to be removed, for which schedules are searched to be weighed against other cuts."""

LEAST_REDUCTION = 0.01
"""Schedules that remove less of the MACs are not worth a layer."""

Schedule = tuple[Merge, ...]


@dataclass(frozen=True)
class MergeTrial:
    """One schedule, as measured without any training.

    Attributes:
        merges: The schedule.
        macs_reduction: Share of the unmerged model's MACs that it removes.
        kl: Mean KL(unmerged ‖ merged) over images, in nats; None for a model without logits.
        feature_error: Squared error of the final tokens, against the unmerged model's merged to the same grid, as a
            share of their squared size.
    """

    merges: Schedule
    macs_reduction: float
    kl: float | None
    feature_error: float

    @property
    def harm(self) -> float:
        """What the search minimises: KL where there are logits, else the error of the features."""
        return self.feature_error if self.kl is None else self.kl

    def to_json(self) -> dict[str, Any]:
        return {
            "merge": merges_text(self.merges),
            "macs_reduction": self.macs_reduction,
            "kl": self.kl,
            "feature_error": self.feature_error,
        }


NO_MERGE = MergeTrial(merges=(), macs_reduction=0.0, kl=0.0, feature_error=0.0)


@dataclass(frozen=True)
class MergeSearch:
    """The schedule that was found, and all that was measured on the way, the least harm first."""

    best: MergeTrial
    trials: tuple[MergeTrial, ...]
    images: int
    size_aware: bool

    @property
    def merges(self) -> Schedule:
        """The schedule."""
        return self.best.merges

    def to_json(self) -> dict[str, Any]:
        return {
            "best": self.best.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "images": self.images,
            "size_aware": self.size_aware,
        }

    def lines(self) -> Iterable[Any]:
        """The ten best of what meets the target."""
        table = Table(title=f"merges, measured on {self.images} images without training")
        for column in ("schedule", "MACs", "KL (nats)", "feature error"):
            table.add_column(column, justify="left" if column == "schedule" else "right")
        for trial in [each for each in self.trials if each.macs_reduction >= self.best.macs_reduction * 0.9][:10]:
            kl = "–" if trial.kl is None else f"{trial.kl:.2g}"
            table.add_row(merges_text(trial.merges), f"−{trial.macs_reduction:.1%}", kl, f"{trial.feature_error:.2g}")
        yield table


def choose_merges(
    model: TimmModule,
    family: Family,
    plan: CompressionPlan,
    images: Tensor,
    *,
    macs_reduction: float,
    macs_convention: MacsConvention = "full",
    budget: int = 16,
    store: StageStore | None = None,
    costs: MergeCosts | None = None,
) -> MergeSearch:
    """Searches the schedule of one to three merges that harms a model's outputs least, of those that save enough.

    Of several processes the first searches.

    Args:
        model: Follows the plan.
        family: Of the model.
        plan: What the model is. Nothing merges in it yet; its merge operator (which is measured as the mean that a
            linear one starts from) and whether attention is size-aware are those of the schedule.
        images: Calibration images [n, C, H, W].
        macs_reduction: Share of the model's MACs to remove.
        macs_convention: How MACs are counted.
        budget: Schedules to measure at most, beside each merge alone.
        store: Keeps what was measured, for other targets and runs.
        costs: Of the plan's merges, from an earlier search.

    Raises:
        InputError: If the model merges tokens already, cannot merge any, or not enough to save that much.
    """
    if plan.merges:
        raise InputError("--merge: tokens merge already in the model or plan that was given")
    costs = costs or MergeCosts(model, family, plan, macs_convention)
    every = list(schedules(costs.grid, costs.depth))
    enough = [merges for merges in every if costs.reduction(merges) >= macs_reduction]
    if not enough:
        raise InputError(
            f"--macs-reduction: merging tokens alone cannot remove {macs_reduction:.4f} of the MACs, at most "
            f"{max(map(costs.reduction, every), default=0.0):.4f}"
        )
    process = accelerator()
    shared: list[MergeSearch | None] = [None]
    if process.is_main_process:
        prober = _Prober(model, family, plan, images, costs, store or StageStore(None))
        shared = [_search(prober, every, enough, budget)]
    if process.num_processes > 1:
        shared = broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


def worth_weighing(searches: Iterable[MergeSearch]) -> list[MergeTrial]:
    """Of all that was tried, those that no other beats and that save enough to be worth a layer; and no merge."""
    trials = {trial.merges: trial for search in searches for trial in search.trials}
    return [*least_harm(trial for trial in trials.values() if trial.macs_reduction >= LEAST_REDUCTION), NO_MERGE]


def least_harm(trials: Iterable[MergeTrial]) -> list[MergeTrial]:
    """Those that no other trial beats: less harm for as many MACs saved."""
    found: list[MergeTrial] = []
    for trial in sorted(trials, key=lambda trial: (-trial.macs_reduction, trial.harm)):
        if not found or trial.harm < found[-1].harm:
            found.append(trial)
    return found


def most_reduction(costs: MergeCosts) -> float:
    """The largest share of the MACs that any schedule of the search removes."""
    return max(costs.reduction(schedule) for schedule in schedules(costs.grid, costs.depth))


def axes_in_turn(grid: tuple[int, int]) -> tuple[Axis, ...]:
    """Merges on top of each other, the axes in turn, as long as a grid (H, W) has something to merge: at most three."""
    axes: list[Axis] = []
    for axis in (*get_args(Axis), *get_args(Axis)):
        merges = tuple(Merge(after=1, axis=each) for each in (*axes, axis))
        if len(axes) < MOST_MERGES and _fits(merges, grid):
            axes.append(axis)
    return tuple(axes)


def schedules(grid: tuple[int, int], depth: int) -> Iterator[Schedule]:
    """Every schedule of the search that finds something to merge on a grid (H, W)."""
    single = [Merge(after=after, axis=axis) for after in range(1, depth) for axis in get_args(Axis)]
    for count in range(1, MOST_MERGES + 1):
        for merges in combinations_with_replacement(single, count):
            if _fits(merges, grid):
                yield merges


def _fits(merges: Schedule, grid: tuple[int, int]) -> bool:
    left = TokenGrid.unmerged(grid)
    for merge in merges:
        if len(left.columns if merge.axis == "horizontal" else left.rows) < 2:
            return False
        left = left.merged(merge.axis)
    return all(sum(merge.axis == axis for merge in merges) <= MOST_PER_AXIS for axis in get_args(Axis))


def _search(prober: "_Prober", every: list[Schedule], enough: list[Schedule], budget: int) -> MergeSearch:
    """Of `every` schedule, the least harmful one that is among `enough`."""
    # A merge alone, and one on top of another of its axis: the second one of an axis joins twice as many patches.
    basis = [merges for merges in every if len(merges) == 1 or (len(merges) == 2 and merges[0] == merges[1])]
    trials = prober.measure(basis, "merges alone")
    alone = {merges[0]: trials[merges].harm for merges in basis if len(merges) == 1}
    # What a second one adds is never taken to be less than the first: it joins tokens that are farther apart.
    again = {
        merges[0]: max(trials[merges].harm - alone[merges[0]], alone[merges[0]]) for merges in basis if len(merges) == 2
    }

    def predicted(merges: Schedule) -> float:
        """Two that stand at one block in a schedule harm as if one stood behind the other."""
        first = {merge.axis: position for position, merge in reversed(list(enumerate(merges)))}
        return sum(
            alone[merge] if first[merge.axis] == position else again[merge] for position, merge in enumerate(merges)
        )

    allowed = set(enough)

    def best() -> Schedule:
        return min((merges for merges in trials if merges in allowed), key=lambda merges: trials[merges].harm)

    untried = sorted((merges for merges in enough if merges not in trials), key=predicted)
    measured_alone = len(trials)
    trials |= prober.measure(untried[: max(1, budget // 2)], "merge schedules")
    while (left := budget - (len(trials) - measured_alone)) > 0:
        near = {merges for merges in _neighbours(best()) if merges in allowed and merges not in trials}
        if not near:
            break
        trials |= prober.measure(
            sorted(near, key=lambda merges: (predicted(merges), merges_text(merges)))[: min(4, left)],
            "their neighbours",
        )
    ranked = sorted(trials.values(), key=lambda trial: trial.harm)
    return MergeSearch(trials[best()], tuple(ranked), len(prober.images), prober.plan.size_aware_attention)


def _neighbours(merges: Schedule) -> Iterator[Schedule]:
    """Schedules in which one merge stands a block earlier or later, or merges along the other axis."""
    for position, merge in enumerate(merges):
        other: Axis = "vertical" if merge.axis == "horizontal" else "horizontal"
        for changed in (
            {"after": merge.after - 1},
            {"after": merge.after + 1},
            {"axis": other},
        ):
            if changed.get("after", 1) == 0:
                continue
            moved = merge.model_copy(update=changed)
            yield tuple(sorted((*merges[:position], moved, *merges[position + 1 :]), key=_order))


def _order(merge: Merge) -> tuple[int, int]:
    """As `schedules` lists them."""
    return merge.after, get_args(Axis).index(merge.axis)


class _Prober:
    """Measures schedules on images; what runs in front of the first merge of a schedule is computed once for all."""

    def __init__(
        self,
        model: TimmModule,
        family: Family,
        plan: CompressionPlan,
        images: Tensor,
        costs: MergeCosts,
        store: StageStore,
    ) -> None:
        self.model, self.family, self.plan, self.images = model, family, plan, images
        self.costs, self.store = costs, store
        self._wanted: list[tuple[Tensor, Tensor]] | None = None
        self._key: dict[str, Any] | None = None

    @torch.no_grad()
    def measure(self, wanted: Sequence[Schedule], description: str) -> dict[Schedule, MergeTrial]:
        """A trial of each schedule."""
        after, tokens = 0, None
        found = {}
        for merges in track(sorted(wanted, key=lambda merges: merges[0].after), description):

            def compute(merges: Schedule = merges) -> StageResult:
                nonlocal after, tokens
                if tokens is None:
                    tokens = first_tokens(self.model, self.family, self.images)
                arguments = self.family.block_arguments(self.model)
                for index in range(after, merges[0].after):
                    tokens = through(self.family.block(self.model, index), tokens, arguments)
                after = merges[0].after
                return StageResult({}, self._measure(merges, tokens))

            record = self.store.run("merged", self._key_of(merges), compute).record
            found[merges] = MergeTrial(merges, self.costs.reduction(merges), record["kl"], record["feature_error"])
        return found

    def _key_of(self, merges: Schedule) -> dict[str, Any]:
        if self._key is None:
            self._key = {
                "model": weights_digest(self.model.state_dict()),
                "images": weights_digest({"images": self.images}),
                "plan": self.plan.replace(merge_operator="mean").digest,
                "precision": accelerator().mixed_precision,
                "versions": {name: package_versions().get(name) for name in ("dcvit-tool", "torch", "timm")},
            }
        return self._key | {"merges": merges_text(merges)}

    def _measure(self, merges: Schedule, tokens: Tensor) -> dict[str, float | None]:
        """`tokens` [n, N, C] stand in front of the first merge, behind blocks that need not run again."""
        first = merges[0].after
        merged = self.plan.original().replace(merges=merges, size_aware_attention=self.plan.size_aware_attention)
        # A multi-level head reads blocks in front of the first merge too.
        whole = self.plan.head is not None and self.plan.head.kind == "multi-level"
        idle = (BlockPlan(index=index, removed="block") for index in range(0 if whole else first))
        student = copy.deepcopy(self.model)
        self.family.apply(student, merged.with_blocks(*idle))
        kl = error = size = 0.0
        for (features, logits), chunk, start in zip(
            self._unmerged(), self.images.split(CHUNK), range(0, len(self.images), CHUNK), strict=True
        ):
            begin = tokens[start : start + CHUNK]
            start_at = partial(_replaced, begin)
            skipping = [] if whole else [self.family.block(student, first - 1).register_forward_pre_hook(start_at)]
            with hooks(*skipping):
                new_features, new_logits = self._outputs(student, chunk)
            target = self.family.merge_tokens(self.model, merged, features)
            error += float((new_features - target).double().square().sum())
            size += float(target.double().square().sum())
            kl += divergence(new_logits, logits) * len(chunk)
        return {"kl": kl / len(self.images) if self.costs.classes > 1 else None, "feature_error": error / size}

    def _unmerged(self) -> list[tuple[Tensor, Tensor]]:
        if self._wanted is None:
            self._wanted = [self._outputs(self.model, chunk) for chunk in self.images.split(CHUNK)]
        return self._wanted

    def _outputs(self, model: TimmModule, images: Tensor) -> tuple[Tensor, Tensor]:
        device = next(model.parameters()).device
        with accelerator().autocast():
            features, logits = self.family.features_and_logits(model, images.to(device))
        return features.float(), logits.float()


def _replaced(tokens: Tensor, _block: TimmModule, _inputs: Any) -> tuple[Tensor]:
    """What a block gets in place of its inputs."""
    return (tokens,)
