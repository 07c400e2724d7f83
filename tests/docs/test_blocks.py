"""Every block of the README and of docs/ runs, in order, in one folder for each page.

What is not as on a user's machine, and nothing else:

- `deit_small_patch16_224` is a ViT of 4 narrow blocks on 32×32 pixels (`SMALL`), without weights to download;
- the user's files are made here (`write_files`): 37 classes of random images, and a checkpoint of that model;
- a compression trains 4 steps where a page does not say how many;
- `bench` takes 5 rounds, and measures no memory (that takes a process of its own, which knows no `SMALL`); the gate
  measures for a second;
- `--trt` builds for one kind of GPU, and is left out where TensorRT-RTX is not installed.

A block that cannot run here stands below `<!-- not run: why -->`; the test knows how many there are. Blocks without a
language are pictures; the examples of extending.md and data.md are run by test_extending.py and test_data_page.py.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.models import _registry

from dcvit.bench import Limits
from dcvit.cli.main import cli
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.registry import METHODS
from dcvit.runtimes import flavors

ROOT = Path(__file__).parents[2]
MODEL = "deit_small_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
CLASSES = 37

NOT_RUN = {"README.md": 1, "install.md": 3, "serving.md": 1, "tutorial.md": 1}
"""How many blocks of a page are marked."""
ELSEWHERE = {"data.md", "extending.md"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    marked: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^(<!-- not run: [^\n]+ -->\n+)?```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(each[2], each[3], text[: each.start(3)].count("\n") + 1, each[1] is not None) for each in found]


PAGES = {page.name: blocks(page) for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
RUN = [
    name for name, found in PAGES.items() if name not in ELSEWHERE and any(b.language and not b.marked for b in found)
]


def test_every_fence_is_read_and_marks_are_few() -> None:
    for name, found in PAGES.items():
        text = (ROOT / name if name == "README.md" else ROOT / "docs" / name).read_text(encoding="utf-8")
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), name
    assert {
        name: sum(b.marked for b in found) for name, found in PAGES.items() if any(b.marked for b in found)
    } == NOT_RUN


def write_files(folder: Path) -> None:
    """What the pages call the user's own: `images/`, `validation/` and `mine.safetensors`."""
    generator = np.random.default_rng(0)
    for name, each in (("images", 14), ("validation", 2)):  # 14: the pages draw 500 samples
        for label in range(CLASSES):
            place = folder / name / f"class{label:02}"
            place.mkdir(parents=True)
            for index in range(each):
                pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL, num_classes=CLASSES).state_dict(), folder / "mine.safetensors")


class ShortSettings(SearchSettings):
    steps: int = 4


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's files, in which `MODEL` is small and a benchmark short."""
    real = _registry._model_entrypoints[MODEL]

    def small(pretrained: bool = False, **given: Any) -> Any:
        return real(pretrained=False, **(SMALL | given))

    limits = Limits.of

    def short(protocol: Any, runs: int | None, max_seconds: float | None) -> Limits:
        return limits(protocol, runs or 5, max_seconds)

    monkeypatch.setitem(_registry._model_entrypoints, MODEL, small)
    monkeypatch.setattr(Limits, "of", short)
    monkeypatch.setattr(type(METHODS["dcvit"]), "settings", ShortSettings)
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return tmp_path


def run_shell(text: str, where: str) -> None:
    """Runs lines that begin with dcvit-tool; any other is a defect of the page."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if ">" in words:  # where its JSON goes is the shell's part
            words = words[: words.index(">")]
        assert words[0] == "dcvit-tool", f"{where}: `{line}` is not run; mark the block or leave it out"
        arguments = [each for each in words[1:] if each != "--trt" or flavors.installed("tensorrt-rtx")]
        arguments += ["--compute-capability", "8.6"] if "--trt" in arguments else []
        arguments += ["--no-memory"] if arguments[0] == "bench" and "--check" not in arguments else []
        if "--max-seconds" in arguments:
            arguments[arguments.index("--max-seconds") + 1] = "1"
        status: Any = 0
        try:
            cli(arguments)
        except SystemExit as end:
            status = end.code
        assert not status, f"{where}: `{line}` ended with {status}"


def run_workflow(text: str, where: str) -> None:
    """Runs what the steps of a workflow do with dcvit-tool; what sets up before them is not ours."""
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            lines = step.get("run", "").replace("\\\n", " ").splitlines()
            run_shell("\n".join(line for line in lines if line.strip().startswith("dcvit-tool")), where)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == "README.md" else pytest.param(name, marks=pytest.mark.thorough) for name in RUN]
)
def test_the_blocks_of_a_page(name: str, users_folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    runs: dict[str, Callable[[str, str], None]] = {
        "sh": run_shell,
        "yaml": run_workflow,
        "python": lambda text, where: exec(compile(text, where, "exec"), namespace),
    }
    for block in PAGES[name]:
        if block.language and not block.marked:
            runs[block.language](block.text, f"{name}:{block.line}")
