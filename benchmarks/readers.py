"""How the tool reads each kind of file, for the study of hostile files (`fuzz.py`).

Every function is given a folder that holds a changed file, `file`, and reads it as commands do. It returns where all is
well, and raises a `DcvitError` where the file is refused.
"""

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path

import click
import torch

from dcvit.bench.baseline import Baseline
from dcvit.cli.fields import JsonObject
from dcvit.cli.main import cli
from dcvit.data import batches, draw_few_shot, open_source
from dcvit.data.masks import count_classes, mask_batches, with_masks
from dcvit.data.reading import CorruptImages
from dcvit.errors import DcvitError
from dcvit.files import json_text, sha256_of
from dcvit.folder.model_folder import MANIFEST, ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.frontiers.result import FRONTIER, read_frontier
from dcvit.model import build, create, load_checkpoint
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.reporting import report
from dcvit.run_record import RUN, check_same
from dcvit.sealed import read_sealed, write_sealed
from dcvit.stages import StageResult, StageStore, digest_of
from dcvit.training.finetune import CHECKPOINT, Checkpoints, Finetuning
from dcvit.training.images import TrainingImages
from dcvit.training.log import LOG, TrainingLog
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.task import Classification
from dcvit.verification import verify

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), interpolation="bicubic", crop_pct=0.9, crop_mode="center", mean=(0.5,) * 3, std=(0.5,) * 3
)
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
MODEL = "vit_tiny_patch16_224"
ONNX = "model.b2.fp32.onnx"
RECIPE = TrainingRecipe(epochs=1, batch_size=2).resolved(PREPROCESSING)

OPTIONS = {"plan": 300, "compress": 80, "frontier": 60, "evaluate": 250, "bench": 50, "export": 80, "verify": 80,
           "inspect": 60, "report": 40}  # fmt: skip
"""Commands whose options are given hostile values, and how many cases of 30,000 each has."""

TEXTS = ("nan", "inf", "-inf", "1e999", "-1", "0", "1e308", "1e-400", str(2**70), str(-(2**70)), "", "x", "[red]",
         "1,2", "٣", "0x10", "1_0", "true", "None", "\udcff", "9" * 5000, "horizontal@1",
         "horizontal@-1,vertical@" + "9" * 30, "{}", "[]", '{"a": NaN}', "5ms", "nanms", "/dev/null/x", "/proc/none/x",
         "a\nb")  # fmt: skip


class FaultError(Exception):
    """A command ended with what it calls an internal error."""


def plan(place: Path) -> None:
    build(CompressionPlan.read(place / "file"))


def model_kwargs(place: Path) -> None:
    try:
        arguments = JsonObject().convert((place / "file").read_text(encoding="utf-8", errors="replace"), None, None)
    except click.ClickException as error:
        raise DcvitError(error.format_message()) from error
    build(CompressionPlan(model=MODEL, model_kwargs=arguments))


def folder(whole: Path, name: str, place: Path) -> None:
    path = _replaced(whole, name, place)
    opened = ModelFolder(path)
    opened.load()
    onnx_records(opened)
    engine_records(opened)
    report(path)


def verified(whole: Path, name: str, place: Path) -> None:
    """An ONNX file or an engine, read by all that here reads such."""
    path = _replaced(whole, name, place)
    json_text(verify(path).to_json())


def _replaced(whole: Path, name: str, place: Path) -> Path:
    path = place / "model"
    shutil.copytree(whole, path)
    shutil.copy(place / "file", path / name)
    if name != MANIFEST:  # whoever changes a file can change its sum
        manifest = json.loads((path / MANIFEST).read_text())
        before, now = manifest["files"][name]["sha256"], sha256_of(path / name)
        (path / MANIFEST).write_text((path / MANIFEST).read_text().replace(before, now))
    return path


def frontier(whole: Path, place: Path) -> None:
    shutil.copytree(whole, place / "r0.1")
    shutil.copy(place / "file", place / FRONTIER)
    read_frontier(place)
    report(place)


def baseline(place: Path) -> None:
    Baseline.read(place / "file")


def checkpoint(extension: str, place: Path) -> None:
    shutil.copy(place / "file", place / f"a{extension}")
    load_checkpoint(create(MODEL, TINY), place / f"a{extension}")


def stage(place: Path) -> None:
    """A stage that is damaged is computed again."""
    key = {"a": 1}
    shutil.copy(place / "file", place / f"stage-{digest_of(key)[:20]}.safetensors")
    StageStore(place).run("stage", key, lambda: StageResult({"a": torch.ones(3)}, {"loss": 1.0}))


def train(place: Path, good: Path | None = None) -> None:
    """A training of three images: from the start, or from the state at a place."""
    (place / "run").mkdir(exist_ok=True)
    data = TrainingImages(open_source((good or place) / "data", "train"), PREPROCESSING, "none", labelled=True)
    log = TrainingLog(place / "run" / LOG)
    Finetuning(create(MODEL, TINY), Classification(0.0), data, RECIPE, num_classes=3, seed=0, log=log,
               checkpoints=Checkpoints(place / "run", "one", {"run": 1}, minutes=0)).run("training")  # fmt: skip


def state_file(place: Path) -> Path:
    return place / "run" / f"one.{CHECKPOINT}"


def log_file(place: Path) -> Path:
    return place / "run" / LOG


def state_record(place: Path) -> bytes:
    """The JSON of a checkpoint."""
    found = read_sealed(state_file(place))
    assert found is not None
    return json.dumps(found[1]).encode()


def training(good: Path, place: Path) -> None:
    shutil.copytree(good / "run", place / "run")
    shutil.copy(place / "file", state_file(place))
    train(place, good)


def sealed_training(good: Path, place: Path) -> None:
    """A record that was changed before it was sealed."""
    shutil.copytree(good / "run", place / "run")
    found = read_sealed(state_file(good))
    assert found is not None
    write_sealed(state_file(place), found[0], json.loads((place / "file").read_bytes()))
    train(place, good)


def training_log(good: Path, place: Path) -> None:
    shutil.copytree(good / "run", place / "run")
    shutil.copy(place / "file", log_file(place))
    train(place, good)


def run_record(place: Path) -> None:
    shutil.copy(place / "file", place / RUN)
    check_same(place, {"MODEL": MODEL, "--data": "digits", "--seed": 0, "--macs-reduction": 0.3, "--merge": None})


def image(good: Path, name: str, place: Path) -> None:
    for label in ("0", "1"):
        (place / "data" / label).mkdir(parents=True)
    os.link(good / "1" / "a.png", place / "data" / "1" / "a.png")
    os.rename(place / "file", place / "data" / "0" / f"b.{name}")
    _read_source(place / "data")


def tar(place: Path) -> None:
    shutil.copy(place / "file", place / "a.tar")
    _read_source(place / "a.tar")


def mask(good: Path, place: Path) -> None:
    shutil.copytree(good, place / "pairs")
    shutil.copy(place / "file", place / "pairs" / "masks" / "0.png")
    source = with_masks(open_source(place / "pairs", "test"))
    count_classes(source)
    for _ in mask_batches(source, PREPROCESSING, 3, 2, CorruptImages()):
        pass


def tree(good: Path, place: Path) -> None:
    """A data folder of paths and what stands there."""
    root = place / "data"
    root.mkdir()
    for path, sort, to in json.loads((place / "file").read_bytes()):
        with contextlib.suppress(OSError):  # two entries may be in each other's way
            _put(good, root / path, sort, to)
    _read_source(root)


def _put(good: Path, path: Path, sort: str, to: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.exists():  # to write to a pipe would take for ever
        return
    if sort == "folder":
        path.mkdir()
    elif sort == "link":
        path.symlink_to(to)
    elif sort == "pipe":
        os.mkfifo(path)
    elif sort == "image":
        shutil.copy(good / "0" / "a.png", path)
    else:
        path.write_bytes(b"" if sort == "empty" else b"noise" * 9)


def _read_source(path: Path) -> None:
    source, corrupt = open_source(path, "test"), CorruptImages()
    draw_few_shot(source, 2, 0, at_most=True)
    for _ in batches(source, PREPROCESSING, 4, corrupt, threads=1):
        pass
    json_text({"classes": source.classes, "corrupt": corrupt.names}).encode()  # what goes into records and JSON


def options_drawn(command: bytes, choice: random.Random) -> bytes:
    """One or two options of a command with hostile values, as JSON."""
    name = command.decode()
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    given: list[str] = []
    for option in choice.sample([each for each in found.params if isinstance(each, click.Option)], 2):
        if option.name not in ("debug", "json", "help", "overwrite", "bench"):  # the last takes its time, and is right
            given.append(option.opts[0])
            given += [] if option.is_flag else [choice.choice(TEXTS)]
        if choice.random() < 0.6:
            break
    return json.dumps(given).encode()


def options(good: Path, name: str, place: Path) -> None:
    """A command with the options that the file holds."""
    given = json.loads((place / "file").read_bytes())
    subject = [MODEL, "--model-kwargs", json.dumps(TINY | {"depth": 4})]
    target = ["--macs-reduction", "0.2"]
    images = ["--random-init", "--samples", "2", "--steps", "1", "--data", str(good / "data")]
    before = {
        "plan": ["plan", *subject, *target],
        "compress": ["compress", *subject, *target, *images, "-o", "out"],
        "frontier": ["frontier", *subject, *target, *images, "-o", "out"],
        "evaluate": ["evaluate", "model", "--data", str(good / "data"), "--batch", "2"],
        "bench": ["bench", "model", "--batch", "2", "--runs", "5", "--no-memory"],
        "export": ["export", "model", "--batch", "2"],
        "verify": ["verify", "model"],
        "inspect": ["inspect", "model"],
        "report": ["report", "model"],
    }[name]
    if name not in ("plan", "compress", "frontier"):
        shutil.copytree(good / "exported", "model")
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli([*before, *given])
        except SystemExit as error:
            status = error.code
        else:
            status = 0
    said.flush()
    text = said.buffer.getvalue().decode(errors="replace")  # type: ignore[attr-defined]
    if "internal error" in text or "Traceback" in text or status not in (0, 1, 2, None):
        raise FaultError(f"{status}: {text.strip()[-300:]}")
    if status:
        raise DcvitError(text)
