"""DC-ViT (arXiv 2403.18708): few-shot, label-free compression of whole blocks, recovered by feature mimicking."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dcvit.families import Family
from dcvit.methods.nodes import NodeRanking, NodeSelection
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.progress import say
from dcvit.training.mimic import MimicRecipe, mimic
from dcvit.training.stages import StageResult, StageStore
from dcvit.training.views import ViewBank
from dcvit.types import TimmModule


class DcvitSettings(BaseModel):
    """Settings of the search and the recovery.

    Attributes:
        steps: Optimiser steps after each compressed block.
        trial_steps: Optimiser steps of a trial; None takes `steps`, as the paper does.
        nodes: How the MLP nodes that stay are chosen.
        recipe: How a student is trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=200, ge=0)
    trial_steps: int | None = Field(default=None, ge=0)
    nodes: NodeSelection = "importance"
    recipe: MimicRecipe = MimicRecipe()


@dataclass(frozen=True)
class Trial:
    """One unit compressed alone.

    Attributes:
        unit: Its blocks.
        score: Mean KL(teacher ‖ student) over the metric images, in nats; the lower, the better it recovers.
    """

    unit: tuple[int, ...]
    score: float
    seconds: float


@dataclass
class Search:
    """What DC-ViT needs to know of one job, and what it finds.

    Attributes:
        model: The model to compress; also the teacher.
        base: The plan that the model is to follow before any block is compressed (merges, or a fixed start).
        start: The plan that `model` itself follows.
        metric_images: Images [S, C, H, W] that trials are scored on.
        identity: Digests of the model and the images, for the keys of kept results.
    """

    model: TimmModule
    family: Family
    start: CompressionPlan
    base: CompressionPlan
    views: ViewBank
    metric_images: Tensor
    ranking: NodeRanking
    settings: DcvitSettings
    store: StageStore
    identity: dict[str, str]
    seed: int
    depth: int
    trials: list[Trial] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def rank(self, units: Sequence[Sequence[BlockPlan]]) -> list[tuple[int, ...]]:
        """Tries each unit alone, and returns them all, the one that recovers best first."""
        student = self.prepared()
        with torch.no_grad():
            teacher_logits = self._logits(self.model)
        for entries in units:
            self.trials.append(self._try(student, entries, teacher_logits))
        self.trials.sort(key=lambda trial: trial.score)
        return [trial.unit for trial in self.trials]

    def recover(self, units: Sequence[Sequence[BlockPlan]]) -> TimmModule:
        """Compresses the units one after the other, each followed by training, and returns the student."""
        student = self.prepared()
        done: list[BlockPlan] = []
        for position, entries in enumerate(units):
            done += entries
            self._cut(student, entries)
            self._train(student, f"{_named(entries)} ({position + 1} of {len(units)})", done, self.settings.steps)
        return student.eval()

    def prepared(self) -> TimmModule:
        """The model under the base plan; where that merges tokens, trained for it."""
        student = copy.deepcopy(self.model)
        if self.base.merges != self.start.merges:
            merging = self.start.original().replace(
                merges=self.base.merges,
                merge_operator=self.base.merge_operator,
                size_aware_attention=self.base.size_aware_attention,
            )
            self.family.apply(student, merging)
            self._train(student, "merging", [], self.settings.steps)
        return student

    def _try(self, student: TimmModule, entries: Sequence[BlockPlan], teacher_logits: Tensor) -> Trial:
        trial = copy.deepcopy(student)
        self._cut(trial, entries)
        steps = self.settings.steps if self.settings.trial_steps is None else self.settings.trial_steps
        seconds = self._train(trial, f"trial of {_named(entries)}", entries, steps)
        with torch.no_grad():
            logits = self._logits(trial)
        score = F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True)
        say(f"{_named(entries)}: KL {score.item():.4f}")
        return Trial(tuple(entry.index for entry in entries), score.item(), seconds)

    def _train(self, student: TimmModule, description: str, entries: Sequence[BlockPlan], steps: int) -> float:
        """Trains a student, in which `entries` were just compressed in this order; returns the seconds it took.

        What an equal training left behind is put in instead: the first progressive step equals the trial of its unit.
        """
        last = min(max((entry.index for entry in entries), default=self.depth) + 1, self.depth - 1)
        self.family.train_up_to(student, last)

        def compute() -> StageResult:
            result = mimic(
                student,
                self.family,
                self.views,
                self.settings.recipe,
                steps=steps,
                seed=self.seed,
                description=description,
                adapt=self._adapt if self.base.merges != self.start.merges else None,
            )
            trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
            return StageResult(trained, {"loss": result.loss, "seconds": result.seconds})

        key = {
            "identity": self.identity,
            "start": self.start.digest,
            "base": self.base.digest,
            "entries": [entry.model_dump() for entry in entries],
            "settings": self.settings.model_dump(exclude={"steps", "trial_steps"}),
            "steps": steps,
            "seed": self.seed,
        }
        result = self.store.run("trained", key, compute)
        student.load_state_dict(result.tensors, strict=False)
        self.losses.append(result.record["loss"])
        return float(result.record["seconds"])

    def _cut(self, student: TimmModule, entries: Sequence[BlockPlan]) -> None:
        kept = {e.index: self.ranking.best(e.index, e.mlp_hidden) for e in entries if e.mlp_hidden is not None}
        self.family.apply(student, self.start.original().with_blocks(*entries), kept)

    def _adapt(self, tokens: Tensor) -> Tensor:
        """The teacher's tokens, merged by their mean as the student's are."""
        return self.family.merge_tokens(self.model, self.base, tokens)

    def _logits(self, model: TimmModule) -> Tensor:
        device = next(model.parameters()).device
        return torch.cat([model(images.to(device)).float().cpu() for images in self.metric_images.split(64)])


def _named(entries: Sequence[BlockPlan]) -> str:
    return ("block " if len(entries) == 1 else "blocks ") + ", ".join(str(entry.index) for entry in entries)
