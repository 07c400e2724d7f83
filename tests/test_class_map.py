"""Files of class names."""

from pathlib import Path

import pytest

from dcvit.class_map import read_class_map
from dcvit.errors import InputError


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("dog 1\ncat 0\nbig bird 2\n", ("cat", "dog", "big bird")),
        ("b\t1\r\na\t0\r\n", ("a", "b")),
        ("camera 7\ncamera 9\n", ("camera 7", "camera 9")),  # the number belongs to the name
        ("\ufeff1\n10\n2\n", ("1", "10", "2")),
    ],
)
def test_one_name_a_line_or_a_name_and_its_index(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    assert read_class_map(written(tmp_path / "map.txt", text)) == names


def test_names_and_indices_in_python() -> None:
    assert read_class_map(None) is None
    assert read_class_map(["b", "a"]) == ("b", "a")
    assert read_class_map({"a": 1, "b": 0}) == ("b", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "names 'a' twice"),
        ("a\n\nb\n", "line 2 of .* is empty"),
        ("a\t0\nb\t2\n", "gives no class the index 1; give each of 0 to 1 once"),
        ("a\n", "holds 1 names"),
    ],
)
def test_what_is_no_class_map(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_class_map(written(tmp_path / "map.txt", text))
    with pytest.raises(InputError, match="there is no file"):
        read_class_map(tmp_path / "other.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_class_map(tmp_path)
