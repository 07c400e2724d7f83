"""The measures of benchmarks/real_vit.py, on features that are made up."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch

from dcvit.cost import count_macs
from dcvit.families import family_of


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
    written = importlib.import_module("real_vit_page")
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
        | dict.fromkeys(written.COLUMNS, value + 0.1 * seed)
        | ({"learning_rate": 5e-6} if method == "uniform" and steps else {})
        for method, value, steps in (("ours", 0.5, 0), ("uniform", 0.7, 0), ("uniform", 0.6, 200), ("own", 0.4, 200))
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
    text = written.page({"about": about, "rows": rows})
    assert "| ours | −33.1 % | 64 | 0.550 ± 0.071 |" in text
    assert "| uniform | −33.1 % | 64 | 0.750 ± 0.071 |" in text
    assert "| uniform, 200 steps at 5e-06 | −33.1 % | 64 | 0.650 ± 0.071 |" in text
    assert "| own, 200 steps | −33.1 % | 64 | 0.450 ± 0.071 |" in text
    assert "2 draws of the" in " ".join(text.split())
    assert "a machine, with" in " ".join(text.split())


@pytest.fixture
def few(study: ModuleType) -> SimpleNamespace:
    """A small headless ViT and eight images, as a job of the study."""
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 6, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **kwargs).eval().requires_grad_(False)
    return SimpleNamespace(model=model, family=family_of(model), depth=4, calibration=torch.randn(8, 3, 32, 32), seed=0)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_snapvit_saves_what_is_wanted_and_takes_no_more(study: ModuleType, few: SimpleNamespace, share: float) -> None:
    before = count_macs(few.model, (3, 32, 32)).total
    small = study.snapvit(few, SimpleNamespace(wanted=share * before))
    after = count_macs(small, (3, 32, 32)).total
    assert share <= 1 - after / before < share + 0.002
    heads = [block.attn.num_heads for block in small.blocks]
    assert min(heads) >= 1
    assert (sum(heads) < 24) == (share > 0.15)
    assert small(few.calibration).isfinite().all()
    assert count_macs(few.model, (3, 32, 32)).total == before


def test_snapvits_correction_is_exact_where_nothing_was_lost(study: ModuleType, few: SimpleNamespace) -> None:
    snapvit = sys.modules["snapvit"]
    nodes, heads = [torch.arange(192)] * 4, [torch.arange(6)] * 4
    same = snapvit._cut(few, snapvit.Kept(nodes, heads), few.calibration)
    assert torch.allclose(same(few.calibration), few.model(few.calibration), atol=1e-4)
    block = few.model.blocks[1].mlp
    block.fc1.weight[5], block.fc1.bias[5] = block.fc1.weight[9], block.fc1.bias[9]  # one node is another's twin
    fewer = [nodes[0], torch.tensor([node for node in range(192) if node != 5]), *nodes[2:]]
    small, masked = (
        snapvit._cut(few, snapvit.Kept(fewer, heads), few.calibration), snapvit._masked(few, snapvit.Kept(fewer, heads))
    )  # fmt: skip
    wanted = few.model(few.calibration)
    lost = [float((each(few.calibration) - wanted).square().mean()) for each in (small, masked)]
    assert lost[0] < 0.05 * lost[1]


def test_the_evolution_strategy_goes_downhill(study: ModuleType) -> None:
    torch.manual_seed(0)
    aim = torch.linspace(-1, 1, 6)
    found = sys.modules["snapvit"].evolve(lambda x: float((x - aim).square().sum()), torch.zeros(6) + 2, 2000)
    assert (found - aim).abs().max() < 0.2
