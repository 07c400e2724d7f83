"""Merges against widths: which schedule, with which widths beside it, is predicted to harm a model least."""

from functools import cached_property

from torch import Tensor

from dcvit.bench.machine import this_machine
from dcvit.data import FewShot
from dcvit.hardware import accelerator
from dcvit.methods.cait.proposal import ChooseMerges
from dcvit.methods.cait.refit import Refit
from dcvit.methods.cait.settings import CaitSettings
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.merges.costs import MergeCosts
from dcvit.methods.merges.search import (
    CALIBRATION_IMAGES,
    NO_MERGE,
    SHARES,
    MergeSearch,
    MergeTrial,
    Schedule,
    choose_merges,
    most_reduction,
    worth_weighing,
)
from dcvit.methods.run import Run
from dcvit.methods.speedup import Measure
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan, MacsConvention, merges_text
from dcvit.progress import say
from dcvit.settings import DEFAULT_SAMPLES
from dcvit.stages import StageResult
from dcvit.summary import summarize
from dcvit.types import TimmModule

_NO_TIME = 1e-3
"""Least share of the latency that narrower widths are taken to save: a noisy machine may show less."""


class Weighing:
    """Finds structure for one model on a few images.

    Args:
        run: The model, and where the images are drawn from.
        settings: Of the method.
        refits: Whether widths are refitted before the training, so that they can be weighed against merges.
    """

    def __init__(self, run: Run, settings: CaitSettings, *, refits: bool) -> None:
        self.run, self.settings, self.refits = run, settings, refits
        self._made: dict[str, Refit] = {}
        self._merged: dict[tuple[str, MacsConvention], tuple[TimmModule, MergeCosts]] = {}

    def merges(self, target: Target, measure: Measure | None = None) -> ChooseMerges:
        """Chooses merges for a target: the least harm in all, or for the settings' share where training prunes.

        Args:
            target: What to reach.
            measure: Times plans: then schedules are weighed at the speed-up that the target asks for, and not at equal
                MACs. A MAC that merging saves is worth more time than one of a narrower MLP, for norms, softmax and
                transpositions go with it.
        """

        def choose(plan: CompressionPlan, macs_reduction: float) -> Schedule:
            with self.run.watch.stage("merges"):
                if not self.refits:
                    found = self._search(plan, self.settings.share(macs_reduction), target).best
                elif measure is None:
                    found = self._at_equal_macs(plan, macs_reduction, target)
                else:
                    found = self._at_equal_speed(plan, macs_reduction, target, measure)
            merges = merges_text(found.merges) or "none, widths do less harm"
            say(f"merges: {merges}, −{found.macs_reduction:.1%} MACs")
            return found.merges

        return choose

    def refit_of(self, base: CompressionPlan, model: TimmModule) -> Refit:
        """What measures and refits the widths of a model that was trained and follows a base plan."""
        return Refit(self.run, base, self._few_shot, model)

    def refit(self, base: CompressionPlan) -> Refit:
        """What measures and refits the widths of a base plan; made once for each."""
        if base.digest not in self._made:
            self._made[base.digest] = Refit(self.run, base, self._few_shot)
        return self._made[base.digest]

    def _at_equal_macs(self, plan: CompressionPlan, macs_reduction: float, target: Target) -> MergeTrial:
        trials = worth_weighing(self._search(plan, share * macs_reduction, target) for share in SHARES)
        macs = macs_reduction * self._macs(plan, target)
        return min(trials, key=lambda trial: self._harm(plan, target, trial, macs))

    def _at_equal_speed(
        self, plan: CompressionPlan, macs_reduction: float, target: Target, measure: Measure
    ) -> MergeTrial:
        """Each schedule with the widths that it takes to be as fast as wanted, if time falls with MACs in a line."""
        assert target.speedup is not None
        found = [self._search(plan, share * macs_reduction, target).best for share in SHARES]
        trials = {merges_text(trial.merges): trial for trial in (NO_MERGE, *found)}
        goal = 1 / target.speedup

        def compute() -> StageResult:
            macs = macs_reduction * self._macs(plan, target)
            whole = 1 / measure(plan).speedup
            saved = whole - 1 / measure(self.refit(plan).plan(target, macs)).speedup
            harms = {}
            for text, trial in trials.items():
                taken = 1 / measure(plan.replace(merges=trial.merges)).speedup if trial.merges else whole
                narrowed = max(0.0, taken - goal) / max(saved, _NO_TIME) * macs
                merged = trial.macs_reduction * self._macs(plan, target)
                harms[text] = self._harm(plan, target, trial, merged + narrowed)
                say(f"{text or 'no merges'}: ×{1 / taken:.3f} before widths, harm {harms[text]:.2g} with them")
            return StageResult({}, {"merge": min(harms, key=harms.__getitem__)})

        # What was measured once decides for a resumed run too.
        key = self.run.identity(self._few_shot.fingerprint) | {
            "plan": plan.digest,
            "target": target.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "machine": this_machine().kind,
        }
        return trials[self.run.store.run("weighed", key, compute).record["merge"]]

    def _harm(self, plan: CompressionPlan, target: Target, trial: MergeTrial, macs: float) -> float:
        """KL in nats of a schedule, and of the widths that save the rest of `macs`."""
        merge = f"{merges_text(trial.merges)},{plan.merge_operator}" if trial.merges else None
        return trial.harm + self.refit(plan).damage(target, macs, merge)

    @staticmethod
    def _macs(plan: CompressionPlan, target: Target) -> int:
        return summarize(plan, plan, target.macs_convention).macs_after

    def _search(self, plan: CompressionPlan, macs_reduction: float, target: Target) -> MergeSearch:
        family, convention = self.run.subject.family, target.macs_convention
        if (key := (plan.digest, convention)) not in self._merged:
            model = cut_by_norm(self.run.subject, plan).to(accelerator().device).requires_grad_(False)
            self._merged[key] = model, MergeCosts(model, family, plan, convention)
        model, costs = self._merged[key]
        return choose_merges(
            model,
            family,
            plan,
            self._calibration,
            macs_reduction=min(macs_reduction, most_reduction(costs)),
            macs_convention=convention,
            store=self.run.store,
            costs=costs,
        )

    @cached_property
    def _calibration(self) -> Tensor:
        return self._few_shot.tensor(self.run.subject.preprocessing)[:CALIBRATION_IMAGES]

    @property
    def _few_shot(self) -> FewShot:
        return self.run.draw(DEFAULT_SAMPLES, at_most=True)
