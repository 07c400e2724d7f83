"""Training a student on labels, on its teacher's outputs, or on both; it may be narrowed while it trains."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from dcvit.data import derived_seed, seeded
from dcvit.errors import CheckFailedError, InputError
from dcvit.hardware import accelerator, fast_backward
from dcvit.progress import track
from dcvit.stages import StageStore, digest_of
from dcvit.training.checkpoint import TrainingState, read_state, unusable, write_state
from dcvit.training.ema import MovingAverage
from dcvit.training.images import TrainingData
from dcvit.training.log import TrainingLog
from dcvit.training.mimic import cosine
from dcvit.training.mixing import Mixing
from dcvit.training.order import Order
from dcvit.training.pruner import Pruner
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.task import Objective
from dcvit.training.teacher import Teacher
from dcvit.types import TimmModule

CHECKPOINT = "training.safetensors"
SAME_IMAGES = {"epochs", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "clip_norm", "label_smoothing",
               "distill", "ema"}  # fmt: skip
"""Of a recipe, what changes no image that the teacher is shown; their number and order is told beside it."""
_MOST_STEPS_A_RECORD = 50


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of a training is kept while it is under way.

    Attributes:
        folder: Holds one file, the latest state.
        name: Of the training among others that are kept there.
        key: What the training depends on; a state of another one is refused.
        minutes: Between two states.
    """

    folder: Path
    name: str
    key: dict[str, Any]
    minutes: float = 10.0

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.name}.{CHECKPOINT}"


@dataclass(frozen=True)
class FinetuneResult:
    """How a training went.

    Attributes:
        steps: Optimiser steps.
        loss: Mean over the last tenth of the steps, in nats; None where there is no record of them.
        seconds: Wall time, over all the runs that it took.
        images_per_second: Mean over the training.
    """

    steps: int
    loss: float | None
    seconds: float
    images_per_second: float | None

    def followed_by(self, rest: "FinetuneResult") -> "FinetuneResult":
        """Both parts of one training; loss and speed are the last one's that has them."""
        loss = self.loss if rest.loss is None else rest.loss
        speed = rest.images_per_second or self.images_per_second
        return FinetuneResult(self.steps + rest.steps, loss, self.seconds + rest.seconds, speed)


class Finetuning:
    """One training, of the parameters of `student` that require gradients, in place.

    Args:
        student: What is trained.
        task: The loss.
        data: The images.
        recipe: Resolved for the model's preprocessing.
        num_classes: For mixup's labels.
        seed: Decides order, augmentation and dropout.
        teacher: For a task that needs one.
        pruner: Narrows the student between steps.
        log: What is told; by default nothing.
        checkpoints: Where to go on from, and to save the state to.
        span: The steps to train, from the first to before the last; by default all. Learning rate, order and
            augmentation are those of the whole training, the optimiser starts anew.

    Raises:
        InputError: If the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        student: TimmModule,
        task: Objective,
        data: TrainingData,
        recipe: TrainingRecipe,
        *,
        num_classes: int,
        seed: int,
        teacher: Teacher | None = None,
        pruner: Pruner | None = None,
        log: TrainingLog | None = None,
        checkpoints: Checkpoints | None = None,
        span: tuple[int, int] | None = None,
    ) -> None:
        process = accelerator()
        mixup, cutmix = recipe.mixup or 0.0, recipe.cutmix or 0.0
        shares = recipe.accumulate * process.num_processes
        if recipe.batch_size % (2 * shares) and (shares > 1 or mixup or cutmix):
            raise InputError(
                f"--batch-size {recipe.batch_size} cannot be shared out: give a multiple of {2 * shares} "
                f"(pairs of images, {recipe.accumulate} parts, {process.num_processes} processes)"
            )
        self.student, self.task, self.data, self.recipe = student.to(process.device), task, data, recipe
        self.teacher, self.pruner, self.checkpoints = teacher, pruner, checkpoints
        self.log = log or TrainingLog()
        self.seed, self.steps = seed, recipe.steps(data.num_images)
        self.begin, self.end = span or (0, self.steps)
        self.mixing = Mixing(mixup, cutmix, recipe.label_smoothing, num_classes, seed)
        self.order = Order(
            data.num_images, recipe.batch_size, seed,
            parts=recipe.accumulate, process=process.process_index, processes=process.num_processes,
        )  # fmt: skip
        self._average = MovingAverage(self.student, recipe.ema) if recipe.ema else None
        self._optimizer = _optimizer(self.student, recipe, pruner)

    def keep_teacher(self, store: StageStore, key: dict[str, Any]) -> None:
        """Lets the teacher compute its outputs beforehand, for this training and others; see `Teacher.keep`."""
        if self.teacher is not None and self.task.needs_teacher:
            images = {"order": [self.order.images, self.order.batch_size, self.seed], "steps": self.steps}
            looks = self.recipe.model_dump(mode="json", exclude=SAME_IMAGES)
            self.teacher.keep(self.data, self.order, self.steps, self.mixing, store, key | images | looks)

    def run(self, description: str) -> FinetuneResult:
        """Trains to the end, from a checkpoint if there is one; the student is in evaluation mode afterwards.

        Raises:
            CheckFailedError: If the loss is no longer a number.
            InputError: If the checkpoint is of another training.
        """
        if self.begin == self.end:
            self.student.eval()
            return FinetuneResult(0, None, 0.0, None)
        start, before = self._resume()
        process = accelerator()
        began = time.perf_counter()
        model = process.prepare(_Forward(self.student))
        parameters = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        meter = _Meter(start, before, self.recipe.batch_size)
        every = max(1, min(_MOST_STEPS_A_RECORD, self.steps // 100))
        saved = time.perf_counter()
        self.student.train()
        with fast_backward(self.student), seeded(self.seed):
            batches = self.data.batches(self.order.draws(start, self.end))
            for step in track(range(start, self.end), description):
                lr = self.recipe.lr * cosine(step, self.steps, self.recipe.warmup)
                for group in self._optimizer.param_groups:
                    group["lr"] = lr
                # For dropout; all else that is random has a seed of its own.
                torch.manual_seed(derived_seed(self.seed, step, 3 + process.process_index))
                for part in range(self.recipe.accumulate):
                    last = part == self.recipe.accumulate - 1
                    with nullcontext() if last else process.no_sync(model):
                        losses = self._losses(model, batches)
                        process.backward(torch.stack(list(losses.values())).sum() / self.recipe.accumulate)
                    meter.add(losses, self.recipe.accumulate)
                if self.recipe.clip_norm:
                    process.clip_grad_norm_(parameters, self.recipe.clip_norm)
                self._step(step, lr)
                done = step + 1
                if done % every == 0 or done == self.end:
                    self._record(meter, done, lr)
                    if self._time_to_save(saved) or done == self.end:
                        self._save(done, before + time.perf_counter() - began)
                        saved = time.perf_counter()
        process.free_memory()  # Accelerate keeps every model that it prepared
        if self._average is not None:
            self._average.put_into(self.student)
        self.student.eval()
        seconds = before + time.perf_counter() - began
        steps = self.end - self.begin
        tail = [each["loss"] for each in self.log.records if each["step"] > self.end - 0.1 * steps]
        speed = steps * self.recipe.batch_size / max(seconds, 1e-9)
        return FinetuneResult(steps, sum(tail) / len(tail) if tail else None, seconds, speed)

    def _losses(self, model: nn.Module, batches: Iterator[Any]) -> dict[str, Tensor]:
        draw, images, labels = next(batches)
        images, labels = self.mixing(images, labels, draw.step)
        taught = self.teacher(images, draw) if self.teacher is not None and self.task.needs_teacher else None
        with accelerator().autocast():
            output = model(images)
        return self.task.losses(output.float(), taught, labels)

    def _step(self, step: int, lr: float) -> None:
        if self.pruner is not None:
            self.pruner.before_step()
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.pruner is not None:
            self.pruner.after_step(step, self.steps, lr)
        if self._average is not None:
            self._average.update(self.student, step)

    def _record(self, meter: "_Meter", done: int, lr: float) -> None:
        losses, speed, seconds = meter.read(done)
        if not all(math.isfinite(value) for value in losses.values()):
            raise CheckFailedError(f"the loss is no longer a number after {done} steps; give a smaller --lr")
        record: dict[str, Any] = {
            "step": done,
            "epoch": round(done * self.recipe.batch_size / self.data.num_images, 4),
            "loss": sum(losses.values()),
            "losses": losses,
            "lr": lr,
            "images_per_second": round(speed, 1),
            "seconds": round(seconds, 2),
        }
        if self.pruner is not None:
            record["widths"] = self.pruner.widths()
        if accelerator().is_main_process:
            self.log.add(record, self.steps)
        else:
            self.log.records.append(record)

    def _time_to_save(self, saved: float) -> bool:
        return self.checkpoints is not None and time.perf_counter() - saved >= 60 * self.checkpoints.minutes

    def _save(self, done: int, seconds: float) -> None:
        if self.checkpoints is None or not accelerator().is_main_process:
            return
        parts: dict[str, Any] = {
            "model": self.student.state_dict(),
            "optimizer": self._optimizer.state_dict()["state"],
            "average": None if self._average is None else self._average.weights,
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
        }
        write_state(self.checkpoints.path, self._key(), TrainingState(done, seconds, parts))

    def _resume(self) -> tuple[int, float]:
        """Puts the saved state back; gives the steps that are done and the seconds that they took."""
        state = None
        if self.checkpoints is not None:
            state = read_state(self.checkpoints.path, self._key())
        accelerator().wait_for_everyone()
        if accelerator().is_main_process:
            self.log.resume(state.step if state else self.begin)
        if state is None:
            return self.begin, 0.0
        assert self.checkpoints is not None
        try:
            self._put_back(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise unusable(self.checkpoints.path, error) from error
        return state.step, state.seconds

    def _put_back(self, state: TrainingState) -> None:
        if not self.begin <= state.step <= self.end:
            raise ValueError(f"step {state.step} of {self.steps}")
        self.student.load_state_dict(state.parts["model"])
        fresh = self._optimizer.state_dict()
        self._optimizer.load_state_dict({"state": state.parts["optimizer"], "param_groups": fresh["param_groups"]})
        if self._average is not None:
            self._average.load(state.parts["average"])
        if self.pruner is not None:
            self.pruner.load_state_dict(state.parts["pruner"])

    def _key(self) -> str:
        assert self.checkpoints is not None
        whole = (self.begin, self.end) == (0, self.steps)
        part = {} if whole else {"span": [self.begin, self.end]}
        return digest_of(self.checkpoints.key | {"steps": self.steps, "seed": self.seed} | part)


class _Forward(nn.Module):
    """Stands before the student, so that what Accelerate does to a forward stays out of it."""

    def __init__(self, model: TimmModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Meter:
    """Means of the losses and the throughput since the last record. Reads a GPU's figures only when asked."""

    def __init__(self, step: int, before: float, batch_size: int) -> None:
        self._batch_size, self._before = batch_size, before
        self._began = self._since = time.perf_counter()
        self._step = step
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], parts: int) -> None:
        for name, value in losses.items():
            share = value.detach() / parts
            self._sums[name] = share + self._sums[name] if name in self._sums else share

    def read(self, done: int) -> tuple[dict[str, float], float, float]:
        """Mean losses over all processes, images per second, and seconds since the start."""
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        means = accelerator().reduce(sums, "mean") / (done - self._step)
        now = time.perf_counter()
        speed = (done - self._step) * self._batch_size / max(now - self._since, 1e-9)
        self._sums, self._step, self._since = {}, done, now
        return dict(zip(names, means.tolist(), strict=True)), speed, self._before + now - self._began


def _optimizer(student: TimmModule, recipe: TrainingRecipe, pruner: Pruner | None) -> torch.optim.Optimizer:
    undecayed = set(student.no_weight_decay()) if hasattr(student, "no_weight_decay") else set()
    undecayed |= set(pruner.no_weight_decay) if pruner is not None else set()
    groups = param_groups_weight_decay(student, recipe.weight_decay, no_weight_decay_list=undecayed)
    # One kernel for all parameters, on GPU and CPU alike.
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
