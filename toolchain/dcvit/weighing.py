"""Merges against widths: which schedule, with which widths beside it, is predicted to harm a model least."""

from functools import cached_property
from pathlib import Path

from dcvit.data import DEFAULT_SAMPLES, FewShot, ImageSource, draw_few_shot, open_source
from dcvit.methods.cait import CaitSettings, ChooseMerges
from dcvit.methods.cut import cut_by_norm
from dcvit.methods.merging import MergeSearch, MergeTrial, Schedule, choose_merges, least_harm, most_reduction
from dcvit.methods.propose import Target
from dcvit.plan import CompressionPlan, merges_text
from dcvit.progress import say
from dcvit.refit import Refit
from dcvit.stopwatch import Stopwatch
from dcvit.subject import Subject
from dcvit.summary import summarize
from dcvit.training.hardware import accelerator
from dcvit.training.stages import StageStore

CALIBRATION_IMAGES = 128
"""Images that merge schedules are tried on, at most."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 2 / 3)
"""Of the MACs to be removed, for which schedules are searched to be weighed against narrower widths."""

LEAST_REDUCTION = 0.01
"""Schedules that remove less of the MACs are not worth a layer."""

NO_MERGE = MergeTrial(merges=(), macs_reduction=0.0, kl=0.0, feature_error=0.0)


class Weighing:
    """Finds structure for one model on a few images.

    Args:
        subject: The model that is to be compressed.
        data: Where the images are drawn from.
        settings: Of the method.
        refits: Whether widths are refitted before the training, so that they can be weighed against merges.
        seed: Of the draw.
        store: Keeps what was measured, for other targets and runs.
        watch: Where the time goes.
    """

    def __init__(
        self,
        subject: Subject,
        data: str | Path | ImageSource,
        settings: CaitSettings,
        *,
        refits: bool,
        seed: int,
        store: StageStore,
        watch: Stopwatch,
    ) -> None:
        self.subject, self.settings, self.refits = subject, settings, refits
        self.seed, self.store, self.watch = seed, store, watch
        self._data, self._made = data, dict[str, Refit]()

    def merges(self, target: Target) -> ChooseMerges:
        """Chooses merges for a target: the least harm in all, or for the settings' share where training prunes."""

        def choose(plan: CompressionPlan, macs_reduction: float) -> Schedule:
            with self.watch.stage("merges"):
                if self.refits:
                    found = self._balanced(plan, macs_reduction, target)
                else:
                    found = self._search(plan, self.settings.share(macs_reduction), target).best
            merges = merges_text(found.merges) or "none, widths do less harm"
            say(f"merges: {merges}, −{found.macs_reduction:.1%} MACs")
            return found.merges

        return choose

    def refit(self, base: CompressionPlan) -> Refit:
        """What measures and refits the widths of a base plan; made once for each."""
        if base.digest not in self._made:
            few, store = self._few_shot, self.store
            self._made[base.digest] = Refit(self.subject, base, few, seed=self.seed, store=store, watch=self.watch)
        return self._made[base.digest]

    def _balanced(self, plan: CompressionPlan, macs_reduction: float, target: Target) -> MergeTrial:
        searches = [self._search(plan, share * macs_reduction, target) for share in SHARES]
        trials = {trial.merges: trial for search in searches for trial in search.trials}
        worth = [trial for trial in trials.values() if trial.macs_reduction >= LEAST_REDUCTION]
        macs = macs_reduction * summarize(plan, plan, target.macs_convention).macs_after
        refit = self.refit(plan)

        def harm(trial: MergeTrial) -> float:
            merge = f"{merges_text(trial.merges)},{plan.merge_operator}" if trial.merges else None
            return trial.harm + refit.damage(target, macs, merge)

        return min([*least_harm(worth), NO_MERGE], key=harm)

    def _search(self, plan: CompressionPlan, macs_reduction: float, target: Target) -> MergeSearch:
        family, convention = self.subject.family, target.macs_convention
        model = cut_by_norm(self.subject, plan).to(accelerator().device).requires_grad_(False)
        return choose_merges(
            model,
            family,
            plan,
            self._few_shot.tensor(self.subject.preprocessing)[:CALIBRATION_IMAGES],
            macs_reduction=min(macs_reduction, most_reduction(model, family, plan, convention)),
            macs_convention=convention,
            store=self.store,
        )

    @cached_property
    def _few_shot(self) -> FewShot:
        source, channels = open_source(self._data, "train"), self.subject.architecture.input_size[0]
        return draw_few_shot(source, DEFAULT_SAMPLES, self.seed, channels, at_most=True)
