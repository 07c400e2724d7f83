"""Every model that timm registers in the files of the families, shrunk, through the tool: how many go the whole way?

    nice -n 15 python benchmarks/signatures.py -o benchmarks/results/signatures.json

Each is made of few narrow blocks on a small grid, with random weights, and everything else as timm's name says. Then:
nothing cut gives equal outputs, and every block the tokens that the family counts; `plan`; `compress --recover none`;
and the solver without a training step on eight random images. Or the tool refuses it: one line, exit status 2. The file
is written after every model, and a second run goes on where the first one stopped. About twenty minutes on two cores.
"""

import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from dcvit.cli.main import cli
from dcvit.errors import InputError
from dcvit.families import family_of
from dcvit.files import whole_file
from dcvit.model import build, create
from dcvit.plan import CompressionPlan
from dcvit.types import TimmModule
from dcvit.versions import package_versions

MODULES = (
    "beit", "cait", "swin_transformer", "swin_transformer_v2", "vision_transformer_hybrid", "eva",
    "vision_transformer",
)  # fmt: skip
STEPS = ("identity", "plan", "cut", "solver")
IMAGES = 8


def names() -> list[str]:
    """All models of the files, in order."""
    return [name for module in MODULES for name in timm.list_models(module=module)]


def shrunk(name: str) -> dict[str, Any]:
    """Constructor arguments that make a model small, and leave what it is made of."""
    with torch.device("meta"):
        whole: TimmModule = timm.create_model(name)
    if hasattr(whole, "layers"):  # stages of blocks in windows
        return {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2, 4, 2],
                "num_heads": [1, 2, 4, 8], "num_classes": 10}  # fmt: skip
    patches = whole.patch_embed
    kwargs: dict[str, Any] = {"embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    if isinstance(getattr(patches, "proj", None), nn.Identity):  # a backbone's channels are the tokens'
        kwargs |= {"embed_dim": whole.embed_dim, "num_heads": whole.embed_dim // 16, "mlp_ratio": 0.125}
    if "sapiens2" in name:  # one for each block
        kwargs["num_kv_heads"] = [1] * kwargs["depth"]
    step = patches.feat_ratio(as_scalar=False) if hasattr(patches, "backbone") else patches.patch_size
    kwargs["img_size"] = [4 * side for side in step]
    return kwargs


@torch.no_grad()
def identity(name: str, kwargs: dict[str, Any]) -> str:
    """`ok`, or what is wrong: an output that differs, or other tokens than the family counts."""
    torch.manual_seed(0)
    whole = create(name, kwargs)
    for parameter in whole.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    plan = CompressionPlan(model=name, model_kwargs=kwargs)
    family = family_of(whole)
    images = torch.randn(2, *family.architecture(whole).input_size)
    same = build(plan)
    same.load_state_dict(family.cut(whole, plan).state_dict())
    seen: list[int] = []
    for block in family.blocks(same):
        block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0].shape[1:-1].numel()))
    if not torch.equal(same(images), whole(images)):
        return "FAILED: other outputs"
    counted = family.tokens(whole, plan)
    return "ok" if seen == counted else f"FAILED: {seen} tokens, counted {counted}"


def run(*arguments: str) -> str:
    """`ok`, `refused: …` where the command ends with one line and status 2, else what came out."""
    result = CliRunner().invoke(cli, arguments)
    lines = result.output.strip().splitlines()
    if result.exit_code == 0:
        return "ok"
    if result.exit_code in (130, 143):  # it is the study that was stopped
        raise KeyboardInterrupt
    errors = [line for line in lines if line.startswith("Error: ")]
    if result.exit_code == 2 and len(errors) == 1 and errors[0] == lines[-1]:
        return "refused: " + errors[0].removeprefix("Error: ").split("; supported: ")[0]
    return f"FAILED: {result.exit_code} {lines[-1] if lines else result.exception!r}"


def try_model(name: str, images: Path, place: Path) -> dict[str, str]:
    """What came of each step, by its name; what is refused when it is opened ends there."""
    kwargs = shrunk(name)
    model = [name, "--model-kwargs", json.dumps(kwargs)]
    share = "0.05" if "depths" in kwargs else "0.3"  # of a model of stages only pairs of blocks go
    reach = re.search(r"takes ([\d.]+) to ([\d.]+)", run("plan", *model, "--macs-reduction", "0.99"))
    if reach is not None and not float(reach[1]) < float(share) < float(reach[2]):  # few MACs are the blocks'
        share = f"{sum(map(float, reach.groups())) / 2:.5f}"
    target = ["--macs-reduction", share, "--width-multiple", "4"]
    try:
        found = {"identity": identity(name, kwargs)}
    except InputError as error:
        return {"identity": "refused: " + str(error).split("; supported: ")[0], "plan": run("plan", *model, *target)}
    cut = ["compress", *model, "--random-init", *target]
    found["plan"] = run("plan", *model, *target)
    found["cut"] = run(*cut, "--recover", "none", "-o", str(place / "cut"))
    few = ["--data", str(images), "--samples", str(IMAGES), "--steps", "0"]
    found["solver"] = run(*cut, *few, "-o", str(place / "solver"))
    return found


def random_images(root: Path) -> Path:
    """Eight images of noise in two classes."""
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        folder = root / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def outcome(steps: dict[str, str]) -> str:
    """`failed` if any step did, `refused` if all that did not go were refused, else `whole way`."""
    if any(each.startswith("FAILED") for each in steps.values()):
        return "failed"
    return "refused" if any(each.startswith("refused") for each in steps.values()) else "whole way"


def summary(models: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Models by outcome, and by the reason of what was refused."""
    reasons = Counter(
        next(each for each in steps.values() if each.startswith("refused")).removeprefix("refused: ")
        for steps in models.values()
        if outcome(steps) == "refused"
    )
    return {
        "registered": len(names()),
        "models": len(models),
        **Counter(outcome(steps) for steps in models.values()),
        "reasons": dict(reasons.most_common()),
    }


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Goes on with what stands there.")
@click.option("--again", is_flag=True, help="Try what failed once more.")
@click.option("--only", multiple=True, help="Names of models; repeatable.")
def main(out: Path, again: bool, only: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    kept = json.loads(out.read_text()) if out.is_file() else {"models": {}}
    models: dict[str, dict[str, str]] = kept["models"]
    with tempfile.TemporaryDirectory(prefix="dcvit-signatures-") as place:
        images = random_images(Path(place) / "images")
        for name in only or names():
            if name in models and not (again and outcome(models[name]) == "failed") and not only:
                continue
            with tempfile.TemporaryDirectory(dir=place) as inner:
                models[name] = try_model(name, images, Path(inner))
            click.echo(f"{outcome(models[name]):9}  {name}  {'' if only == () else models[name]}")
            written = {"summary": summary(models), "versions": package_versions(), "models": models}
            with whole_file(out) as aside:
                aside.write_text(json.dumps(written, indent=2) + "\n")
    click.echo(json.dumps(summary(models), indent=2))
    if any(outcome(steps) == "failed" for steps in models.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
