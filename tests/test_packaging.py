"""What is built for others: the source archive has all that its tests need, the wheel what is imported."""

import email
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ROOT / "toolchain" / "dcvit", ROOT / "kernels" / "dcvit_kernels"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", "site"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that is built from it."""
    place = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, place / "checkout", ignore=LEFT_OUT)
    build = "from setuptools import build_meta as b; import sys; getattr(b, sys.argv[1])(sys.argv[2])"
    for kind, where in (("build_sdist", place / "checkout"), ("build_wheel", place / "unpacked")):
        if kind == "build_wheel":
            (archive,) = place.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(place, filter="data")
            where = next(place.glob("dcvit_tool-*/"))
        ended = subprocess.run(
            [sys.executable, "-c", build, kind, str(place)], cwd=where, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    return place


def tracked(folder: Path) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }


def test_the_source_archive_has_every_file_of_the_tests(built: Path) -> None:
    unpacked = next(built.glob("dcvit_tool-*/"))
    there = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    wanted = {"Makefile", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "setup.py"}
    for folder in ("toolchain", "kernels", "tests", "docs", "examples", "benchmarks", ".github", ".ci"):
        wanted |= tracked(ROOT / folder)
    assert not wanted - there


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        there = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = {name.partition("/")[2] for package in PACKAGES for name in tracked(package)}
    assert there == wanted


def metadata(built: Path) -> Message:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(file.read(name))


def test_the_description_has_no_link_that_an_index_cannot_follow(built: Path) -> None:
    found = metadata(built)
    text = found.get_payload()
    assert isinstance(text, str)
    assert found["Description-Content-Type"] == "text/markdown"
    assert "## On your own model" in text
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not re.match(r"https?:|#", link)] == []


def test_links_lead_to_the_repository_where_there_is_one() -> None:
    spec = importlib.util.spec_from_file_location("dcvit_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "a [guide](docs/guide.md), a [paper](https://arxiv.org/abs/2309.15755), [below](#figures)"
    assert module.long_description(text, "https://example.org/us/") == (
        "a [guide](https://example.org/us/blob/main/docs/guide.md), a [paper](https://arxiv.org/abs/2309.15755), "
        "[below](#figures)"
    )
    assert module.long_description(text, None).startswith("a guide, a [paper](https://arxiv.org")


def test_metadata_and_a_light_base(built: Path) -> None:
    found = metadata(built)
    assert found["Keywords"]
    assert len(found.get_all("Classifier") or []) > 5
    assert found.get_all("Project-URL")
    needed = [line for line in found.get_all("Requires-Dist") or [] if "extra ==" not in line]
    names = {re.split(r"[^\w-]", line)[0] for line in needed}
    assert not names & {
        "matplotlib",
        "scikit-learn",
        "torchmetrics",
        "openvino",
        "tensorrt",
        "polygraphy",
        "tensorboard",
    }
    assert {"torch", "timm", "onnx", "click", "rich"} <= names
