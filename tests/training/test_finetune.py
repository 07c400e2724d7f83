import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcvit.data import open_source
from dcvit.errors import CheckFailedError, InputError
from dcvit.model import build, create
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.stages import StageStore, digest_of
from dcvit.training.checkpoint import TrainingState, read_state, write_state
from dcvit.training.ema import MovingAverage
from dcvit.training.finetune import SAME_IMAGES, Checkpoints, Finetuning
from dcvit.training.images import TrainingImages
from dcvit.training.log import TrainingLog
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.task import Classification
from dcvit.training.teacher import Teacher
from dcvit.types import TimmModule

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35), interpolation="bicubic", crop_pct=1.0
)
RECIPE = TrainingRecipe(epochs=1.5, batch_size=16, lr=1e-3).resolved(PREPROCESSING)


@pytest.fixture(scope="module")
def data() -> TrainingImages:
    return TrainingImages(open_source("digits", "train"), PREPROCESSING, "crop", labelled=True, samples=128)


@pytest.fixture(scope="module")
def teacher(tiny_plan: CompressionPlan) -> TimmModule:
    torch.manual_seed(1)
    return build(tiny_plan).requires_grad_(False)


@pytest.fixture
def student(tiny_plan: CompressionPlan) -> TimmModule:
    """With dropout, whose masks a resumed run has to draw again."""
    torch.manual_seed(0)
    return create(tiny_plan.model, {**tiny_plan.model_kwargs, "drop_path_rate": 0.2, "proj_drop_rate": 0.1})


class Shrinking:
    """Shrinks a layer a little more with every step: a pruner with weights, gradients and a state of its own."""

    def __init__(self, model: TimmModule) -> None:
        self.layer: nn.Linear = model.blocks[1].mlp.fc1
        self.state = {"taken": 0, "seen": torch.zeros(3)}

    no_weight_decay = frozenset({"blocks.1.mlp.fc1.weight"})

    def before_step(self) -> None:
        assert self.layer.weight.grad is not None
        self.layer.weight.grad[:8] = 0

    def after_step(self, step: int, steps: int, lr: float) -> None:
        with torch.no_grad():
            self.layer.weight[:8] *= 1 - lr * self.state["taken"]
        self.state["taken"] += 1
        self.state["seen"] += step / steps

    def widths(self) -> dict[str, list[int]]:
        return {"mlp": [128 - self.state["taken"]]}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def training(student: TimmModule, data: TrainingImages, recipe: TrainingRecipe, **more: Any) -> Finetuning:
    task = Classification(recipe.distill, data.labelled, recipe.label_smoothing)
    return Finetuning(student, task, data, recipe, num_classes=10, seed=0, **more)


class Stopped(TrainingImages):
    """Is interrupted when it should give its twelfth batch."""

    def __init__(self, data: TrainingImages) -> None:
        self.__dict__.update(data.__dict__)

    def batches(self, draws: Iterable[Any]) -> Iterator[Any]:
        for number, batch in enumerate(super().batches(draws)):
            if number == 11:
                raise KeyboardInterrupt
            yield batch


def test_resumed_in_the_middle_of_an_epoch_it_is_the_same_to_the_bit(
    tmp_path: Path, student: TimmModule, teacher: TimmModule, data: TrainingImages
) -> None:
    recipe = RECIPE.model_copy(update={"ema": 0.9, "mixup": 0.2})

    def run(name: str, data: TrainingImages) -> tuple[dict[str, Tensor], Shrinking, TrainingLog]:
        model = copy.deepcopy(student)
        pruner, log = Shrinking(model), TrainingLog(tmp_path / name / "train.jsonl")
        checkpoints = Checkpoints(tmp_path / name, "one", {"run": name}, minutes=0)
        (tmp_path / name).mkdir(exist_ok=True)
        training(
            model, data, recipe, teacher=Teacher(teacher), pruner=pruner, log=log, checkpoints=checkpoints
        ).run("test")  # fmt: skip
        return model.state_dict(), pruner, log

    whole, pruner, log = run("whole", data)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stopped(data))
    resumed, resumed_pruner, resumed_log = run("stopped", data)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert resumed_pruner.state["taken"] == pruner.state["taken"] == 12
    assert torch.equal(resumed_pruner.state["seen"], pruner.state["seen"])
    figures = [[(each["step"], each["loss"], each["widths"]) for each in one.records] for one in (log, resumed_log)]
    assert figures[0] == figures[1]
    assert (tmp_path / "stopped" / "train.jsonl").read_text() == resumed_log.text


def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, student: TimmModule, teacher: TimmModule, data: TrainingImages
) -> None:
    def checkpoints(key: str) -> Checkpoints:
        return Checkpoints(tmp_path, "one", {"run": key})

    def run(key: str, epochs: float) -> None:
        recipe = RECIPE.model_copy(update={"epochs": epochs})
        training(
            student, data, recipe, teacher=Teacher(teacher), checkpoints=checkpoints(key)
        ).run("test")  # fmt: skip

    run("a", 0.25)
    before = copy.deepcopy(student.state_dict())
    run("a", 0.25)  # it was at its end
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    for key, epochs in (("b", 0.25), ("a", 0.5)):
        with pytest.raises(InputError, match="of a run with another model, data or settings"):
            run(key, epochs)
    checkpoints("a").path.write_bytes(b"none")
    with pytest.raises(InputError, match="is damaged .*start anew with --overwrite"):
        run("a", 0.25)


def test_a_batch_in_parts_is_the_batch(teacher: TimmModule, data: TrainingImages, tiny_plan: CompressionPlan) -> None:
    torch.manual_seed(0)
    start = create(tiny_plan.model, tiny_plan.model_kwargs)
    trained = []
    for parts in (1, 4):
        model = copy.deepcopy(start)
        recipe = RECIPE.model_copy(update={"accumulate": parts, "mixup": 0.2, "cutmix": 1.0, "epochs": 0.5})
        losses = training(model, data, recipe, teacher=Teacher(teacher))
        losses.run("test")
        trained.append((model.state_dict(), losses.log.records[-1]["loss"]))
    (whole, loss), (parted, loss_of_parts) = trained
    assert loss_of_parts == pytest.approx(loss, rel=1e-2)
    for name, tensor in whole.items():
        # In bf16 where the machine is fast in it; Adam turns the rounding of a tiny gradient into up to a whole step
        # of lr = 1e-3, of which there are four.
        torch.testing.assert_close(parted[name], tensor, rtol=0, atol=4e-3)
    assert sum(float((whole[name] - start.state_dict()[name]).abs().sum()) for name in whole) > 10 * sum(
        float((whole[name] - parted[name]).abs().sum()) for name in whole
    )


@pytest.mark.parametrize(("labelled", "distill"), [(True, 0.0), (False, 0.5)])
def test_training_helps(teacher: TimmModule, tiny_plan: CompressionPlan, labelled: bool, distill: float) -> None:
    data = TrainingImages(open_source("digits", "train"), PREPROCESSING, "none", labelled=labelled, samples=32)
    torch.manual_seed(0)
    model = create(tiny_plan.model, tiny_plan.model_kwargs)
    run = training(
        model, data, RECIPE.model_copy(update={"epochs": 64, "lr": 1e-3, "distill": distill}),
        teacher=Teacher(teacher),
    )  # fmt: skip
    result = run.run("test")
    first, last = (run.log.records[index]["losses"] for index in (0, -1))
    assert set(first) == ({"cross_entropy"} if labelled else {"distillation"})
    assert all(last[name] < 0.9 * first[name] for name in first), (first, last)
    assert result.steps == 128
    assert not model.training


def test_kept_outputs_of_the_teacher_are_its_outputs(
    tmp_path: Path, student: TimmModule, teacher: TimmModule, data: TrainingImages
) -> None:
    recipe = RECIPE.model_copy(update={"mixup": 0.2, "accumulate": 2, "epochs": 1})
    asked = []

    class Counted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return teacher(images)

    store = StageStore(tmp_path)
    first, second = (
        training(copy.deepcopy(student), data, recipe, teacher=Teacher(Counted())) for _ in range(2)
    )  # fmt: skip
    first.run("live")
    second.keep_teacher(store, {"teacher": "t"})
    asked.clear()
    second.run("kept")
    assert not asked
    for live, kept in zip(first.log.records, second.log.records, strict=True):
        # Half precision, 2⁻¹¹; under bf16 autocast batches of another size differ by 2⁻⁸.
        assert kept["losses"]["distillation"] == pytest.approx(live["losses"]["distillation"], rel=0.02)
    again = training(copy.deepcopy(student), data, recipe, teacher=Teacher(Counted()))
    asked.clear()
    again.keep_teacher(store, {"teacher": "t"})
    assert sum(asked) == 1 or len(asked) <= 1  # to know the size of an output


def test_the_average_follows_the_weights(teacher: TimmModule, data: TrainingImages, tiny_plan: CompressionPlan) -> None:
    torch.manual_seed(0)
    start = create(tiny_plan.model, tiny_plan.model_kwargs)
    average = MovingAverage(start, 0.5)
    before = start.head.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            start.head.weight += 1
        average.update(start, step)
    # Decays 0.1, 2/11 and 0.25, since (1 + step) / (10 + step) is less than 0.5: 0.9, then …
    expected = ((0.9 * 2 / 11) + 2 * 9 / 11) * 0.25 + 3 * 0.75
    torch.testing.assert_close(average.weights["head.weight"], before + expected)
    ends = []
    for ema in (0.0, 0.9):
        model = copy.deepcopy(start)
        training(model, data, RECIPE.model_copy(update={"ema": ema}), teacher=Teacher(teacher)).run("test")
        ends.append(model.head.weight.detach())
    assert not torch.equal(*ends)


def test_a_loss_that_is_no_number_ends_the_training(
    student: TimmModule, teacher: TimmModule, data: TrainingImages
) -> None:
    with pytest.raises(CheckFailedError, match="no longer a number .* smaller --lr"):
        training(
            student, data, RECIPE.model_copy(update={"lr": 1e30, "clip_norm": 0.0}), teacher=Teacher(teacher)
        ).run("test")  # fmt: skip


def test_a_batch_that_cannot_be_shared_out_is_refused(student: TimmModule, data: TrainingImages) -> None:
    with pytest.raises(InputError, match="give a multiple of 12"):
        training(student, data, RECIPE.model_copy(update={"accumulate": 6}))


def test_what_is_said_to_change_no_image_is_there() -> None:
    """A field that is renamed must not stay in the list."""
    assert set(TrainingRecipe.model_fields) >= SAME_IMAGES


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {}),
        ("model", None),
        ("optimizer", 3),
        ("average", {"no": torch.ones(1)}),
        ("step", 10**6),
        ("step", -1),
    ],
)
def test_a_checkpoint_that_does_not_fit_the_training_is_refused(
    tmp_path: Path, student: TimmModule, teacher: TimmModule, data: TrainingImages, part: str, value: Any
) -> None:
    recipe = RECIPE.model_copy(update={"epochs": 0.25, "ema": 0.9})
    checkpoints = Checkpoints(tmp_path, "one", {"run": 1}, minutes=0)

    def run() -> None:
        training(copy.deepcopy(student), data, recipe, teacher=Teacher(teacher), checkpoints=checkpoints).run("test")

    run()
    key = digest_of(checkpoints.key | {"steps": recipe.steps(128), "seed": 0})
    state = read_state(checkpoints.path, key)
    assert state is not None
    run()  # it is good
    step = value if part == "step" else state.step
    write_state(checkpoints.path, key, TrainingState(step, state.seconds, {**state.parts, part: value}))
    with pytest.raises(InputError, match=r"one\.training\.safetensors is no state of this training \(.*--overwrite$"):
        run()
