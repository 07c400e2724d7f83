"""Breadth: every family of timm that we take goes the whole way, its near relatives are refused by name, and the table
says so."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from dcvit.runtimes import flavors

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_support", ROOT / "benchmarks" / "support.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


support = load()
REPORT = json.loads((ROOT / "benchmarks" / "results" / "support.json").read_text())
BUILT = ("ViT", "DINOv3", "BEiT")
"""Families whose engine is built in every test run; `benchmarks/support.py` builds those of all."""


FEW = {"DINOv3", "Swin V2", "ResNet"}
"""One of each kind; the others differ from them, or from the ViT of all other tests, in a layer."""


@pytest.mark.parametrize(
    "name",
    [name if name in FEW else pytest.param(name, marks=pytest.mark.thorough) for name in support.MEMBERS],
)
def test_every_family_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    engine = name in BUILT and flavors.installed("tensorrt-rtx")
    row = support.try_family(name, tmp_path, narrow=True, engine=engine)
    wanted = dict.fromkeys(support.STEPS, "ok") | ({} if engine else {"engine": "not run"})
    assert row.steps == wanted
    assert 0 < row.figures["macs_after"] < row.figures["macs_before"]
    # The narrow member may be cut in the same ways as the one in the table, and for the same reasons not in the others.
    (written,) = (each for each in REPORT["families"] if each["family"] == name)
    assert row.cuts == written["cuts"]
    assert "yes" in row.cuts.values()


@pytest.mark.parametrize("name", support.REFUSED)
def test_near_relatives_are_refused_in_one_line(name: str) -> None:
    status, message = support.refusal(support.REFUSED[name])
    assert status == 2
    assert len(message.splitlines()) == 1
    assert "is not supported; supported: " in message
    (written,) = (each for each in REPORT["refused"] if each["family"] == name)
    assert support.reason(message) == written["reason"]


def test_a_step_that_fails_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "export", lambda *_, **__: None)
    row = support.try_family("ViT", tmp_path, narrow=True, engine=False)
    assert row.steps["compress"] == "ok"
    assert row.steps["ONNX Runtime"].startswith("failed: ")
    assert "no ONNX file" in row.steps["ONNX Runtime"]
    assert not row.ok
    report = {"families": [vars(row)], "refused": []}
    assert "| ✗ |" in support.table(report)
    assert "0 of 1 families go the whole way" in support.table(report)


def test_the_tables_are_those_of_the_results() -> None:
    text = support.table(REPORT)
    assert support.DOCS.read_text() == text
    readme = support.README.read_text()
    if support.BEGIN in readme:
        assert readme.split(support.BEGIN, 1)[1].split(support.END, 1)[0].strip() == text.strip()
    assert {row["family"] for row in REPORT["families"]} == set(support.MEMBERS)
    assert {row["family"] for row in REPORT["refused"]} == set(support.REFUSED)


def test_the_script_writes_both_and_marks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "try_family", lambda name, place, engine: support.Row(name, "model", {}))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{support.BEGIN}\nold\n{support.END}\nafter\n")
    monkeypatch.setattr(support, "README", readme)
    results, docs = tmp_path / "support.json", tmp_path / "support.md"
    ended = CliRunner().invoke(support.main, ["-o", str(results), "--docs", str(docs)], catch_exceptions=False)
    assert ended.exit_code == 0
    text = docs.read_text()
    assert text == support.table(json.loads(results.read_text()))
    assert readme.read_text() == f"before\n{support.BEGIN}\n{text}{support.END}\nafter\n"
