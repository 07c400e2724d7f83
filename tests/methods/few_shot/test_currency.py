"""A target in time is solved in milliseconds and in MACs, and what harms less is made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcvit.compression import compress
from dcvit.folder.model_folder import ModelFolder
from dcvit.methods.few_shot.currency import MARGIN, Compared, in_macs, smallest_share
from dcvit.methods.few_shot.search import DcVitCompressor
from dcvit.methods.few_shot.settings import SearchSettings
from dcvit.methods.target import Reach, Target
from dcvit.model import create
from dcvit.plan import CompressionPlan
from dcvit.pricing.kept import write_table
from dcvit.pricing.probes import Style
from dcvit.subject import open_shapes


def test_milliseconds_must_do_clearly_less_harm() -> None:
    assert not Compared(MARGIN, 1.0, 0.3).macs_serve
    assert Compared(MARGIN + 0.01, 1.0, 0.3).macs_serve
    asked = Target(speedup=1.5).priced(1 / 3)
    assert in_macs(asked, Compared(1.0, 1.0, 0.3)) == Target(macs_reduction=0.3)
    assert in_macs(asked, Compared(0.1, 1.0, 0.3)) == asked
    assert in_macs(asked, None) == asked
    assert Compared(0.1, 1.0, 0.3).to_json() == {
        "milliseconds": 0.1, "macs": 1.0, "macs_reduction": 0.3, "chosen": "milliseconds",
    }  # fmt: skip


@pytest.mark.parametrize(("wanted", "share"), [(80.0, 0.25), (60.0, 0.5), (52.1, 0.6), (51.9, None)])
def test_the_smallest_share_that_is_fast_enough_is_found(wanted: float, share: float | None) -> None:
    found = smallest_share(Reach(0.1, 0.6), lambda share: 100 - 80 * share, wanted)
    assert found == (None if share is None else pytest.approx(share, abs=1e-3))
    if found is not None:
        assert 100 - 80 * found <= wanted


@pytest.fixture
def to_three_quarters(tmp_path: Path, tiny_plan: CompressionPlan, made_up: Any) -> Callable[[], ModelFolder]:
    """Compresses to three quarters of the time, where attention is all that takes any."""

    def latency(plan: CompressionPlan) -> float:
        blocks = [plan.block(index) for index in range(plan.model_kwargs["depth"])]
        return 1 + sum(10 * (block.removed is None) * (block.head_dim or 16) / 16 for block in blocks)

    subject = open_shapes(tiny_plan.model, tiny_plan.model_kwargs)
    write_table(made_up.table(subject, Style(), latency), tmp_path / "edge.json")
    torch.manual_seed(0)
    model = create(tiny_plan.model, tiny_plan.model_kwargs)

    def run() -> ModelFolder:
        made = compress(
            model, "digits", out=tmp_path / "out", latency=0.75 * latency(tiny_plan), samples=8, overwrite=True,
            latency_table=tmp_path / "edge.json", settings=SearchSettings(steps=0), width_multiple=1,
        )  # fmt: skip
        assert latency(made.summary.plan) <= 0.75 * latency(tiny_plan) * 1.01
        return ModelFolder(made.folder)

    return run


@pytest.mark.parametrize(("scores", "chosen"), [((0.1, 1.0), "milliseconds"), ((0.9, 1.0), "macs")])
def test_what_harms_less_is_made(
    to_three_quarters: Callable[[], ModelFolder], monkeypatch: pytest.MonkeyPatch, scores: Any, chosen: str
) -> None:
    given = dict(zip((True, False), scores, strict=True))
    monkeypatch.setattr(
        DcVitCompressor, "_untrained_score", lambda _self, target, _after: given[target.latency_reduction is not None]
    )
    folder = to_three_quarters()
    found = folder.manifest.metrics["solved_in"]
    assert found["chosen"] == chosen
    assert (found["milliseconds"], found["macs"]) == scores
    narrowed = [block for block in folder.plan.blocks if block.mlp_hidden not in (None, 128)]
    assert bool(narrowed) == (chosen == "macs")  # milliseconds cut nothing that saves none
    if chosen == "macs":
        assert folder.manifest.metrics["macs_after"] <= (1 - found["macs_reduction"]) * folder.manifest.metrics[
            "macs_before"
        ] * (1 + 1e-6)
    assert (folder.path / "latency.json").is_file()


def test_both_are_measured_on_the_images(to_three_quarters: Callable[[], ModelFolder]) -> None:
    metrics = to_three_quarters().manifest.metrics
    found = metrics["solved_in"]
    assert metrics["kl"] == pytest.approx(found[found["chosen"]], rel=1e-4)  # nothing was trained
