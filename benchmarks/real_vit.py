"""A real pretrained Vision Transformer without a head, cut without training: what is left of its features.

    python benchmarks/real_vit.py --weights vit_small.safetensors --fit photos/ --judge others/ \
        -o benchmarks/results/real_vit.json --page docs/real_vit.md

`--fit` and `--judge` are folders of images, or tars of them, any natural ones; no label is read. Nothing is fitted on
images of `--judge`. Settings are chosen on some, such as a second part of the training images, and judged on others
once. A row is written as soon as it is measured, rows that the file holds already are not measured again, and `--page`
writes the table of all of them. At 112 pixels and 64 images ours takes some minutes of one core, most of them for the
examination, which serves every size. With `--steps` every method's result is then trained alike, on the features of the
original for augmented views of the same images; DC-ViT's trials and PRACTISE spend the steps while they search, and
have their trials on top of them.

| column | of the features on judged images |
|---|---|
| cosine | between the compressed model's and the original's, both less the original's mean; mean over images |
| relative MSE | squared error as a share of the original's about its mean |
| five nearest | of an image's five nearest neighbours among the judged (cosine, centred), how many stay |
"""

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor

import real_vit_baselines
from dcvit.bench.machine import this_machine
from dcvit.cost import count_macs
from dcvit.data import draw_few_shot, open_source
from dcvit.files import base_name
from dcvit.methods.cuts import least_squares
from dcvit.methods.cuts.nodes import NodeRanking
from dcvit.methods.cuts.surgery import operate
from dcvit.methods.few_shot import fitted_images, solver
from dcvit.methods.few_shot.job import Job
from dcvit.methods.few_shot.practise import PractiseCompressor, practise
from dcvit.methods.few_shot.proposal import Proposal
from dcvit.methods.few_shot.recovery import TRIAL
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import OURS, PractiseSettings, SearchSettings
from dcvit.methods.run import Run
from dcvit.methods.target import Target
from dcvit.plan import BlockPlan
from dcvit.stages import StageStore
from dcvit.subject import Subject, open_subject
from dcvit.training.mimic import mimic
from dcvit.training.recipe import MimicRecipe
from dcvit.types import TimmModule
from dcvit.versions import package_versions
from few_shot import save
from real_vit_page import page
from snapvit import snapvit

NEIGHBOURS = 5
RECIPE = OURS.model_copy(update={"batch_size": 32})
"""Of the steps behind every method."""
CHOSEN_ON, CHOSEN_BY = 100, 999
"""Images that learning rates are chosen on, and the seed that they are drawn by."""
AS_PUBLISHED = RECIPE.model_copy(update={"lr": MimicRecipe().lr})
"""At the learning rate of DC-ViT's paper."""


@dataclass(frozen=True)
class Row:
    """One compression: what was asked for."""

    method: str
    reduction: float
    samples: int
    seed: int
    steps: int = 0


class Study:
    """One draw of images to fit on; what the sizes share is computed once."""

    def __init__(self, subject: Subject, fit: Path, samples: int, seed: int, store: Path) -> None:
        self._source = open_source(fit, "train")
        run = Run(subject, self._source, samples, seed, "mimic", StageStore(store))
        self.subject, self._run = subject, run
        self.learning_rate: float | None = None
        self._trainings: dict[int, Job[SearchSettings]] = {}

    def ours(self, reduction: float) -> TimmModule:
        """As `dcvit-tool compress` cuts it, without the training."""
        compressor = DcVitCompressor(self._run, SearchSettings(steps=0))
        return compressor.compress(Target(macs_reduction=reduction)).model

    def predicted(self, reduction: float) -> TimmModule:
        """The same with damages predicted from the blocks."""
        compressor = DcVitCompressor(self._run, SearchSettings(steps=0, examination="predicted"))
        return compressor.compress(Target(macs_reduction=reduction)).model

    def job(self, reduction: float) -> tuple[Job[SearchSettings], Proposal]:
        """What every method works on."""
        return DcVitCompressor(self._run, SearchSettings(steps=0)).job(Target(macs_reduction=reduction))

    def train(self, student: TimmModule, steps: int, rate: float | None = None) -> TimmModule:
        """Trains a student of any method as `dcvit-tool compress` does ours, all of its blocks at once.

        At the learning rate that does best in trials of a tenth of the steps, on other images than those fitted on:
        what a method has learnt by heart must not have a say; or at the given one. What was trained stays, whatever it
        did.
        """
        if steps not in self._trainings:
            compressor = DcVitCompressor(self._run, SearchSettings(steps=steps, training=RECIPE))
            job, _ = compressor.job(Target(macs_reduction=0.1))
            job.views.held_out = 0
            self._trainings[steps] = job
        job = self._trainings[steps]
        self.learning_rate = self._best_rate(job, student, steps) if rate is None else rate
        return self._trained(job, student, steps, self.learning_rate)

    def _best_rate(self, job: Job[SearchSettings], student: TimmModule, steps: int) -> float:
        images = draw_few_shot(self._source, CHOSEN_ON, CHOSEN_BY, job.calibration.shape[1])
        asked = images.tensor(self.subject.preprocessing)
        wanted, _ = features_of(self.subject.model, self.subject, asked)
        tried: dict[float, float] = {}
        for rate in SearchSettings().learning_rates:
            trial = self._trained(job, copy.deepcopy(student), math.ceil(steps * TRIAL), rate)
            tried[rate] = agreement(features_of(trial, self.subject, asked)[0], wanted)[1]
        return min(tried, key=tried.__getitem__)

    def _trained(self, job: Job[SearchSettings], student: TimmModule, steps: int, rate: float) -> TimmModule:
        job.family.train_up_to(student, job.depth - 1)
        recipe = job.recipe.model_copy(update={"lr": rate})
        mimic(student, job.family, job.views, recipe, steps=steps, seed=job.seed, description="training")
        return student.eval()

    def trials(self, reduction: float, steps: int) -> TimmModule:
        """DC-ViT's search by trials with all steps spent in it: equally many after each block that it compresses."""
        target = Target(macs_reduction=reduction, width_multiple=1)
        settings = SearchSettings(
            search="trials", nodes="random", steps=self._steps_a_block(target, steps), training=AS_PUBLISHED
        )
        return DcVitCompressor(self._run, settings).compress(target).model

    def practise(self, reduction: float, steps: int) -> TimmModule:
        """PRACTISE with all steps in its fine-tuning, and trials as long as DC-ViT's."""
        target = Target(macs_reduction=reduction, width_multiple=1)
        trial = self._steps_a_block(target, steps)
        settings = PractiseSettings(steps=steps, trial_steps=trial, training=AS_PUBLISHED)
        job, proposal = PractiseCompressor(self._run, settings).job(target)
        return practise(job, proposal, steps=steps).student

    def _steps_a_block(self, target: Target, steps: int) -> int:
        _, proposal = DcVitCompressor(self._run, SearchSettings(steps=0)).job(target)
        return round(steps / proposal.structure().units)

    def uniform(self, reduction: float) -> TimmModule:
        """Every MLP equally narrow, nodes of the least norm gone, fc2 refitted by ridge: the method of extending.md."""
        job, proposal = self.job(reduction)
        entries = _uniform_widths(proposal)
        ranking = NodeRanking(job.model, job.family, [entry.index for entry in entries], "norm")
        student = job.merged()
        orders = {entry.index: ranking.order(entry.index) for entry in entries}
        with patch.object(fitted_images, "MAX_VIEWS", 1):
            wanted = job.wanted()
        operate(student, wanted, job.family, job.start, entries, orders)
        return student


def _uniform_widths(proposal: Proposal) -> list[BlockPlan]:
    share = proposal.wanted / sum(cost.narrowed for cost in proposal.blocks.values())
    whole, step = proposal.whole.mlp_hidden, proposal.width_multiple
    width = int((1 - share) * whole / step + 1e-9) * step
    return [BlockPlan(index=block, mlp_hidden=width) for block in proposal.blocks]


def _baseline(make: Callable[..., TimmModule]) -> Callable[[Study, float], TimmModule]:
    def model(study: Study, reduction: float) -> TimmModule:
        job, proposal = study.job(reduction)
        with torch.no_grad(), patch.object(fitted_images, "MAX_VIEWS", 1):
            return make(job, proposal)

    return model


METHODS: dict[str, Callable[[Study, float], TimmModule]] = {
    "ours": Study.ours,
    "ours, --examination predicted": Study.predicted,
    "uniform MLPs, ridge": Study.uniform,
    **{name: _baseline(make) for name, make in real_vit_baselines.METHODS.items()},
    "SnapViT": _baseline(snapvit),
}

SEARCHED_BY_TRAINING: dict[str, Callable[[Study, float, int], TimmModule]] = {
    "DC-ViT, trials": Study.trials,
    "PRACTISE": Study.practise,
}
"""Methods that train while they search, so that the steps are theirs to spend; trials come on top, as published."""


def _without_views(study: Study, reduction: float) -> TimmModule:
    with patch.object(fitted_images, "MAX_VIEWS", 1):
        return study.ours(reduction)


def _all_tokens_alike(study: Study, reduction: float) -> TimmModule:
    with patch.object(least_squares, "READ_SHARE", 0), patch.object(solver, "READ_SHARE", 0):
        return study.ours(reduction)


ABLATIONS: dict[str, Callable[[Study, float], TimmModule]] = {
    "ours, no views": _without_views,
    "ours, tokens weighed alike": _all_tokens_alike,
    "ours, at 2e-4": Study.ours,
}

FIXED_RATES = {"ours, at 2e-4": 2e-4}
"""Of methods whose learning rate is not chosen by trials."""


def student_of(study: Study, row: Row) -> TimmModule:
    """A row's model, with its training steps behind it."""
    if row.method in SEARCHED_BY_TRAINING:
        return SEARCHED_BY_TRAINING[row.method](study, row.reduction, row.steps)
    student = (METHODS | ABLATIONS)[row.method](study, row.reduction)
    return study.train(student, row.steps, FIXED_RATES.get(row.method)) if row.steps else student


@torch.no_grad()
def features_of(model: TimmModule, subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the model's forward gives [n, C], and its patch tokens [n, H·W, C], both behind the final norm."""
    prefix = subject.architecture.num_prefix_tokens
    parts = [subject.family.features_and_logits(model, chunk) for chunk in images.split(50)]
    return torch.cat([pooled for _, pooled in parts]), torch.cat([tokens[:, prefix:] for tokens, _ in parts])


def agreement(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Mean cosine and relative MSE of features [..., C], centred at the wanted ones' mean."""
    found, wanted = found.flatten(0, -2).double(), wanted.flatten(0, -2).double()
    centre = wanted.mean(0)
    cosine = torch.nn.functional.cosine_similarity(found - centre, wanted - centre)
    error = (found - wanted).square().sum() / (wanted - centre).square().sum()
    return float(cosine.mean()), float(error)


def kept_neighbours(found: Tensor, wanted: Tensor) -> float:
    """Share of the nearest neighbours among features [n, C] that stay."""

    def nearest(features: Tensor) -> Tensor:
        rows = torch.nn.functional.normalize(features - features.mean(0))
        return (rows @ rows.T).fill_diagonal_(-2).topk(NEIGHBOURS).indices

    same = nearest(found)[:, :, None] == nearest(wanted)[:, None, :]
    return float(same.sum() / (NEIGHBOURS * len(found)))


@click.command()
@click.option("--weights", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True)
@click.option("--fit", type=click.Path(path_type=Path, exists=True), required=True, help="Images to fit on.")
@click.option("--judge", type=click.Path(path_type=Path, exists=True), required=True, help="Images to judge on.")
@click.option("--model", default="vit_small_patch14_dinov2", show_default=True, help="timm name.")
@click.option("--size", default=112, show_default=True, help="Pixels a side that images are resized to.")
@click.option("--samples", default=128, show_default=True, help="Images to fit on.")
@click.option("--judged", default=300, show_default=True, help="Images to judge on.")
@click.option("--macs-reduction", "reductions", type=float, multiple=True, default=(0.166, 0.33), show_default=True)
@click.option("--method", "methods", type=click.Choice([*METHODS, *SEARCHED_BY_TRAINING, *ABLATIONS]), multiple=True,
              default=(*METHODS, *SEARCHED_BY_TRAINING), show_default=True)  # fmt: skip
@click.option("--steps", default=0, show_default=True, help="Training steps of 32 images behind every method.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Markdown to write.")
def main(
    weights: Path,
    fit: Path,
    judge: Path,
    model: str,
    size: int,
    samples: int,
    judged: int,
    reductions: tuple[float, ...],
    methods: tuple[str, ...],
    steps: int,
    seeds: tuple[int, ...],
    out: Path,
    page_path: Path | None,
) -> None:
    """Measures what has not been measured yet, row by row."""
    kwargs = {"img_size": size, "num_classes": 0}
    subject = open_subject(model, model_kwargs=kwargs, checkpoint=weights)
    about = {
        "model": model, "size": size, "weights": weights.name, "fit": base_name(str(fit)),
        "judge": base_name(str(judge)), "judged": judged,
    }  # fmt: skip
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"about": about, "rows": []}
    if {key: report["about"].get(key) for key in about} != about:
        raise click.ClickException(f"{out} holds rows of another study; give another --out")
    report["about"] |= {"machine": this_machine().to_json(), "versions": package_versions()}
    channels = subject.architecture.input_size[0]
    images = draw_few_shot(open_source(judge, "test"), judged, 12345, channels).tensor(subject.preprocessing)
    wanted = features_of(subject.model, subject, images)
    before = count_macs(subject.model, subject.architecture.input_size).total
    for seed in seeds:
        with tempfile.TemporaryDirectory() as store:
            study = Study(subject, fit, samples, seed, Path(store))
            for row in (Row(method, share, samples, seed, steps) for share in reductions for method in methods):
                if any(asdict(row).items() <= done.items() for done in report["rows"]):
                    continue
                started = time.perf_counter()
                student = student_of(study, row)
                spent = time.perf_counter() - started
                found = features_of(student, subject, images)
                cls, patches = (agreement(*pair) for pair in zip(found, wanted, strict=True))
                after = count_macs(student, subject.architecture.input_size).total
                done = asdict(row) | {
                    "macs_reduction": 1 - after / before, "cls_cosine": cls[0], "cls_mse": cls[1],
                    "neighbours": kept_neighbours(found[0], wanted[0]), "patch_cosine": patches[0],
                    "patch_mse": patches[1], "seconds": spent, "machine": this_machine().kind,
                }  # fmt: skip
                if steps and row.method not in SEARCHED_BY_TRAINING:
                    done["learning_rate"] = study.learning_rate
                report["rows"].append(done)
                save(out, report)
                click.echo(json.dumps(done))
    if page_path is not None:
        page_path.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
