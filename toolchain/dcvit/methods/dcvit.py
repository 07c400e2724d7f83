"""DC-ViT (arXiv 2403.18708): few-shot, label-free compression of whole blocks, recovered by feature mimicking."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """One block compressed alone.

    Attributes:
        block: Its index.
        score: Mean KL(teacher ‖ student) over the metric images, in nats; the lower, the better it recovers.
    """

    block: int
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

    def rank(self, blocks: Sequence[int], width: int) -> list[int]:
        """Tries each block alone, and returns them all, the one that recovers best first."""
        student = self.prepared()
        with torch.no_grad():
            teacher_logits = self._logits(self.model)
        for block in blocks:
            self.trials.append(self._try(student, block, width, teacher_logits))
        self.trials.sort(key=lambda trial: trial.score)
        return [trial.block for trial in self.trials]

    def recover(self, entries: Sequence[BlockPlan], steps: int) -> TimmModule:
        """Compresses the blocks one after the other, each followed by training, and returns the student."""
        student = self.prepared()
        done: list[BlockPlan] = []
        for position, entry in enumerate(entries):
            done.append(entry)
            self._cut(student, entry)
            last = min(max(each.index for each in done) + 1, self.depth - 1)
            key = {"stage": "recover", "entries": [each.model_dump() for each in done], "steps": steps}
            self._train(student, f"block {entry.index} ({position + 1} of {len(entries)})", last, steps, key)
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
            key = {"stage": "merges", "steps": self.settings.steps}
            self._train(student, "merging", self.depth - 1, self.settings.steps, key)
        return student

    def _try(self, student: TimmModule, block: int, width: int, teacher_logits: Tensor) -> Trial:
        trial = copy.deepcopy(student)
        entry = BlockPlan(index=block, removed="attention", mlp_hidden=width)
        self._cut(trial, entry)
        steps = self.settings.steps if self.settings.trial_steps is None else self.settings.trial_steps
        last = min(block + 1, self.depth - 1)
        # The first progressive step is this very training, so its key is shared and its weights are found again.
        key = {"stage": "recover", "entries": [entry.model_dump()], "steps": steps}
        seconds = self._train(trial, f"trial of block {block}", last, steps, key)
        with torch.no_grad():
            logits = self._logits(trial)
        score = F.kl_div(logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True)
        say(f"block {block}: KL {score.item():.4f}")
        return Trial(block, score.item(), seconds)

    def _train(self, student: TimmModule, description: str, last_block: int, steps: int, key: dict[str, Any]) -> float:
        """Trains in place, or puts in what an equal training left behind; returns the seconds it took."""
        self.family.train_up_to(student, last_block)

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

        key = key | {"identity": self.identity, "base": self.base.digest, "seed": self.seed, "last": last_block}
        key |= {"settings": self.settings.model_dump(exclude={"steps", "trial_steps"})}
        result = self.store.run(str(key["stage"]), key, compute)
        student.load_state_dict(result.tensors, strict=False)
        self.losses.append(result.record["loss"])
        return float(result.record["seconds"])

    def _cut(self, student: TimmModule, entry: BlockPlan) -> None:
        kept = {}
        if entry.mlp_hidden is not None:
            kept[entry.index] = self.ranking.best(entry.index, entry.mlp_hidden)
        self.family.apply(student, self.start.original().with_blocks(entry), kept)

    def _adapt(self, tokens: Tensor) -> Tensor:
        """The teacher's tokens, merged by their mean as the student's are."""
        return self.family.merge_tokens(self.model, self.base, tokens)

    def _logits(self, model: TimmModule) -> Tensor:
        device = next(model.parameters()).device
        return torch.cat([model(images.to(device)).float().cpu() for images in self.metric_images.split(64)])
