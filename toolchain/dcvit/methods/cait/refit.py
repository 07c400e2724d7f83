"""Widths from measured damage, before any training: what joint compression starts from unless channels are pruned."""

import dataclasses
import math

from dcvit.cost import count_macs
from dcvit.data import FewShot
from dcvit.errors import InputError
from dcvit.methods.cuts.by_norm import cut_by_norm
from dcvit.methods.few_shot.proposal import survey
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.run import Compressed, Run
from dcvit.methods.target import Target
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule


class Refit:
    """Narrows a merged model with the few-shot solver; its closed-form refit leaves little for training to recover.

    Args:
        run: The model that was given, and where results are kept.
        base: The plan before any width is chosen.
        few_shot: Images that cuts are measured and refitted on.
        model: Follows the base plan; by default it has the given model's weights.
    """

    def __init__(self, run: Run, base: CompressionPlan, few_shot: FewShot, model: TimmModule | None = None) -> None:
        self.base = base
        self._subject = dataclasses.replace(run.subject, model=model or cut_by_norm(run.subject, base), plan=base)
        inner = dataclasses.replace(run, subject=self._subject)
        self._compressor = DcVitCompressor(inner, SearchSettings(steps=0), few_shot)

    def plan(self, target: Target, macs: float) -> CompressionPlan:
        """The plan that saves `macs` MACs of the base plan's model at the least predicted damage.

        Raises:
            InputError: If it is out of reach.
        """
        return self._compressor.plan(self._removing(target, macs))

    def most_macs(self, target: Target) -> float:
        """MACs that the narrowest plan saves of the base plan's model."""
        return self._compressor.most_macs(self._removing(target, 1.0))

    def damage(self, target: Target, macs: float, merge: str | None) -> float:
        """KL in nats that is predicted of narrowing until `macs` are saved, where a schedule saves a part.

        The merges' own harm is not in it. Damages are measured without the merges; how much each cut saves is counted
        with them. Infinite where the merges leave too little to cut.
        """
        removing = self._removing(target, macs)
        try:
            proposal = survey(self._subject, removing.model_copy(update={"merge": merge, "size_aware": None}))
            job, _ = self._compressor.job(removing)
            return self._compressor.predicted_damage(job, proposal.removing(macs / proposal.total))
        except InputError:
            return math.inf

    def cut(self, target: Target, macs: float) -> Compressed:
        """The same, cut and refitted."""
        return self._compressor.compress(self._removing(target, macs))

    def _removing(self, target: Target, macs: float) -> Target:
        convention = target.macs_convention
        total = count_macs(self._subject.model, self._subject.architecture.input_size, convention).total
        decided = dict.fromkeys(("merge", "size_aware", "plan")) | {"trim_last_block": False}
        return target.at(macs / total).model_copy(update=decided)
