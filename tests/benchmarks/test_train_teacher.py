"""The script that trains teachers, on a handful of images: stopped and gone on with, and what it writes."""

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from dcvit.model import create

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import train_teacher

IMAGES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    (place / "cifar10").mkdir()
    generator = np.random.default_rng(0)
    for name in (*(f"train-{shard}" for shard in range(train_teacher.SHARDS)), "test"):
        with tarfile.open(place / f"cifar10/{name}.tar", "w") as tar:
            for number in range(IMAGES if name == "test" else 2):
                file = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
                info = tarfile.TarInfo(f"class{number % 2}/{number}.jpg")
                info.size = file.tell()
                file.seek(0)
                tar.addfile(info, file)
    return place


def run(data: Path, out: Path, *more: str) -> str:
    arguments = ["deit-tiny", "--data", str(data), "--epochs", "1.2", "--batch-size", "4", "-o", str(out), *more]
    ended = CliRunner().invoke(train_teacher.main, arguments)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    assert "1 of 3 steps are done" in run(data, out, "--minutes", "0")
    assert not out.exists()
    said = run(data, out)
    assert "goes on behind step 1 of 3" in said
    assert "% of 8 test images" in said
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # the state is gone
    run(data, tmp_path / "whole.safetensors")
    ours, whole = load_file(out), load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert ours["head.weight"].dtype == torch.float16
    recipe = train_teacher.RECIPES["deit-tiny"]
    create(recipe.model, recipe.kwargs).load_state_dict(ours)


def test_a_state_of_another_training_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    run(data, out, "--minutes", "0")
    arguments = ["deit-tiny", "--data", str(data), "--epochs", "9", "--batch-size", "4", "-o", str(out)]
    ended = CliRunner().invoke(train_teacher.main, arguments)
    assert ended.exit_code == 1
    assert "is of another training" in ended.output


def test_images_are_shifted_mirrored_and_blanked_and_labels_stay_shares() -> None:
    recipe = train_teacher.RECIPES["deit-tiny"]
    images = torch.rand(6, 3, 32, 32)
    draw = torch.Generator().manual_seed(0)
    made, soft = train_teacher.augmented(images, torch.arange(6), recipe, 10, draw)
    assert made.shape == images.shape
    assert 0 <= made.min() <= made.max() <= 1
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert soft.argmax(1).unique().numel() >= 3
    large = train_teacher.prepared(images, train_teacher.RECIPES["vit-small"])
    assert large.shape == (6, 3, 112, 112)
