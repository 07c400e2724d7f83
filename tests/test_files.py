"""Files and folders that appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcvit.errors import InputError, WriteError
from dcvit.files import exchange, json_text, plain_name, refusal, whole_file, whole_folder


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot")
    assert [(tmp_path / name / "file").read_text() for name in "ab"] == ["b", "a"]
    with pytest.raises(FileNotFoundError, match="c"):
        exchange(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_a_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool, linked: bool) -> None:
    if not atomic:
        monkeypatch.setattr("dcvit.files.exchange", lambda *_: False)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("old")
    path = tmp_path / "real"
    if linked:
        path = tmp_path / "link"
        path.symlink_to("real")
    with whole_folder(path, overwrite=True) as aside:
        (aside / "new").write_text("new")
        assert (path / "old").exists()
    assert [each.name for each in path.iterdir()] == ["new"]
    assert {each.name for each in tmp_path.iterdir()} == ({"real", "link"} if linked else {"real"})
    assert path.is_symlink() == linked


@pytest.mark.parametrize("overwrite", [True, False])
def test_two_write_a_folder_at_once(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "folder"

    def second() -> None:
        with whole_folder(path, overwrite=overwrite) as aside:
            (aside / "file").write_text("second")
            with whole_folder(path, overwrite=overwrite) as first:
                (first / "file").write_text("first")

    if overwrite:
        second()
    else:
        with pytest.raises(InputError, match="was written by another run in the meantime, and stays as it is"):
            second()
    assert (path / "file").read_text() == ("second" if overwrite else "first")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_what_libraries_leave_beside_a_file_goes_with_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_file(tmp_path / "weights") as aside:
        save_file({"a": torch.ones(2)}, aside)
        (aside.parent / ".tmpABC").write_text("of a library that also writes aside")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_whoever_says_it(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        said = "weights cannot be written: no space left on device; free some space"
        with pytest.raises(WriteError, match=said), whole_file(tmp_path / "weights"):
            raise error
    assert "a file stands where" in str(refusal(NotADirectoryError(errno.ENOTDIR, "x")))
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert refusal(ValueError("os error 28")) is None
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_a_folder_is_filled_is_the_folder_s_only_if_it_is_in_it(tmp_path: Path) -> None:
    said, out = "out cannot be written: permission denied", tmp_path / "out"
    with pytest.raises(WriteError, match=said), whole_folder(out, overwrite=False) as aside:
        raise PermissionError(errno.EACCES, "Permission denied", str(aside / "x"))
    with pytest.raises(PermissionError), whole_folder(tmp_path / "out", overwrite=False):
        raise PermissionError(errno.EACCES, "Permission denied", "photos/1.jpg")


def test_a_file_has_the_permissions_that_files_have(tmp_path: Path) -> None:
    with whole_file(tmp_path / "deep" / "file") as aside:
        aside.write_text("x")
    (tmp_path / "other").write_text("x")
    assert (tmp_path / "deep" / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert os.listdir(tmp_path / "deep") == ["file"]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "c:x", 0.5])
def test_a_name_that_leads_out_of_a_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no name of a file"):
        plain_name(name)
    assert plain_name("model.b64.fp32.onnx") == "model.b64.fp32.onnx"


def test_json_is_strict() -> None:
    found = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("-inf"), "NaN")}}
    assert json_text(found) == '{"a": null, "b": [1.5, null], "c": {"d": [null, "NaN"]}}'


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    assert plain_name("ä" * 127) == "ä" * 127
    with pytest.raises(InputError, match=r"^'ääää.*'… is too long a name of a file \(128 letters\)$"):
        plain_name("ä" * 128)
