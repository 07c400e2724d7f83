"""A folder is as it was or as it is to be, whenever a process is killed, a disk is full, or two write at once."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcvit.errors import InputError, WriteError
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build
from dcvit.plan import CompressionPlan

from .kills import forked

MakeFolder = Callable[..., ModelFolder]
State = dict[str, bytes]

EXPORT = {"kind": "note"}


@pytest.fixture
def first(tmp_path: Path, make_folder: MakeFolder, tiny_plan: CompressionPlan) -> Path:
    folder = make_folder(tmp_path / "first", tiny_plan)
    folder.add("note.txt", lambda path: path.write_text("old") and None, EXPORT)
    folder.add("other.txt", lambda path: path.write_text("other") and None)
    return folder.path


def put(path: Path, text: str) -> None:
    path.write_text(text)


def state(path: Path) -> State:
    """The files that a folder lists, which opening it checks, and whether what it says of them is said."""
    folder = ModelFolder(path)
    assert set(folder.manifest.exports) == {"note.txt"} & set(folder.manifest.files)
    return {name: (path / name).read_bytes() for name in folder.manifest.files}


def hidden(path: Path) -> list[str]:
    return [each.name for place in (path, path.parent) for each in place.iterdir() if each.name.startswith(".")]


def add_new(path: Path) -> None:
    ModelFolder(path).add("new.txt", lambda aside: put(aside, "new"))


def replace(path: Path) -> None:
    ModelFolder(path).add("note.txt", lambda aside: put(aside, "new"), EXPORT)


def replace_by_two(path: Path) -> None:
    def write(aside: Path) -> None:
        put(aside, "graph")
        put(aside.with_name("note.txt.data"), "weights")

    ModelFolder(path).add("note.txt", write, EXPORT, ("note.txt.data",))


def replace_two_by_one(path: Path) -> None:
    ModelFolder(path).add("note.txt", lambda aside: put(aside, "new"), EXPORT, ("other.txt",))


def remove(path: Path) -> None:
    ModelFolder(path).remove(["note.txt", "other.txt"])


def create(path: Path) -> None:
    folder = ModelFolder(path)
    plan = folder.plan.replace(trims_last_block=True)
    torch.manual_seed(0)
    texts = {"train.jsonl": "{}\n", "note.txt": "newer"}
    ModelFolder.create(path, build(plan), plan, folder.manifest.model_copy(deep=True), overwrite=True, texts=texts)


CHANGES = [add_new, replace, replace_by_two, replace_two_by_one, remove, create]


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_moment_it_is_the_old_or_the_new(
    first: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    _kill_at_each_moment(first, tmp_path, change)


def test_so_is_a_folder_that_is_replaced_where_the_system_cannot_exchange(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcvit.files.exchange", lambda *_: False)
    _kill_at_each_moment(first, tmp_path, create)


def _kill_at_each_moment(first: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    done = Path(shutil.copytree(first, tmp_path / "done" / "model"))
    change(done)
    old, new = state(first), state(done)
    assert old != new
    seen = []
    for moment in range(200):
        path = Path(shutil.copytree(first, tmp_path / str(moment) / "model"))
        status = forked(lambda path=path: change(path), root=path.parent, at=moment).status  # type: ignore[misc]
        found = state(path)
        assert found in (old, new), moment
        seen.append(found == new)
        if status == 0:
            break
        assert status == -9
        again = ModelFolder(path)
        again.add("more.txt", lambda aside: put(aside, "more"))
        change(path)
        assert state(path) == (new if change is create else new | {"more.txt": b"more"})
        assert hidden(path) == []
    assert seen == sorted(seen)  # once new it is new for good
    assert seen[-1]
    assert len(seen) > 8
    assert hidden(path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("function", ["fsync", "replace", "mkdir", "open"])
def test_refused_at_any_moment_it_is_whole_and_the_error_one_line(
    first: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    old, original = state(first), getattr(os, function)
    for moment in range(50):
        calls = 0

        def refuse(*arguments: object, moment: int = moment, **more: object) -> object:
            nonlocal calls
            if function == "open" and not int(arguments[1]) & os.O_CREAT:  # type: ignore[call-overload]
                return original(*arguments, **more)
            calls += 1
            if calls == moment + 1:
                raise OSError(number, os.strerror(number), arguments[0])
            return original(*arguments, **more)

        folder = ModelFolder(first)
        with monkeypatch.context() as patch:
            patch.setattr(os, function, refuse)
            try:
                folder.add("note.txt", lambda aside: put(aside, "new"), EXPORT)
                said = None
            except WriteError as error:
                said = str(error)
        assert said is None or f" cannot be written: {os.strerror(number).lower()}; " in said
        found = state(first)
        assert found in (old, old | {"note.txt": b"new"})
        if calls <= moment:
            break
        ModelFolder(first).add("note.txt", lambda aside: put(aside, "old"), EXPORT)
        assert hidden(first) == []
    assert moment > 0
    assert found["note.txt"] == b"new"


def test_a_disk_that_is_full_while_a_folder_is_written_leaves_the_old(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = state(first)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # `write` names no file

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(WriteError, match="first cannot be written: no space left on device"):
        create(first)
    assert state(first) == old
    assert hidden(first) == []


def test_two_writers_at_once_lose_nothing(first: Path) -> None:
    def write(writer: int) -> None:
        folder = ModelFolder(first)
        for number in range(10):
            folder.add(f"{writer}-{number}.txt", lambda aside: put(aside, "x" * 100_000))

    workers = []
    for writer in range(2):
        if (pid := os.fork()) == 0:
            try:
                write(writer)
            except BaseException:
                os._exit(1)
            os._exit(0)
        workers.append(pid)
    while not all(done := [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in workers]):
        ModelFolder(first)  # whoever reads meanwhile finds it whole
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [0, 0]
    assert len(done) == 2
    assert {f"{writer}-{number}.txt" for writer in range(2) for number in range(10)} <= set(state(first))
    assert hidden(first) == []


def test_what_is_read_while_writing_is_as_on_disk(first: Path) -> None:
    one, other = ModelFolder(first), ModelFolder(first)
    one.add("one.txt", lambda aside: put(aside, "1"))
    seen: set[str] = set()
    other.add("two.txt", lambda _: seen.update(other.manifest.files) or put(_, "2"))
    assert "one.txt" in seen


def test_nothing_is_added_to_another_model_that_took_the_place(first: Path) -> None:
    folder = ModelFolder(first)
    create(first)
    new = state(first)
    for change in (lambda: folder.add("x", lambda aside: put(aside, "x")), lambda: folder.remove(["note.txt"])):
        with pytest.raises(InputError, match="was replaced by another model"):
            change()
    assert state(first) == new


def test_opening_writes_nothing_where_nothing_is_pending(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked(lambda: replace(first), root=first, at=3)
    (first / f".left.txt.{'0' * 64}.pending").write_text("of a run that was killed before it counted")

    def refuse(*_: object) -> None:
        raise WriteError("read-only")

    monkeypatch.setattr("dcvit.folder.model_folder.adding", refuse)
    assert state(first)["note.txt"] == b"old"
    note = ModelFolder(first).manifest.files["note.txt"]
    (first / "note.txt").rename(first / f".note.txt.{note.sha256}.pending")
    with pytest.raises(InputError, match="cut off and is to be finished, but read-only"):
        ModelFolder(first)
    (first / f".note.txt.{note.sha256}.pending").unlink()
    with pytest.raises(InputError, match="note.txt is missing"):
        ModelFolder(first)


def test_a_listed_file_that_is_gone_can_be_removed_and_made_again(first: Path) -> None:
    folder = ModelFolder(first)
    (first / "note.txt").unlink()
    folder.remove(["note.txt"])
    assert set(state(first)) == {"plan.json", "model.safetensors", "other.txt"}
