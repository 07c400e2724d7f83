"""The comparison with peers: what it times, and what it makes of the results; `benchmarks/peers/compare.py` runs it."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dcvit.cost import count_macs
from dcvit.model import create

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_peers", PEERS / "compare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(name: str, macs: int, speedup: float, **changes: object) -> dict:
    found = {"name": name, "whose": "timm", "setting": "s", "trained_as": None, "macs": macs, "engine": "builds"}
    times = {"latency": {"median_ms": 100 / speedup}, "speedup": speedup}
    return found | times | {"speedup_ci95": [speedup - 0.1, speedup + 0.1]} | changes


@pytest.fixture
def report() -> dict:
    return {
        "rows": [
            row("original", 1000, 1.0),
            row("merging", 500, 1.9, trained_as="merging alone"),
            row("ToMe", 500, 1.6, trained_as="ToMe", engine="no: ScatterElements"),
        ],
        "accuracy": {
            "teacher": 75.0,
            "test_images": 5000,
            "methods": {"merging alone": {"top1": 74.5, "macs_reduction": 0.45}},
        },
        "batch": 64, "runs": 7, "threads": 2, "busy": True, "machine": {"cpu": "a CPU", "load": 3.0}, "versions": {},
    }  # fmt: skip


def test_every_round_runs_every_model_once_in_changing_order(compare: ModuleType) -> None:
    ran: list[str] = []
    passes = {name: lambda name=name: ran.append(name) for name in "abc"}
    times = compare.interleaved(passes, 20, max_seconds=60, warm_up=2)
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys("abc", 20)
    rounds = ["".join(ran[start : start + 3]) for start in range(6, len(ran), 3)]
    assert len(rounds) == 20
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 2


def test_time_ends_the_rounds_but_not_before_the_fifth(compare: ModuleType) -> None:
    times = compare.interleaved({"a": lambda: time.sleep(0.001)}, 100, max_seconds=0, warm_up=0)
    assert len(times["a"]) == 5
    assert min(times["a"]) >= 1  # ms


def test_the_table_says_what_was_found(compare: ModuleType, report: dict, tmp_path: Path) -> None:
    text = compare.table(report)
    whole, merging, tome = text.splitlines()[2:5]
    assert whole.endswith("| 75.00 |")
    assert "(×2.00) | ×1.90 [1.80, 2.00] | 53 | 0.95 | builds | 74.50 |" in merging
    assert tome.endswith("| **does not build** | – |")
    assert "ToMe does not build: no: ScatterElements" in text
    assert "the machine was busy (load 3.0)" in text
    compare.plot(report, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_accuracy_is_that_of_the_longest_training(compare: ModuleType, tmp_path: Path) -> None:
    assert compare.accuracies(tmp_path / "none.json") == {"teacher": None, "methods": {}}
    kept = {"method": "ToMe", "macs_reduction": 0.45, "shards": 5, "seed": 0}
    rows = [kept | {"epochs": 4, "top1": 74.0}, kept | {"epochs": 2, "top1": 73.0}]
    path = tmp_path / "cait.json"
    path.write_text(json.dumps({"teacher_top1": 75.0, "test_images": 5000, "rows": rows}))
    found = compare.accuracies(path)
    assert (found["teacher"], found["methods"]["ToMe"]["top1"]) == (75.0, 74.0)


def test_torch_pruning_narrows_heads_and_mlps_alone() -> None:
    pytest.importorskip("torch_pruning")
    sys.path.insert(0, str(PEERS.parent))
    from peers.pruned import prune

    model = create("deit_tiny_patch16_224", {"img_size": 32, "depth": 2, "num_classes": 10})
    pruned = prune(model, 0.5)
    for block in pruned.blocks:
        assert (block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features) == (3, 32, 384)
    assert pruned.embed_dim == pruned.blocks[0].norm1.normalized_shape[0] == 192
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    size = (3, 32, 32)
    assert count_macs(pruned, size).total < 0.6 * count_macs(model, size).total
    assert model.blocks[0].attn.head_dim == 64  # it stays as it was
