"""A short run of the study of hostile files: every end is a result or one line, and nothing runs."""

import importlib.util
import tempfile
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.mark.slow
def test_hostile_files_end_in_one_line() -> None:
    spec = importlib.util.spec_from_file_location("fuzz", STUDY)
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    with tempfile.TemporaryDirectory() as place:  # what is changed is good before
        (frontier,) = (kind for kind in fuzz.kinds(Path(place)) if kind.name == "frontier")
        assert fuzz.outcome(frontier, frontier.good)[0] == "fine"
    found = fuzz.run(200, seed=7)
    assert found["defects"] == {}
    assert sum(counts["fine"] for counts in found["kinds"].values()) > 40
    assert sum(counts["refused"] for counts in found["kinds"].values()) > 40
