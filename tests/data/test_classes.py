"""The order of classes: of a class map, of the data, and of a model folder that knows one."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcvit.data import class_names, names_of, open_source
from dcvit.data.classes import check_order
from dcvit.errors import InputError


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Eleven classes whose folders are called 1 to 11, one image each, of its own grey."""
    for number in range(1, 12):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        Image.new("RGB", (16, 16), (20 * number,) * 3).save(tmp_path / "set" / str(number) / "0.png")
    return tmp_path / "set"


def as_text() -> list[str]:
    return sorted(str(number) for number in range(1, 12))


def labels(source: Any) -> list[int]:
    return [source.read(index)[1] for index in range(len(source))]


def test_a_class_map_numbers_the_classes(numbered: Path) -> None:
    assert labels(open_source(numbered, "test")) == list(range(11))
    mapped = open_source(numbered, "test", class_map=as_text())
    assert mapped.classes == as_text()
    assert labels(mapped) == [0, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]  # of 1, 2, … 11


def test_a_map_may_hold_classes_without_images_and_not_the_other_way_round(numbered: Path) -> None:
    more = open_source(numbered, "test", class_map=["0", *as_text(), "12"])
    assert len(more.classes) == 13
    assert labels(more)[0] == 1
    with pytest.raises(InputError, match=r"--class-map: it lacks classes of .*: 11; it holds 1, 10, 2"):
        open_source(numbered, "test", class_map=[name for name in as_text() if name != "11"])
    with pytest.raises(InputError, match="have no labels"):
        open_source(numbered / "1", "test", class_map=["a", "b"])


def test_shards_of_one_set_are_joined_by_their_map(numbered: Path) -> None:
    """Each has classes of its own; only the map makes them one set."""
    for shard, number in (("one", "1"), ("two", "2")):
        (numbered.parent / shard).mkdir()
        for name in (number, "3"):
            (numbered.parent / shard / name).mkdir()
            Image.new("RGB", (8, 8)).save(numbered.parent / shard / name / "0.png")
    joined = open_source(str(numbered.parent / "[ot][nw]*"), "test", class_map=("3", "2", "1"))
    assert labels(joined) == [2, 0, 1, 0]


def test_the_warning_says_what_to_do(numbered: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(numbered, "test")
    (record,) = caplog.records
    assert "torchvision's ImageFolder has them as text: 1, 10, 11, 2" in record.getMessage()
    assert "give --class-map FILE" in record.getMessage()


def test_names_of_a_model_come_from_a_map_first_then_from_itself_then_from_the_data(numbered: Path) -> None:
    plain, mapped = open_source(numbered, "test"), open_source(numbered, "test", class_map=as_text())
    natural = tuple(str(number) for number in range(1, 12))
    assert class_names(None, plain, 11) == natural
    assert class_names(None, plain, 1000) is None
    assert class_names(("a",) * 11, plain, 11) == ("a",) * 11
    assert class_names(("a",) * 11, mapped, 11) == tuple(as_text())
    assert class_names(None, None, 11) is None
    assert names_of(open_source(numbered / "1", "test")) is None


def test_another_order_is_refused_and_other_words_are_told(numbered: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(numbered, "test")
    caplog.clear()
    check_order(None, source, "small")
    check_order(source.classes, source, "small")
    assert not caplog.records
    with pytest.raises(InputError, match=r"class 1 is '2' in .*set, and '10' in small.*give --class-map FILE"):
        check_order(as_text(), source, "small")
    words = [f"grade {number}" for number in range(11)]
    check_order(words, source, "small")
    assert "class 0 is '1'" in caplog.records[-1].getMessage()
    check_order(as_text(), open_source(numbered, "test", class_map=source.classes), "small")
    assert "the order of --class-map counts" in caplog.records[-1].getMessage()
