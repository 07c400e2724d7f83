import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcvit.errors import WriteError
from dcvit.locks import this_process
from dcvit.runtimes.caches import cache_folder
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


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(3)}
    store = StageStore(tmp_path)
    store.run("s", {}, lambda: StageResult(tensors, {"loss": 0.5}))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        caplog.clear()
        again = StageStore(tmp_path)
        result = again.run("s", {}, lambda: StageResult(tensors, {"loss": 0.5}))
        assert all(torch.equal(result.tensors[name], tensor) for name, tensor in tensors.items())
        assert result.record == {"loss": 0.5}
        assert again.reused == 0, position
        assert f"{path} is damaged" in caplog.text
        assert "it is computed again" in caplog.text
    last = StageStore(tmp_path)
    last.run("s", {}, lambda: StageResult({}))
    assert last.reused == 1


def test_a_full_disk_is_not_a_damaged_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WriteError, match="s-.*safetensors cannot be written: no space left on device"):
        StageStore(tmp_path).run("s", {}, lambda: StageResult({}))
    assert list(tmp_path.iterdir()) == []


def test_weights_digest_sees_names_and_values() -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert weights_digest(state) == weights_digest(dict(reversed(state.items())))
    assert weights_digest(state) != weights_digest({"a": torch.ones(2), "b": torch.tensor([0.0, 1e-7])})
    assert weights_digest(state) != weights_digest({"b": torch.ones(2), "a": torch.zeros(2)})


def test_what_a_killed_run_left_beside_its_stages_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a file had its place, and before the folder went that it was written in: nobody writes it again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    machine, _, start = this_process().split("-")
    gone, here = f"{machine}-{ended.pid}-{start}", this_process()
    for folder in (tmp_path / "stages", cache_folder("latency")):
        folder.mkdir(exist_ok=True)
        for process in (gone, here):
            (folder / f".table.json.{process}-00000000.partial").mkdir()
    StageStore(tmp_path / "stages")
    cache_folder("latency")
    left = [path.name for path in tmp_path.rglob("*.partial")]
    assert left == [f".table.json.{here}-00000000.partial"] * 2
