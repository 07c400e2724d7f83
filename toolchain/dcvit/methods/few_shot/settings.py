"""Settings of the few-shot methods: how to search and how to recover."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dcvit.methods.cuts.nodes import NodeSelection
from dcvit.training.recipe import MimicRecipe

OURS = MimicRecipe(lr=2e-4, warmup=0.1, loss_warmup_epochs=0, logit_weight=0.3, clip_norm=1.0)


class SearchSettings(BaseModel):
    """How blocks are chosen and accuracy is recovered.

    Attributes:
        method: `dcvit`, or its baseline `practise` (arXiv 2202.07861), which has one search of its own.
        search: `solver` measures what each cut of each block does, takes the cuts that together do the least damage,
            refits the weights in closed form, and trains once at the end. `trials` trains each block compressed alone,
            takes those that recover best, all at one width, and trains after each (DC-ViT, arXiv 2403.18708).
        steps: Optimiser steps: of the one training with the solver, after each compressed block with trials.
        trial_steps: Optimiser steps of a trial; None takes `steps`, as the paper does.
        nodes: Which MLP nodes stay, with trials; the solver ranks them by what their loss costs after the refit.
        metric: Images that damage and trials are scored on: the few-shot images, or synthetic ones.
        synthesis_steps: Optimiser steps that make the synthetic ones.
        training: Optimiser and loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["dcvit", "practise"] = "dcvit"
    search: Literal["solver", "trials"] = "solver"
    steps: int = Field(default=200, ge=0)
    trial_steps: int | None = Field(default=None, ge=0)
    nodes: NodeSelection = "importance"
    metric: Literal["train", "synthetic"] = "train"
    synthesis_steps: int = Field(default=2000, ge=1)
    training: MimicRecipe = OURS

    @property
    def steps_of_a_trial(self) -> int:
        """Optimiser steps of a trial."""
        return self.steps if self.trial_steps is None else self.trial_steps


PAPER = SearchSettings(search="trials", nodes="random", metric="synthetic", training=MimicRecipe())
"""DC-ViT as published; the target must then be counted in the `dcvit` convention, with a width multiple of 1."""
