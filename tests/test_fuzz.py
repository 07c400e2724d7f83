"""A short run of the study of hostile files: every end is a result or one line, and nothing runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.mark.slow
def test_hostile_files_end_in_one_line_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """In a process of its own: the bound on memory counts all that a process has mapped before."""
    output = tmp_path / "fuzz.json"
    command = [sys.executable, "-W", "ignore", str(STUDY), "--cases", "60", "--seed", "7", "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["defects"] == {}
    assert set(found["outcomes"]) == {"fine", "refused"}
    assert min(found["outcomes"].values()) > 8
    assert found["cases"] >= 60
    assert 0 < found["memory"]["peak_mib"] < found["memory"]["bound_mib"]

    lacking = found | {"kinds": {name: row for name, row in found["kinds"].items() if name != "pickle"}}
    output.write_text(json.dumps(lacking))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    cases = found["kinds"]["pickle"]["cases"]
    assert done.stderr.count("refused") == cases  # one line a part, of this kind alone
    again = json.loads(output.read_text())["kinds"]["pickle"]
    assert (again["cases"], again["refused"]) == (cases, cases)
