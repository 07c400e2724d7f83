"""A run is done again from its manifest, to the bit; what must be given again is compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.errors import InputError
from dcvit.frontiers import frontier
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.model import create

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}


def run(*arguments: object) -> int:
    try:
        cli([str(each) for each in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in create(NAME, TINY).state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """With everything other than by default."""
    out = tmp_path_factory.mktemp("made") / "model"
    options = ["--samples", 12, "--steps", 3, "--seed", 7, "--merge", "horizontal@2", "--macs-reduction", 0.5]
    kwargs = ["--model-kwargs", json.dumps(TINY), "--width-multiple", 4]
    assert run("compress", NAME, "--checkpoint", checkpoint, *kwargs, "--data", "digits", *options, "-o", out) == 0
    return out


def test_the_same_weights_to_the_bit(made: Path, checkpoint: Path, tmp_path: Path) -> None:
    moved = shutil.copy(checkpoint, tmp_path / "renamed.safetensors")
    again = ["--from-manifest", made / "manifest.json", "--data", "digits", "--checkpoint", moved]
    assert run("compress", *again, "-o", tmp_path / "again") == 0
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()
    first, second = (json.loads((each / "manifest.json").read_text()) for each in (made, tmp_path / "again"))
    assert first["repeat"]["run"] == second["repeat"]["run"]
    assert first["settings"] == second["settings"] | {"weights": first["settings"]["weights"]}
    assert first["seed"] == second["seed"] == 7


def test_the_manifest_holds_what_decides_a_run(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert {"torch", "timm", "torchvision", "numpy", "pillow", "safetensors"} <= set(manifest["versions"])
    repeat = manifest["repeat"]
    assert repeat["model"] == NAME
    assert repeat["threads"] == torch.get_num_threads()
    assert repeat["machine"]
    assert repeat["checkpoint"]["name"] == "weights.safetensors"
    assert len(repeat["checkpoint"]["sha256"]) == 64
    assert repeat["run"]["samples"] == 12
    assert str(made.parent) not in json.dumps(repeat)


def refused(made: Path, tmp_path: Path, model: str | None = None, data: Any = "digits", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        compress(model, data, out=tmp_path / "out", from_manifest=made / "manifest.json", **options)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_what_is_not_the_same_is_refused_by_name(
    made: Path, checkpoint: Path, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    assert "--checkpoint: the run of" in refused(made, tmp_path)
    other = tmp_path / "other.safetensors"
    state = load_file(checkpoint)
    state["head.bias"][3] += 1e-3
    save_file(state, other)
    assert "--checkpoint: other.safetensors is not the file" in refused(made, tmp_path, checkpoint=other)
    images = image_folder(classes=2, each=10)
    error = refused(made, tmp_path, data=images, checkpoint=checkpoint)
    assert error.startswith("--data: sha256 of the images is ")
    assert "MODEL: the run of" in refused(made, tmp_path, "deit_tiny_patch16_224", checkpoint=checkpoint)
    assert "leave out the others" in refused(made, tmp_path, checkpoint=checkpoint, samples=3)
    assert "recovery needs images" in refused(made, tmp_path, data=None, checkpoint=checkpoint)


def test_options_that_the_manifest_decides_are_refused(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = ["compress", "--from-manifest", made / "manifest.json", "--data", "digits", "-o", tmp_path / "out"]
    for option in (["--steps", 5], ["--method", "cait"], ["--seed", 1]):
        assert run(*again, *option) == 2
        assert f"{option[0]}: --from-manifest decides it" in capfd.readouterr().err
    assert run("compress", "-o", tmp_path / "out") == 2
    assert "Missing argument 'MODEL'" in capfd.readouterr().err


def test_a_frontier_obeys_its_seed_and_is_not_repeated_by_one_point(tmp_path: Path) -> None:
    def weights(out: str, seed: int) -> bytes:
        options: dict[str, Any] = {"weights": "random", "model_kwargs": TINY, "samples": 8, "seed": seed}
        settings = SearchSettings(steps=0)
        frontier(NAME, "digits", out=tmp_path / out, reductions=[0.3], settings=settings, **options)
        return (tmp_path / out / "r0.3" / "model.safetensors").read_bytes()

    first = weights("a", 1)
    torch.manual_seed(99)
    assert weights("b", 1) == first
    assert weights("c", 2) != first
    with pytest.raises(InputError, match="does not hold all that repeats a run; it is of a frontier"):
        compress(data="digits", out=tmp_path / "d", from_manifest=tmp_path / "a" / "r0.3" / "manifest.json")
