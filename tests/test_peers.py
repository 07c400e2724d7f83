"""The comparison with peers: what it times, and what it makes of the results; `benchmarks/peers/compare.py` runs it."""

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dcvit.cost import count_macs
from dcvit.model import build, create
from dcvit.plan import CompressionPlan
from dcvit.subject import open_subject

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def peers() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of `benchmarks/peers`."""
    sys.path.insert(0, str(PEERS.parent))
    yield lambda name: importlib.import_module(f"peers.{name}")
    sys.path.remove(str(PEERS.parent))


@pytest.fixture(scope="module")
def compare(peers: Callable[[str], ModuleType]) -> ModuleType:
    return peers("compare")


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


def trained_row(method: str, top1: float, **changes: object) -> dict:
    asked = {"method": method, "macs_reduction": 0.45, "epochs": 1.0, "shards": 5, "lr": 5e-4, "seed": 0}
    return asked | {"top1": top1, "macs_ratio": 1.8, "params": 3e6, "loss": 0.5} | changes


def test_accuracies_are_of_trainings_of_one_length_at_their_best_learning_rates(
    compare: ModuleType, tmp_path: Path
) -> None:
    assert compare.accuracies(tmp_path / "none.json") == {"teacher": None, "methods": {}}
    rows = [
        trained_row("ToMe", 73.0, lr=1e-4),
        trained_row("ToMe", 74.0),
        trained_row("ToMe", 73.5, lr=1e-3),
        trained_row("ToMe", 75.0, epochs=2.0),
        trained_row("CAIT", 76.0, epochs=2.0),
    ]
    paths = [tmp_path / "cait.json", tmp_path / "peers_accuracy.json"]

    def top1s(others: list[dict[str, Any]]) -> dict[str, float]:
        for path, found in zip(paths, (rows, others), strict=True):
            path.write_text(json.dumps({"teacher_top1": 75.0, "test_images": 5000, "rows": found}))
        found = compare.accuracies(*paths)
        assert (found["teacher"], found["test_images"]) == (75.0, 5000)
        return {name: method["top1"] for name, method in found["methods"].items()}

    narrower = trained_row("narrower", 71.0)
    assert top1s([narrower]) == {"ToMe": 75.0, "CAIT": 76.0}  # two methods have either length: the longer one
    assert top1s([narrower, trained_row("shallower", 70.0)]) == {"ToMe": 74.0, "narrower": 71.0, "shallower": 70.0}


def test_the_accuracy_table_compares_each_row_with_its_own_control(peers: Callable[[str], ModuleType]) -> None:
    rows = [
        trained_row("CAIT", 74.0),
        trained_row("CAIT", 74.6, seed=1),
        trained_row("control", 75.0, macs_reduction=0.0),
        trained_row("control", 75.2, macs_reduction=0.0, seed=1),
        trained_row("control", 75.5, macs_reduction=0.0, lr=1e-4),
        trained_row("shallower", 72.0, setting="6 of 12 blocks", top1_untrained=55.5),
        trained_row("shallower", 73.0, lr=1e-4),
        trained_row("ToMe", 74.9, lr=2e-4),
        trained_row("narrower", 40.0, shards=1, loss=1.5),
    ]
    report = {"teacher_top1": 75.38, "test_images": 5000}
    text = peers("accuracy").table(peers("trained").trained(rows), report)
    lines = text.splitlines()[2:]
    names = [line.split(" | ")[0] for line in lines[: lines.index("")]]
    assert names == [
        "| control (timm)", "| control (timm)", "| ToMe (peer)", "| CAIT (ours)", "| shallower (timm)",
        "| shallower (timm)",
    ]  # fmt: skip
    assert lines[1].endswith("| 75.10 ± 0.14 (2) |  |")
    assert lines[2].endswith("| 74.90 |  |")  # no control was trained at its learning rate
    assert lines[3].endswith("| 74.30 ± 0.42 (2) | -0.80 |")
    assert lines[4].endswith("| 0.0001 | ×1.800 | 3.00 M |  | 73.00 | -2.50 |")
    assert lines[5].endswith("| 6 of 12 blocks | 1 | 0.0005 | ×1.800 | 3.00 M | 55.50 | 72.00 | -3.00 |")
    assert "50,000 images" in text
    assert "narrower 40.00 (loss 1.500)" in lines[-1]


def test_a_table_takes_its_place_in_the_page_and_leaves_the_rest(
    peers: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    page, put = tmp_path / "page.md", peers("page").put
    put(page, "latency", "old\n")
    page.write_text("# Title\n\n" + page.read_text() + "\nafter\n")
    put(page, "accuracy", "other\n")
    put(page, "latency", "new\n")
    assert page.read_text() == (
        "# Title\n\n<!-- latency -->\nnew\n<!-- /latency -->\n\nafter\n\n<!-- accuracy -->\nother\n<!-- /accuracy -->\n"
    )


def test_a_shallower_model_has_blocks_of_the_teacher(
    peers: Callable[[str], ModuleType], tiny_plan: CompressionPlan
) -> None:
    smaller = peers("smaller")
    assert smaller.evenly(12, 6) == [0, 2, 4, 6, 8, 11]
    assert smaller.evenly(12, 12) == smaller.first_and_last(12, 12) == list(range(12))
    assert smaller.first_and_last(12, 4) == [0, 1, 2, 11]
    model, small = build(tiny_plan), create(tiny_plan.model, tiny_plan.model_kwargs | {"depth": 3})
    smaller.start_shallower(model, small, [0, 1, 3])
    images = torch.randn(2, 3, 32, 32)
    hidden = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for index in (0, 1, 3):
        hidden = model.blocks[index](hidden)
    torch.testing.assert_close(small(images), model.forward_head(model.norm(hidden)))


def test_a_narrower_model_takes_the_strongest_channels(
    peers: Callable[[str], ModuleType], tiny_plan: CompressionPlan
) -> None:
    model, small = build(tiny_plan), create(tiny_plan.model, tiny_plan.model_kwargs | {"embed_dim": 24})
    kept = torch.tensor([channel for channel in range(32) if channel % 4 != 1])
    dropped = torch.arange(1, 32, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():  # nothing writes or reads these
            for axis, size in enumerate(parameter.shape):
                if size == model.embed_dim and not name.endswith("attn.qkv.bias"):
                    parameter.movedim(axis, 0)[dropped] = 0
    subject = open_subject(model)
    peers("smaller").start_narrower(subject, small)
    assert torch.equal(small.pos_embed, model.pos_embed[..., kept])
    assert torch.equal(small.head.weight, model.head.weight[:, kept])
    assert torch.equal(small.patch_embed.proj.weight, model.patch_embed.proj.weight[kept])
    for block, whole in zip(small.blocks, model.blocks, strict=True):
        assert (block.attn.head_dim, block.attn.qkv.weight.shape) == (12, (72, 24))
        assert block.mlp.fc1.weight.shape == (96, 24)
        assert torch.equal(block.norm1.weight, whole.norm1.weight[kept])
        rows = {tuple(row.tolist()) for row in whole.mlp.fc1.weight[:, kept]}
        assert all(tuple(row.tolist()) in rows for row in block.mlp.fc1.weight)
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert subject.model.embed_dim == 32  # it stays as it was


def test_torch_pruning_narrows_heads_and_mlps_alone(peers: Callable[[str], ModuleType]) -> None:
    pytest.importorskip("torch_pruning")
    model = create("deit_tiny_patch16_224", {"img_size": 32, "depth": 2, "num_classes": 10})
    pruned = peers("pruned").prune(model, 0.5)
    for block in pruned.blocks:
        assert (block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features) == (3, 32, 384)
    assert pruned.embed_dim == pruned.blocks[0].norm1.normalized_shape[0] == 192
    assert pruned(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    size = (3, 32, 32)
    assert count_macs(pruned, size).total < 0.6 * count_macs(model, size).total
    assert model.blocks[0].attn.head_dim == 64  # it stays as it was
