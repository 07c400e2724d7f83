"""Hostile files, seeded, against the functions that read them: what comes of each kind.

Every case is a file that was good, changed by a seed: bytes flipped, cut off, doubled; in JSON a value or a key
exchanged for one that nobody expects. It is read in a forked worker with bounded memory and time. A good end is a
result or an `InputError`; anything else is a defect: another exception, code that ran, a worker that was killed. 1,000
cases take some five minutes on two cores; the JSON is written as it goes.

    python benchmarks/fuzz.py --cases 30000 --seed 0
"""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from safetensors.torch import save_file

from dcvit.bench.baseline import Baseline
from dcvit.cli.fields import JsonObject
from dcvit.data import batches, open_source
from dcvit.data.reading import CorruptImages
from dcvit.errors import DcvitError
from dcvit.files import sha256_of, whole_file
from dcvit.folder.manifest import Manifest
from dcvit.folder.model_folder import MANIFEST, PLAN, WEIGHTS, ModelFolder
from dcvit.folder.records import engine_records, onnx_records
from dcvit.frontiers.result import FRONTIER, read_frontier
from dcvit.model import build, create, load_checkpoint
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing
from dcvit.reporting import report
from dcvit.sealed import DamagedError, read_sealed, write_sealed
from dcvit.versions import package_versions

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32),
    interpolation="bicubic",
    crop_pct=0.9,
    crop_mode="center",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**70, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\0",
    "{{7*7}}", "\ud800", [], [[]], {}, {"": None}, [1, 2, 3], "9" * 5000,
)  # fmt: skip
MEMORY, SECONDS = 6 << 30, 30


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        good: The file's name and good bytes.
        read: Reads a folder that holds the changed file.
        is_json: Whether its values are exchanged too.
    """

    name: str
    good: bytes
    read: Callable[[Path], Any]
    is_json: bool = False


class Payload:
    """What a pickle runs: it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-ran",)


def changed(good: bytes, choice: random.Random, *, is_json: bool) -> bytes:
    """A good file with one to four changes."""
    if is_json and choice.random() < 0.8:
        document = json.loads(good)
        for _ in range(choice.randint(1, 3)):
            document = _exchanged(document, choice)
        return json.dumps(document).encode("utf-8", "surrogatepass")
    found = bytearray(good)
    for _ in range(choice.randint(1, 4)):
        at, how = choice.randrange(len(found) + 1), choice.randrange(5)
        if how == 0 and at < len(found):
            found[at] ^= 1 << choice.randrange(8)
        elif how == 1:
            del found[at:]
        elif how == 2:
            found[at:at] = choice.randbytes(choice.randint(1, 64))
        elif how == 3:
            found[at : at + choice.randint(1, 64)] = b""
        else:
            found[at:at] = found[at : at + 256]
    return bytes(found)


def _exchanged(document: Any, choice: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return choice.choice(VALUES)
    inside, key = choice.choice(places)
    how = choice.randrange(4)
    if how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, dict):
        inside[choice.choice(["x", "../x", "", "checkpoint_path", "__class__"])] = inside.pop(key)
    else:
        inside[key] = choice.choice(VALUES)
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(pairs):
        yield document, key
        yield from _places(value)


def kinds(place: Path) -> list[Kind]:
    """Every kind, with a good file of it."""
    torch.manual_seed(0)
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=TINY, blocks=({"index": 1, "mlp_hidden": 8},))
    manifest = Manifest(model=plan.model, method="search", plan_digest="", seed=0, preprocessing=PREPROCESSING)
    manifest.settings = {"target": {"macs_reduction": 0.1}, "weights": "random"}
    manifest.metrics = {"kl": 0.1, "seconds": 1.0, "stages": {"refit": 0.5}}
    manifest.exports = {
        "model.b2.fp32.onnx": {"kind": "onnx", "batch": 2, "precision": "fp32", "opset": 18, "weights_sha256": ""}
    }
    folder = ModelFolder.create(place / "model", build(plan), plan, manifest)
    found = {"results": [{"top1": 50.0, "top5": 90.0, "images": 9, "corrupt": 0, "data": "digits", "runtime": "torch",
                          "precision": "fp32", "device": "cpu", "batch": 64, "original": True}]}  # fmt: skip
    folder.add("evaluations.json", lambda path: path.write_text(json.dumps(found)) and None)
    checks = {
        "checks": [{"name": f"{PLAN}: equal", "passed": True, "max_abs_error": 0.0, "tolerance": 1e-3, "detail": ""}]
    }
    files = {PLAN: folder.manifest.files[PLAN].sha256}
    folder.add("verify.json", lambda path: path.write_text(json.dumps(checks | {"files": files})) and None)
    log = {"step": 1, "epoch": 0.1, "loss": 1.0, "losses": {"kl": 1.0}, "lr": 1e-3, "seconds": 1.0}
    log |= {"images_per_second": 9.0}
    folder.add("train.jsonl", lambda path: path.write_text(json.dumps(log) + "\n") and None)
    state = create(plan.model, TINY).state_dict()
    save_file(state, place / "a.safetensors")
    torch.save(state, place / "a.pth")
    torch.save({**state, "evil": Payload()}, place / "evil.pth")
    write_sealed(place / "a.sealed", {"a": torch.ones(3)}, {"step": 1})
    for number in range(3):
        (place / "images" / str(number)).mkdir(parents=True)
        Image.effect_noise((40, 40), 60).convert("RGB").save(place / "images" / str(number) / "a.png")
    images = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "DDS", "TGA", "ICO"):
        Image.effect_noise((24, 24), 60).convert("RGB").save(place / f"a.{kind.lower()}", kind)
        images[kind.lower()] = (place / f"a.{kind.lower()}").read_bytes()
    with tarfile.open(place / "a.tar", "w") as tar:
        tar.add(place / "images", "images")
    point = {"folder": "r0.1", "target": 0.1, "macs_reduction": 0.1, "macs": 9, "params": 9, "blocks_compressed": 1}
    point |= {"kl": 0.1, "seconds": 1.0, "plan_digest": "", "pareto": True}
    frontier = {"folder": "f", "model": plan.model, "original": {"macs": 10, "params": 10}, "points": [point]}
    frontier |= {
        "macs_convention": "full",
        "data": {"images": 1, "source": "x"},
        "scored_on": "x",
        "evaluated_on": None,
    }
    frontier |= {"seed": 0, "settings": {}, "versions": {}, "machine": None, "seconds": 1.0}
    whole = place / "model"
    bytes_of = {name: (whole / name).read_bytes() for name in (PLAN, MANIFEST, WEIGHTS)}
    return [
        Kind("plan", bytes_of[PLAN], _read_plan, is_json=True),
        Kind("manifest", bytes_of[MANIFEST], partial(_read_folder, whole, MANIFEST), is_json=True),
        Kind("weights", bytes_of[WEIGHTS], partial(_read_folder, whole, WEIGHTS)),
        *(
            Kind(name, (whole / name).read_bytes(), partial(_read_folder, whole, name), is_json=True)
            for name in ("evaluations.json", "verify.json", "train.jsonl")
        ),
        Kind("frontier", json.dumps(frontier).encode(), partial(_read_frontier, whole), is_json=True),
        Kind(
            "baseline",
            (RESULTS.parents[1] / "baselines" / "deit_tiny-cut.json").read_bytes(),
            _read_baseline,
            is_json=True,
        ),
        Kind("safetensors", (place / "a.safetensors").read_bytes(), partial(_read_checkpoint, "a.safetensors")),
        Kind("pth", (place / "a.pth").read_bytes(), partial(_read_checkpoint, "a.pth")),
        Kind("evil pth", (place / "evil.pth").read_bytes(), partial(_read_checkpoint, "a.pth")),
        Kind("pickle", pickle.dumps(Payload()), partial(_read_checkpoint, "a.pth")),
        Kind("sealed", (place / "a.sealed").read_bytes(), _read_sealed),
        Kind("options", json.dumps(TINY).encode(), _read_options, is_json=True),
        *(Kind(f"image {name}", data, partial(_read_image, place / "images", name)) for name, data in images.items()),
        Kind("tar", (place / "a.tar").read_bytes(), _read_tar),
    ]


def _read_plan(place: Path) -> None:
    build(CompressionPlan.read(place / "file"))


def _read_options(place: Path) -> None:
    try:
        arguments = JsonObject().convert((place / "file").read_text(encoding="utf-8", errors="replace"), None, None)
    except click.ClickException as error:
        raise DcvitError(error.format_message()) from error
    build(CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=arguments))


def _read_folder(whole: Path, name: str, place: Path) -> None:
    folder = place / "model"
    shutil.copytree(whole, folder)
    shutil.copy(place / "file", folder / name)
    if name != MANIFEST:  # whoever changes a file can change its sum
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"][name]["sha256"] = sha256_of(folder / name)
        (folder / MANIFEST).write_text(json.dumps(manifest))
    opened = ModelFolder(folder)
    opened.load()
    onnx_records(opened)
    engine_records(opened)
    report(folder)


def _read_frontier(whole: Path, place: Path) -> None:
    shutil.copytree(whole, place / "r0.1")
    shutil.copy(place / "file", place / FRONTIER)
    read_frontier(place)
    report(place)


def _read_baseline(place: Path) -> None:
    Baseline.read(place / "file")


def _read_checkpoint(name: str, place: Path) -> None:
    shutil.copy(place / "file", place / name)
    load_checkpoint(create("vit_tiny_patch16_224", TINY), place / name)


def _read_sealed(place: Path) -> None:
    try:
        read_sealed(place / "file")
    except DamagedError as error:
        raise DcvitError(str(error)) from error


def _read_image(good: Path, name: str, place: Path) -> None:
    shutil.copytree(good, place / "images")
    shutil.copy(place / "file", place / "images" / "0" / f"b.{name}")
    _read_source(place / "images")


def _read_tar(place: Path) -> None:
    shutil.copy(place / "file", place / "a.tar")
    _read_source(place / "a.tar")


def _read_source(path: Path) -> None:
    for _ in batches(open_source(path, "test"), PREPROCESSING, 4, CorruptImages(), threads=1):
        pass


def outcome(kind: Kind, data: bytes) -> tuple[str, str]:
    """What comes of a file, and where it went wrong: fine, refused, internal error, code run, killed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        place = Path(name)
        (place / "file").write_bytes(data)
        (place / "work").mkdir()
        told = place / "told"
        worker = os.fork()
        if not worker:
            _work(kind, place, told)
        _, status = os.waitpid(worker, 0)
        if (place / "work" / "code-ran").exists():
            return "code run", ""
        if os.WIFSIGNALED(status):
            return "killed", signal.Signals(os.WTERMSIG(status)).name
        said, _, where = told.read_text(errors="replace").partition("\n")
        return said, where


def _work(kind: Kind, place: Path, told: Path) -> None:
    said = "fine"
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        os.chdir(place / "work")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        kind.read(place)
    except DcvitError:
        said = "refused"
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dcvit" in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        said = f"internal error\n{Path(last.filename).name}:{last.name}: {type(error).__name__}: {str(error)[:120]}"
    told.write_text(said, errors="replace")
    os._exit(0)


def run(cases: int, seed: int, note: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Cases of every kind in turn.

    Args:
        cases: How many.
        seed: Of all changes.
        note: Called every now and then with what was found so far.

    Returns:
        Counts by kind and outcome, and of each place of a defect one example.
    """
    torch.set_num_threads(1)  # a forked worker has no other threads
    counts: dict[str, Counter[str]] = {}
    defects: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        every = kinds(Path(name))
        for number in range(cases):
            kind = every[number % len(every)]
            data = changed(kind.good, random.Random(f"{seed}/{number}"), is_json=kind.is_json)
            said, where = outcome(kind, data)
            counts.setdefault(kind.name, Counter())[said] += 1
            if said not in ("fine", "refused"):
                one = defects.setdefault(f"{kind.name}: {said}: {where}", {"case": number, "times": 0})
                one["times"] += 1
            if number % 100 == 99 or number == cases - 1:
                kept = {"cases": number + 1, "seed": seed, "outcomes": sum(counts.values(), Counter())}
                note(kept | {"kinds": counts, "defects": defects, "versions": package_versions()})
    return {"kinds": counts, "defects": defects}


@click.command()
@click.option("--cases", type=click.IntRange(min=1), default=30_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(cases: int, seed: int, output: Path) -> None:
    """Counts what comes of hostile files."""

    def note(found: dict[str, Any]) -> None:
        with whole_file(output) as aside:
            aside.write_text(json.dumps(found, indent=1) + "\n")
        click.echo(f"{found['cases']}: {dict(found['outcomes'])}", err=True)

    sys.exit(1 if run(cases, seed, note)["defects"] else 0)


if __name__ == "__main__":
    main()
