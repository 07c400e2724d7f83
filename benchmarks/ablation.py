"""What each piece of our few-shot search is worth, on the CIFAR-10 teacher: each is left out in turn.

    python benchmarks/ablation.py --data DATA -o benchmarks/results/ablation.json

DATA is as for `few_shot.py`. Top-1 is on all images of `test.tar`, PyTorch, the precision that the machine is fast in;
agreement is the share of those images on which student and teacher choose the same class. A row is written as soon as
it is measured, and rows that the file holds already are not measured again.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from dcvit.bench.machine import this_machine
from dcvit.data import CorruptImages, batches, open_source
from dcvit.methods.cuts.damage import Examination
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.cuts.scores import logits_of
from dcvit.methods.cuts.surgery import Piece, operate
from dcvit.methods.few_shot.allocate import BlockWidths, damage_of
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.methods.few_shot.recovery import recover_at_once
from dcvit.methods.few_shot.search import DcVitCompressor, possible_cuts
from dcvit.methods.few_shot.settings import OURS, SearchSettings
from dcvit.methods.few_shot.solver import examined, solve
from dcvit.methods.few_shot.structure import UnitCost
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.plan import BlockPlan
from dcvit.stages import StageStore
from dcvit.subject import open_subject
from dcvit.versions import package_versions
from few_shot import MODEL, MODEL_KWARGS, save

Entries = list[BlockPlan]
REDUCTIONS = (0.6, 0.7)
STEPS = 200


@dataclass(frozen=True)
class Variant:
    """Our search with something left out or put in its place.

    Attributes:
        name: For the table.
        choose: From an examination to plan entries; None takes the solver.
        without: Pieces of the surgery to leave out.
        nodes: Which nodes stay; None takes the elimination order.
        training: Steps, and changes to the recipe; None does not train.
        judged: Recover as `compress` does, with images held out that choose a learning rate and judge.
    """

    name: str
    choose: Callable[["Setting"], Entries] | None = None
    without: tuple[Piece, ...] = ()
    nodes: str | None = None
    training: tuple[int, dict[str, float]] | None = None
    judged: bool = False


@dataclass
class Setting:
    """One model, one target, one draw of images."""

    compressor: DcVitCompressor
    job: Job[SearchSettings]
    proposal: Proposal

    @cached_property
    def examination(self) -> Examination:
        return examined(self.job, possible_cuts(self.proposal), self.proposal.width_multiple)

    def solved(self, **known: Any) -> Entries:
        """The solver's choice where what is known of all blocks is changed."""
        damages = {block: damage.model_copy(update=known) for block, damage in self.examination.damages.items()}
        proposal = self.proposal
        return solve(
            damages, proposal.blocks, proposal.widths, proposal.wanted, proposal.total, proposal.width_multiple
        )


def _no_attention_removed(setting: Setting) -> Entries:
    return setting.solved(attention=None)


def _heads_as_wide(setting: Setting) -> Entries:
    return setting.solved(heads={})


def _one_width(setting: Setting) -> Entries:
    """All MLPs equally narrow, every attention kept."""
    proposal = setting.proposal
    costs: Sequence[UnitCost] = list(proposal.blocks.values())
    share = 1 - proposal.wanted / sum(cost.narrowed for cost in costs)
    width = int(share * proposal.whole.mlp_hidden / proposal.width_multiple) * proposal.width_multiple
    if width <= 0:
        raise click.ClickException("out of reach")
    return [BlockPlan(index=block, mlp_hidden=width) for block in proposal.blocks]


def _structure_of_dcvit(setting: Setting) -> Entries:
    """k blocks lose attention and have one width, chosen by their measured damage."""
    damages = setting.examination.damages
    whole = setting.proposal.whole
    cut = BlockWidths(head_dim=0, mlp_hidden=setting.proposal.structure().mlp_hidden or whole.mlp_hidden)

    def harm(unit: tuple[int, ...]) -> float:
        return sum(damage_of(damages[block], cut, whole) for block in unit)

    ranked = sorted(setting.proposal.units, key=harm)
    return [entry for unit in setting.proposal.chosen(ranked) for entry in unit]


VARIANTS = (
    Variant("all, untrained"),
    Variant("no refit", without=("refit",)),
    Variant("refit on the teacher's tokens", without=("propagation",)),
    Variant("nodes by E|a|·‖w‖", nodes="importance"),
    Variant("random nodes", nodes="random"),
    Variant("heads as wide as before", choose=_heads_as_wide),
    Variant("no attention removed", choose=_no_attention_removed),
    Variant("one width for all", choose=_one_width),
    Variant("DC-ViT's structure", choose=_structure_of_dcvit),
    Variant("DC-ViT's structure, random nodes, no refit", choose=_structure_of_dcvit, nodes="random",
            without=("refit",)),
    Variant("trained, 50 steps", training=(50, {})),
    Variant("trained, 200 steps", training=(STEPS, {})),
    Variant("trained, 200 steps, features only", training=(STEPS, {"logit_weight": 0.0})),
    Variant("trained, 200 steps, judged", judged=True),
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The teacher, its images, and what it says of the test images."""

    data: Path
    cache: Path
    samples: int
    seed: int

    @cached_property
    def compressor(self) -> DcVitCompressor:
        checkpoint = self.data / "teacher" / "deit_tiny_cifar10.safetensors"
        subject = open_subject(MODEL, model_kwargs=MODEL_KWARGS, checkpoint=checkpoint)
        source = open_source(self.data / "cifar10" / "train-0.tar", "train")
        run = Run(subject, source, self.samples, self.seed, "mimic", StageStore(self.cache))
        return DcVitCompressor(run, SearchSettings(steps=STEPS))

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        preprocessing = self.compressor.run.subject.preprocessing
        source = open_source(self.data / "cifar10" / "test.tar", "test")
        read = list(batches(source, preprocessing, 250, CorruptImages()))
        return torch.cat([batch.images for batch in read]), torch.cat([batch.labels for batch in read])

    @cached_property
    def teacher_logits(self) -> Tensor:
        return logits_of(self.compressor.run.subject.model, self.test[0])

    def figures(self, logits: Tensor) -> dict[str, float]:
        choices, labels = logits.argmax(1), self.test[1]
        agreement = choices == self.teacher_logits.argmax(1)
        return {
            "top1": 100 * (choices == labels).double().mean().item(),
            "agreement": 100 * agreement.double().mean().item(),
        }

    def run(self, variant: Variant, reduction: float) -> dict[str, Any]:
        setting = Setting(self.compressor, *self.compressor.job(Target(macs_reduction=reduction)))
        job = setting.job
        entries = variant.choose(setting) if variant.choose else setting.solved()
        orders = setting.examination.orders
        if variant.nodes is not None:
            narrowed = [entry.index for entry in entries if entry.mlp_hidden is not None]
            ranking = NodeRanking(
                job.model, job.family, narrowed, variant.nodes, images=job.calibration, seed=self.seed  # type: ignore[arg-type]
            )  # fmt: skip
            orders = {index: ranking.order(index) for index in narrowed}
        if variant.judged:
            student = recover_at_once(job, entries, setting.examination)
        else:
            student = copy.deepcopy(job.model)
            operate(student, job.wanted(), job.family, job.start, entries, orders, without=variant.without)
        if variant.training is not None:
            steps, changes = variant.training
            recipe = job.settings.training.model_copy(update=changes)
            job.settings = job.settings.model_copy(update={"training": recipe})
            job.train(student, entries, steps, variant.name, last_block=job.depth - 1)
        return self.figures(logits_of(student.eval(), self.test[0])) | {
            "judged": None if job.training is None else job.training.to_json(),
            "blocks": {entry.index: (entry.removed, entry.head_dim, entry.mlp_hidden) for entry in entries},
        }


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/few_shot_cache"), show_default=True)
@click.option("--samples", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(data: Path, out: Path, cache: Path, samples: int, seed: int) -> None:
    study = Study(data, cache, samples, seed)
    if not out.exists():
        teacher = study.figures(study.teacher_logits)["top1"]
        about = {"samples": samples, "seed": seed, "training": OURS.model_dump(), "images": len(study.test[1])}
        save(out, {"teacher_top1": teacher, **about, "versions": package_versions(),
                   "machine": this_machine().to_json(), "rows": []})  # fmt: skip
    report = json.loads(out.read_text())
    done = {(row["variant"], row["reduction"]) for row in report["rows"]}
    for reduction in REDUCTIONS:
        for variant in VARIANTS:
            if (variant.name, reduction) in done:
                continue
            try:
                found = study.run(variant, reduction)
            except click.ClickException as error:
                click.echo(f"{variant.name}, −{reduction:.1%}: {error.message}")
                continue
            report["rows"].append({"variant": variant.name, "reduction": reduction, **found})
            save(out, report)
            click.echo(
                f"{variant.name}, −{reduction:.1%}: top-1 {found['top1']:.2f}, agreement {found['agreement']:.2f}"
            )


if __name__ == "__main__":
    main()
