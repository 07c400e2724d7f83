"""The README's commands run as they are written, one after another; only the model, the images and times are small."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from dcvit.cli.main import cli
from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS
from dcvit.runtimes import flavors

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[list[str]]:
    """Those of the block on one's own model, as a shell would split them."""
    (block,) = re.findall(r"```sh\n(dcvit-tool plan.*?)```", README.read_text(), re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines]


def small(arguments: list[str]) -> list[str]:
    """The same for the digits model, with little to do; an engine only where it can be built."""
    changes = {"deit_small_patch16_224": MODEL, '{"num_classes": 37}': json.dumps(MODEL_KWARGS), "500": "16"}
    changed = [changes.get(each, each) for each in arguments]
    if not flavors.installed("tensorrt-rtx"):
        changed = [each for each in changed if each != "--trt"]
    more = {"compress": ["--steps", "0"], "bench": ["--runs", "5", "--no-memory"]}
    return changed + more.get(arguments[0], [])


def write_digits(folder: Path, each: int) -> None:
    digits = load_digits()
    for index in range(each):
        place = folder / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * (255 / 16)).round().astype("uint8")).save(place / f"{index}.png")


@pytest.mark.slow
def test_they_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(WEIGHTS, "mine.safetensors")
    write_digits(tmp_path / "images", 64)
    write_digits(tmp_path / "validation", 64)
    tried = []
    for arguments in commands():
        ended = CliRunner().invoke(cli, small(arguments))
        assert ended.exit_code == 0, f"{' '.join(arguments)}\n{ended.output}"
        tried.append(arguments[0])
    assert tried == ["plan", "compress", "export", "export", "verify", "evaluate", "bench", "report"]
