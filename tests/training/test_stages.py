from pathlib import Path

import pytest
import torch

from dcvit.stages import StageResult, StageStore, weights_digest


def test_a_stage_runs_once_for_a_key(tmp_path: Path) -> None:
    runs = []

    def compute() -> StageResult:
        runs.append(1)
        return StageResult({"w": torch.arange(3.0)}, {"loss": 0.1 + 0.2})

    store = StageStore(tmp_path)
    first = store.run("s", {"a": 1}, compute)
    again = StageStore(tmp_path).run("s", {"a": 1}, compute)
    assert len(runs) == 1
    assert torch.equal(first.tensors["w"], again.tensors["w"])
    assert again.record == first.record  # floats survive JSON to the bit
    store.run("s", {"a": 2}, compute)
    assert len(runs) == 2


def test_a_failed_stage_and_a_torn_file_leave_nothing_to_reuse(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    with pytest.raises(RuntimeError):
        store.run("s", {}, lambda: (_ for _ in ()).throw(RuntimeError))
    assert list(tmp_path.iterdir()) == []
    store.run("s", {}, lambda: StageResult({"w": torch.ones(2)}))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert store.run("s", {}, lambda: StageResult({"w": torch.zeros(2)})).tensors["w"].sum() == 0


def test_weights_digest_sees_names_and_values() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    assert weights_digest(state) != weights_digest({"a": torch.ones(2), "b": torch.tensor([0.0, 1e-7])})
    assert weights_digest(state) != weights_digest({"b": torch.ones(2), "a": torch.zeros(2)})
