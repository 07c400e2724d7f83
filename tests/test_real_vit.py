"""The measures of benchmarks/real_vit.py, on features that are made up."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("real_vit")
    sys.path.pop(0)


def test_equal_features_agree_and_a_common_shift_hides_nothing(study: ModuleType) -> None:
    features = torch.randn(40, 16) + 5
    assert study.agreement(features, features) == pytest.approx((1, 0), abs=1e-9)
    assert study.kept_neighbours(features, features) == 1
    # The mean of all images has a cosine of nearly 1 with each of them, and tells nothing of any.
    cosine, error = study.agreement(features.mean(0).expand(40, -1) + 1e-3 * torch.randn(40, 16), features)
    assert abs(cosine) < 0.2
    assert error == pytest.approx(1, abs=0.05)


def test_neighbours_of_other_features_are_kept_by_chance_alone(study: ModuleType) -> None:
    kept = study.kept_neighbours(torch.randn(200, 32), torch.randn(200, 32))
    assert kept < 0.06  # 5 of 199 by chance: 0.025, of 1,000 draws


def test_the_page_has_every_row(study: ModuleType) -> None:
    rows = [
        {
            "method": method,
            "reduction": 0.33,
            "samples": 64,
            "seed": seed,
            "steps": steps,
            "machine": "a machine",
            "macs_reduction": 0.331,
            "seconds": 9.0,
        }
        | dict.fromkeys(study.COLUMNS, value + 0.1 * seed)
        for method, value, steps in (("ours", 0.5, 0), ("uniform", 0.7, 0), ("uniform", 0.6, 200))
        for seed in (0, 1)
    ]
    about = {
        "model": "m",
        "size": 112,
        "weights": "w",
        "fit": "f",
        "judge": "j",
        "judged": 300,
        "machine": {"cpu": "c"},
    }
    text = study.page({"about": about, "rows": rows})
    assert "| ours | −33.1 % | 64 | 0.550 ± 0.071 |" in text
    assert "| uniform | −33.1 % | 64 | 0.750 ± 0.071 |" in text
    assert "| uniform, 200 steps | −33.1 % | 64 | 0.650 ± 0.071 |" in text
    assert "2 draws of the" in " ".join(text.split())
    assert "a machine, with" in " ".join(text.split())
