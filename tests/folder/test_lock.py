"""One run at a time on an output, and what killed runs left goes away."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcvit.errors import InputError
from dcvit.folder.lock import adding, running
from dcvit.locks import is_gone, this_process


@contextmanager
def another_run(out: Path, *, with_worker: bool = False) -> Iterator[int]:
    """A process that holds the output until it is killed; its worker, if any, outlives it a little."""
    ready, tell = os.pipe()
    if (pid := os.fork()) == 0:
        with running(out):
            if with_worker and os.fork() == 0:
                time.sleep(3)
                os._exit(0)
            os.write(tell, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


@pytest.mark.parametrize("with_worker", [False, True])
def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, with_worker: bool) -> None:
    out = tmp_path / "out"
    with another_run(out, with_worker=with_worker) as pid:
        with pytest.raises(InputError, match=rf"out is being written by process {pid} on "), running(out):
            pytest.fail("two at once")
        with running(tmp_path / "elsewhere"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]  # what a killed run leaves
    with running(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made_and_go_away_when_nothing_came(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), running(tmp_path / "a" / "b" / "out"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [".out.lock"]
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file, or lies below one"), running(tmp_path / "file" / "out"):
        pass


def test_of_several_processes_the_first_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with running(tmp_path / "out"):
            pass


def ended() -> str:
    """A process that is no more."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, this_process().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    process = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    return process


def test_processes_are_told_apart() -> None:
    machine, pid, start = this_process().split("-")
    assert not is_gone(this_process())
    assert is_gone(ended())
    assert is_gone(f"{machine}-{pid}-{int(start) - 1}")  # an earlier one of the same number
    assert not is_gone(f"{'0' * 8}-{pid}-{int(start) - 1}")  # of another machine, where nothing can be seen


def test_what_killed_runs_left_goes_away_and_nothing_else(tmp_path: Path) -> None:
    gone, far = ended(), f"{'0' * 8}-1-1"
    out = tmp_path / "out"
    stale = [
        f".out.{gone}-00000000.partial", f".out.{far}-00000000.partial",
        f"out/.model.onnx.{gone}-00000000.partial", f"out/checkpoints/.stage.{gone}-00000000.partial",
    ]  # fmt: skip
    kept = [
        f".out.{this_process()}-00000000.partial", f".out.v2.{gone}-00000000.partial", ".out.partial", ".hidden",
        "out/notes.partial", f"out.{gone}-00000000.partial",
    ]  # fmt: skip
    for name in (*stale, *kept):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / stale[0] / "half").write_text("ha")
    with running(out):
        assert [name for name in (*stale, *kept) if (tmp_path / name).exists()] == kept
    with adding(out):
        assert (out / ".lock").exists()
    assert not (out / ".lock").exists()


def test_the_old_folder_of_a_run_that_was_killed_while_replacing_it_is_put_back(tmp_path: Path) -> None:
    old = tmp_path / f".out.{ended()}-00000000.old"
    old.mkdir()
    (old / "result").write_text("whole")
    with running(tmp_path / "out"):
        assert (tmp_path / "out" / "result").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
