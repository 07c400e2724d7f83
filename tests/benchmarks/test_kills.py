"""What the study of kills does to a process."""

import errno
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KILLS: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "kills.py"))
forked: Callable[..., Any] = KILLS["forked"]


def three_files(root: Path) -> Callable[[], None]:
    def work() -> None:
        for name in "abc":
            (root / name).write_text("12345678")

    return work


@pytest.mark.parametrize(("at", "left"), [(None, ["a", "b", "c"]), (0, []), (2, ["a", "b"])])
def test_a_kill_comes_before_a_change(tmp_path: Path, at: int | None, left: list[str]) -> None:
    ended = forked(three_files(tmp_path), root=tmp_path, at=at)
    assert (ended.status, ended.changes) == ((0, 3) if at is None else (-9, None))
    assert sorted(os.listdir(tmp_path)) == left


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_change_may_be_refused(tmp_path: Path, number: int) -> None:
    def work() -> None:
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            three_files(tmp_path)()
        assert raised.value.errno == number

    assert forked(work, root=tmp_path, refuse=number).status == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("limit", "sizes"), [(4, [4]), (8, [8, 8, 8])])
def test_a_disk_may_be_full(tmp_path: Path, limit: int, sizes: list[int]) -> None:
    assert forked(three_files(tmp_path), root=tmp_path, limit=limit).status == (1 if limit < 8 else 0)
    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == sizes


def test_two_at_once(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / f"{os.getpid()}").touch()

    assert KILLS["two_forked"](work, root=tmp_path, output=Path(os.devnull)) == [0, 0]
    assert len(os.listdir(tmp_path)) == 2
