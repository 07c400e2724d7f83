"""Names and terminals of all kinds: what is printed is what was meant."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcvit.cli.command import _print
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import CompressionPlan
from dcvit.reporting import report


class Lines:
    def lines(self) -> list[str]:
        return ["written to /tmp/[red]run[/red]/[/]:smile:"]

    def to_json(self) -> dict[str, str]:
        return {}


def test_square_brackets_and_colons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    _print(Lines(), stderr=False, verbose=False)
    assert capsys.readouterr().out == "written to /tmp/[red]run[/red]/[/]:smile:\n"


def test_a_folder_may_have_brackets_in_its_name(exported_copy: ModelFolder, tool: Callable) -> None:
    place = exported_copy.path.rename(exported_copy.path.with_name("[red]model[bold]"))
    ended = tool("report", place)
    assert ended.status == 0
    assert str(place / "report.html") in ended.stdout
    ended = tool("verify", place)
    assert ended.status == 0


def test_a_name_is_an_argument_a_string_and_words_and_no_more(exported_copy: ModelFolder) -> None:
    """In a shell, in Python and in Markdown."""
    name = "-x'; touch owned; \"[a](http:b) <script>`c`"
    folder = exported_copy.path.rename(exported_copy.path.parent / name.replace("/", ""))
    name = folder.name
    made = report(folder)
    card, page = made.card.read_text(encoding="utf-8"), made.html.read_text(encoding="utf-8")
    (heading,) = re.findall(r"^# (.*touch.*)$", card, re.MULTILINE)
    assert not re.search(r"(?<!\\)[<>\[\]`]", heading)
    assert heading.replace("\\", "") == name
    assert "<script>`c`" not in page
    code = next(part for part in card.split("```python\n") if "dcvit.load(" in part).split("\n```")[0]
    calls: list[str] = []
    loaded = next(line for line in code.splitlines() if "dcvit.load(" in line).split(" = ", 1)[1].split("  #")[0]
    eval(loaded, {"dcvit": type("Fake", (), {"load": staticmethod(calls.append)})})
    assert calls == [name]


def test_a_command_with_a_name_runs_nothing_else(exported_copy: ModelFolder, tmp_path: Path) -> None:
    from dcvit.variant import Variant

    command = Variant().export_command("-x'; touch owned; $(touch owned)").replace("dcvit-tool", "printf '%s\\n'")
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "./-x'; touch owned; $(touch owned)"
    assert not (tmp_path / "owned").exists()


def test_a_terminal_of_ascii_gets_question_marks() -> None:
    plain = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    kwargs = '{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}'
    command = [sys.executable, "-m", "dcvit.cli.main", "plan", "vit_tiny_patch16_224", "--model-kwargs", kwargs]
    command += ["--method", "dcvit", "--macs-reduction", "0.1"]
    ended = subprocess.run(command, capture_output=True, env=plain, check=False)
    assert ended.returncode == 0, ended.stderr
    assert b"?" in ended.stdout  # for the minus
    ended.stdout.decode("ascii")


def in_bytes(name: bytes) -> str:
    """A name of Linux that is not UTF-8, as Python has it."""
    return os.fsdecode(name)


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """Ten classes of two images and one that is broken; no name of a class or an image is UTF-8."""
    root = tmp_path / in_bytes(b"im\xffages")
    for label in range(10):
        folder = root / in_bytes(b"%d\xfe" % label)
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / in_bytes(b"%d\xf0.png" % number))
    (root / in_bytes(b"0\xfe") / in_bytes(b"broken\xff.png")).write_bytes(b"no picture")
    return root


def is_utf8(text: str) -> bool:
    """Whether JSON holds no half of a letter, which readers other than Python's refuse."""
    return not re.search(r"[\ud800-\udfff]|\\ud[89a-f]", text)


def test_images_may_have_names_that_are_not_utf8(
    exported_copy: ModelFolder, odd_images: Path, tool: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported_copy.path
    for command in (
        ["evaluate", folder, "--data", odd_images, "--batch", "4"],
        ["verify", folder, "--data", odd_images],
        ["inspect", folder, "--pictures", tmp_path / in_bytes(b"pic\xff"), "--data", odd_images],
        ["report", folder],
    ):
        ended = tool(*command, "--json")
        assert ended.status == 0, ended.stderr
        assert is_utf8(ended.stdout)
        if command[0] == "evaluate":
            assert (ended.json["images"], ended.json["corrupt"]) == (20, 1)
            assert r"skipped 0\xfe/broken\xff.png" in caplog.text
    texts = [path.read_bytes().decode() for path in folder.iterdir() if path.suffix in (".json", ".md", ".html")]
    assert len(texts) >= 5
    assert all(is_utf8(text) for text in texts)
    assert any(r"im\\xffages" in text for text in texts)  # in JSON, whose backslash is two
    assert os.listdir(os.fsencode(tmp_path / in_bytes(b"pic\xff")))


@pytest.mark.parametrize("command", ["export", "verify", "evaluate", "bench", "inspect", "report", "plan"])
def test_a_model_folder_whose_name_is_not_utf8_is_refused_by_name(
    exported_copy: ModelFolder, tool: Callable, command: str
) -> None:
    place = exported_copy.path.rename(exported_copy.path.with_name(in_bytes(b"mo\xffdel")))
    more = {"evaluate": ["--data", "digits"], "plan": ["--macs-reduction", "0.3"]}
    ended = tool(command, place, *more.get(command, []), "--json")
    assert ended.status == 2
    assert ended.json["error"].startswith(str(place.with_name(r"mo\xffdel")) + " is no name in UTF-8, and those that ")
    assert is_utf8(ended.stdout)


@pytest.mark.parametrize(
    ("command", "option"),
    [("compress", "-o"), ("frontier", "-o"), ("compress", "--cache"), ("compress", "--checkpoint")],
)
def test_what_is_to_be_written_has_a_name_in_utf8(
    tmp_path: Path, tiny_plan: CompressionPlan, tool: Callable, command: str, option: str
) -> None:
    place = tmp_path / in_bytes(b"o\xffut")
    if option == "--checkpoint":
        place.touch()
    before = sorted(tmp_path.iterdir())
    arguments = [tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--data", "digits"]
    arguments += ["--macs-reduction", "0.3", "--samples", "8", option, place]
    ended = tool(command, *arguments, *([] if option == "-o" else ["-o", tmp_path / "out"]))
    assert ended.status == 2
    assert ended.error.startswith(str(tmp_path / r"o\xffut") + " is no name in UTF-8, and those that read and write")
    assert sorted(tmp_path.iterdir()) == before
