"""Names and terminals of all kinds: what is printed is what was meant."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dcvit.cli.command import _print
from dcvit.folder.model_folder import ModelFolder
from dcvit.reporting import report


class Lines:
    def lines(self) -> list[str]:
        return ["written to /tmp/[red]run[/red]/[/]:smile:"]

    def to_json(self) -> dict[str, str]:
        return {}


def test_square_brackets_and_colons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    _print(Lines(), stderr=False)
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
