"""The site: every page is in its contents, and the reference names what there is."""

import importlib
import inspect
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import dcvit

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(contents: list[Any]) -> list[str]:
    return [
        page
        for entry in contents
        for inner in entry.values()
        for page in (pages(inner) if isinstance(inner, list) else [inner])
    ]


def test_every_page_is_in_the_contents_once() -> None:
    assert sorted(pages(CONFIG["nav"])) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_start_leads_to_every_page() -> None:
    links = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert sorted(links) == sorted(page for page in pages(CONFIG["nav"]) if page != "index.md")


def test_the_reference_names_what_import_gives() -> None:
    named = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    found = {}
    for name in named:
        module, _, last = name.rpartition(".")
        found[last] = getattr(importlib.import_module(module), last)
    for name in dcvit.__all__:
        given = getattr(dcvit, name)
        assert found.get(given.__name__) is given, f"docs/api.md lacks {name}"
    assert [name for name, what in found.items() if not inspect.getdoc(what)] == []


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: make docs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "dcvit-tool" in (tmp_path / "site" / "tutorial" / "index.html").read_text(encoding="utf-8")
