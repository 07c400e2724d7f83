"""A short run of the study of hostile files: every end is a result or one line, and nothing runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"

GOOD = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import fuzz
with tempfile.TemporaryDirectory() as place:
    for kind in fuzz.kinds(Path(place)):
        if kind.name == "frontier":
            print(fuzz.outcome(kind, kind.good)[0])
"""


def run(*arguments: object) -> str:
    """In a process of its own: the bound on memory counts all that a process has mapped before."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_hostile_files_end_in_one_line(tmp_path: Path) -> None:
    assert run("-c", GOOD, STUDY).strip() == "fine"  # what is changed is good before
    run(STUDY, "--cases", 200, "--seed", 7, "-o", tmp_path / "fuzz.json")
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert found["defects"] == {}
    assert sum(counts.get("fine", 0) for counts in found["kinds"].values()) > 40
    assert sum(counts.get("refused", 0) for counts in found["kinds"].values()) > 40
