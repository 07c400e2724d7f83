"""One compression at work: what every search and recovery needs, and training that is never done twice."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

from dcvit.families import Family
from dcvit.methods.cuts.least_squares import READ_SHARE
from dcvit.methods.cuts.scores import score_of
from dcvit.methods.cuts.wanted_tokens import WantedTokens
from dcvit.methods.few_shot.fitted_images import MAX_TOKENS, MAX_VIEWS, TOKENS_A_NODE
from dcvit.methods.few_shot.settings import FewShotSettings
from dcvit.methods.stopwatch import Stopwatch
from dcvit.methods.target import MEASURED, Target
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.stages import StageResult, StageStore, weights_digest
from dcvit.training.mimic import MimicResult, mimic
from dcvit.training.recipe import MimicRecipe
from dcvit.training.views import ViewBank
from dcvit.types import TimmModule

S = TypeVar("S", bound=FewShotSettings)

OF_THE_PLAN = {"macs_reduction", "macs_convention", "width_multiple", "min_head_dim", "keep_heads", "merge",
               "size_aware", "trim_last_block", *MEASURED}  # fmt: skip
"""Fields of a target that reach a training through the plan alone."""

FITTED = (TOKENS_A_NODE, MAX_VIEWS, MAX_TOKENS, READ_SHARE)
"""What a refitted student depends on beside its job."""


@dataclass(frozen=True)
class Earlier:
    """A result for a smaller reduction of the same model, to go on from.

    Attributes:
        student: The recovered model; it stays as it is.
        entries: All plan entries that it follows.
        lr: Peak learning rate that did best for it; None where none was tried.
    """

    student: TimmModule
    entries: Sequence[BlockPlan]
    lr: float | None = None


@dataclass(frozen=True)
class Training:
    """What a training did on images that it did not see.

    Attributes:
        images: How many.
        before: Score of the refitted student there (`score_of`).
        after: Of the trained one.
        lr: Peak learning rate.
    """

    images: int
    before: float
    after: float
    lr: float

    @property
    def kept(self) -> bool:
        """Whether the trained weights are taken; not where a score is no number."""
        return self.after < self.before

    def to_json(self) -> dict[str, Any]:
        """All fields, and whether the trained weights were taken."""
        return asdict(self) | {"kept": self.kept}


@dataclass
class Job(Generic[S]):
    """A model to compress, the images to do it with, and where results are kept.

    Attributes:
        model: The model to compress; also the teacher.
        start: The plan that `model` itself follows.
        base: The plan before any block is chosen: `start`, with merges and with blocks that the user fixed.
        calibration: The few-shot images [n, C, H, W], as for evaluation.
        fitted: Gives the images [m, C, H, W] that the final refits are made on: these but for the last so many, and
            views of them.
        metric: Images [S, C, H, W] that damage is scored on.
        settings: Of the search and the recovery.
        target: What is to be reached.
        identity: What kept results depend on beside settings and target (see `Run.identity`).
        depth: Blocks of the model.
        wanted_tokens: Of refits, by the merges of the plan; jobs on the same images share them.
        losses: Of each training, in their order.
        training: What the last one did on images that it did not see; None where all were trained on.
        watch: Where the time goes.
    """

    model: TimmModule
    family: Family
    start: CompressionPlan
    base: CompressionPlan
    views: ViewBank
    calibration: Tensor
    fitted: Callable[[int], Tensor]
    metric: Tensor
    settings: S
    target: Target
    store: StageStore
    identity: dict[str, Any]
    seed: int
    depth: int
    wanted_tokens: dict[tuple[str, int], WantedTokens] = field(default_factory=dict)
    losses: list[float | None] = field(default_factory=list)
    training: Training | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def merges(self) -> bool:
        """Whether the base plan merges tokens that the model does not."""
        return self.base.merges != self.start.merges

    @property
    def recipe(self) -> MimicRecipe:
        """That of the settings; where there are no logits, features are all that is learnt."""
        training = self.settings.training
        return training if score_of(self.start).name == "kl" else training.model_copy(update={"logit_weight": 0.0})

    def wanted(self, held_out: int = 0) -> WantedTokens:
        """The wanted tokens of a student with the base plan's merges, on all images but the last so many."""
        key = self.base.replace(blocks=()).digest, held_out
        if key not in self.wanted_tokens:
            teacher = self.merged() if self.merges else self.model
            self.wanted_tokens[key] = WantedTokens(teacher, self.family, self.fitted(held_out))
        return self.wanted_tokens[key]

    def merged(self) -> TimmModule:
        """A copy of the model, with the merges of the base plan."""
        student = copy.deepcopy(self.model)
        if self.merges:
            merging = {key: getattr(self.base, key) for key in ("merges", "merge_operator", "size_aware_attention")}
            self.family.apply(student, self.start.original().replace(**merging))
        return student

    def key(self, *, but: Collection[str], **parts: Any) -> dict[str, Any]:
        """What a result depends on: the given parts, the model, the images, and every field of settings and target.

        A field that is added later is in every key by itself; `but` names those that cannot reach the result, or reach
        it through the parts alone.
        """
        fields = self.settings.model_dump(mode="json") | self.target.model_dump(mode="json", exclude={"plan"})
        assert set(but) <= set(fields), f"no such settings: {set(but) - set(fields)}"
        return {
            "identity": self.identity,
            "start": self.start.digest,
            "merges": self.base.replace(blocks=(), trims_last_block=self.start.trims_last_block).digest,
            "fields": {name: value for name, value in fields.items() if name not in but},
            **parts,
        }

    def train(
        self,
        student: TimmModule,
        entries: Sequence[BlockPlan],
        steps: int,
        description: str,
        *,
        last_block: int,
        lr: float | None = None,
        together: bool = True,
        after: Earlier | None = None,
    ) -> float:
        """Trains a student up to `last_block`, in place; returns the seconds it took.

        What an equal training left behind is put in instead of training again.

        Args:
            student: The merged model with `entries` cut, in this order.
            entries: All that the student's weights depend on, beside the job.
            steps: Optimiser steps.
            description: What the progress bar says.
            last_block: Blocks behind it, and the head, stay as they are.
            lr: Peak learning rate; None takes the recipe's.
            together: Whether all processes train this student, or this one alone.
            after: What the student was cut from, where that is not the given model.
        """
        recipe = self._at(lr)

        def compute() -> StageResult:
            result = self._mimic(student, recipe, steps, description, together=together)
            trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
            return StageResult(trained, {"loss": result.loss, "seconds": result.seconds})

        self.family.train_up_to(student, last_block)
        result = self.store.run("trained", self._key_of(entries, steps, last_block, recipe, after), compute)
        student.load_state_dict(result.tensors, strict=False)
        self.losses.append(result.record["loss"])
        return float(result.record["seconds"])

    def try_training(
        self,
        student: TimmModule,
        entries: Sequence[BlockPlan],
        steps: int,
        description: str,
        judge: Callable[[TimmModule], float],
        *,
        last_block: int,
        lr: float,
        after: Earlier | None = None,
    ) -> float:
        """What a judge says of a copy that was trained so; nothing else of it is kept. Arguments as of `train`."""
        recipe = self._at(lr)

        def compute() -> StageResult:
            trial = copy.deepcopy(student)
            self.family.train_up_to(trial, last_block)
            self._mimic(trial, recipe, steps, description, together=True)
            return StageResult({}, {"score": judge(trial)})

        result = self.store.run("tried", self._key_of(entries, steps, last_block, recipe, after), compute)
        return float(result.record["score"])

    def _at(self, lr: float | None) -> MimicRecipe:
        return self.recipe if lr is None else self.recipe.model_copy(update={"lr": lr})

    def _mimic(
        self, student: TimmModule, recipe: MimicRecipe, steps: int, description: str, *, together: bool
    ) -> MimicResult:
        if steps:
            with self.watch.stage("teacher features"):
                self.views.prepare()
        return mimic(
            student,
            self.family,
            self.views,
            recipe,
            steps=steps,
            seed=self.seed,
            description=description,
            adapt=self._merge_teacher_tokens if self.merges else None,
            together=together,
        )

    def _key_of(
        self, entries: Sequence[BlockPlan], steps: int, last_block: int, recipe: MimicRecipe, after: Earlier | None
    ) -> dict[str, Any]:
        return self.key(
            but={"steps", "trial_steps", "metric", "synthesis_steps", *OF_THE_PLAN},
            entries=[entry.model_dump() for entry in entries],
            steps=steps,
            last_block=last_block,
            held_out=self.views.held_out,
            lr=recipe.lr,
            fitted=FITTED,
            **({} if after is None else {"after": weights_digest(after.student.state_dict())}),
        )

    def _merge_teacher_tokens(self, tokens: Tensor) -> Tensor:
        return self.family.merge_tokens(self.model, self.base, tokens)
