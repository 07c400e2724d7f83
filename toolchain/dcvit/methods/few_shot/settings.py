"""Settings of the few-shot methods: how to search and how to recover."""

from typing import Annotated, Literal, Self

from pydantic import Field

from dcvit.flags import Flag
from dcvit.methods.base import MethodSettings
from dcvit.methods.cuts.choices import Way
from dcvit.training.recipe import MimicRecipe

OURS = MimicRecipe(lr=2e-4, warmup=0.1, loss_warmup_epochs=0, logit_weight=0.3, clip_norm=1.0)


class FewShotSettings(MethodSettings):
    """What both few-shot methods are told."""

    steps: Annotated[int, Flag()] = Field(
        default=200, ge=0, description="Training steps; with trials after each compressed block."
    )
    trial_steps: Annotated[int | None, Flag(default="--steps")] = Field(
        default=None, ge=0, description="Training steps of a trial."
    )
    nodes: Annotated[Literal["importance", "random"], Flag()] = Field(
        default="importance", description="How trials choose the MLP nodes that stay."
    )
    metric: Annotated[Literal["train", "synthetic"], Flag()] = Field(
        default="train", description="Score cuts and trials on your images, or on ones made from the model alone."
    )
    synthesis_steps: int = Field(default=2000, ge=1, description="Optimiser steps that make the synthetic images.")
    training: MimicRecipe = OURS

    @property
    def steps_of_a_trial(self) -> int:
        """Optimiser steps of a trial; as many as a training has, where nothing else is said, as in the paper."""
        return self.steps if self.trial_steps is None else self.trial_steps


class SearchSettings(FewShotSettings):
    """How DC-ViT's blocks are chosen and accuracy is recovered.

    `solver` measures what each cut of each block does, takes the cuts that together do the least damage, refits the
    weights in closed form, and trains once at the end. `trials` trains each block compressed alone, takes those that
    recover best, all at one width, and trains after each (arXiv 2403.18708).
    """

    method: Literal["dcvit"] = "dcvit"
    search: Annotated[Literal["solver", "trials"], Flag()] = Field(
        default="solver", description="Measure and solve, or train a trial of each block as DC-ViT does."
    )

    examination: Annotated[Way, Flag()] = Field(
        default="exact",
        description="How the solver weighs a cut: run the rest of the network, or predict from its own block what that "
        "would do, for a time that grows with the depth and not with its square.",
    )

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(2e-4, 3e-5, 5e-6),
        description="Peak learning rates that the solver tries, each for a tenth of the steps: the one that does best "
        "on images that no step sees is taken. Of none, that of `training` is.",
    )

    @classmethod
    def paper(cls) -> Self:
        """DC-ViT as published; the target is then counted in the `dcvit` convention, with a width multiple of 1."""
        return cls(search="trials", nodes="random", metric="synthetic", training=MimicRecipe())


class PractiseSettings(FewShotSettings):
    """How PRACTISE (arXiv 2202.07861), the baseline, drops blocks; its loss is the feature error alone."""

    method: Literal["practise"] = "practise"
    training: MimicRecipe = OURS.model_copy(update={"logit_weight": 0.0})

    @classmethod
    def paper(cls) -> Self:
        """The same with the recipe of DC-ViT's paper, so that the two can be compared."""
        return cls(nodes="random", metric="synthetic", training=MimicRecipe(logit_weight=0.0))
