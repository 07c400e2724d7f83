"""The pages hold what they say: links lead somewhere, and figures of latency are those of the results."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
LATENCY: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "latency.json").read_text())["cases"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


def test_readme_is_short_and_names_both_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 140  # with room for some families more
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines}


@pytest.mark.parametrize("case", LATENCY)
def test_latencies_are_those_of_the_results(case: str) -> None:
    row = LATENCY[case]["bench"]["results"][0]
    low, high = row["speedup_ci95"]
    speedup = f"×{row['speedup']:.3f} [{low:.3f}, {high:.3f}]"
    times = f"| {row['baseline_median_ms']:.1f} | {row['median_ms']:.1f} |"
    cells = f"×{LATENCY[case]['macs_ratio']:.3f} {times} {speedup} | {row['runs']} |"
    assert cells in (ROOT / "docs" / "latency.md").read_text()
    if case.endswith("CAIT"):
        assert speedup in (ROOT / "README.md").read_text()


def test_what_was_tried_is_what_the_studies_found() -> None:
    found = runpy.run_path(str(ROOT / "benchmarks" / "robustness.py"))
    assert (ROOT / "docs" / "robustness.md").read_text() == found["page"]()
