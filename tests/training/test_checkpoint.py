"""The state of a training, and its log, as they are found after a run that was killed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dcvit.errors import InputError
from dcvit.sealed import read_sealed, write_sealed
from dcvit.training.checkpoint import TrainingState, read_state, write_state
from dcvit.training.log import TrainingLog

RECORDS: list[dict[str, Any]] = [
    {"step": step, "epoch": 0.1, "loss": 0.5, "losses": {"kl": 0.5}, "lr": 1e-3, "images_per_second": 9.0,
     "seconds": 1.0}
    for step in (1, 2, 3)
]  # fmt: skip


def test_a_damaged_checkpoint_is_refused_wherever_the_bit_is(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    write_state(path, "run", TrainingState(3, 1.5, {"model": {"w": torch.arange(4.0)}, "taken": [1, torch.ones(2)]}))
    state = read_state(path, "run")
    assert state is not None
    assert (state.step, state.seconds, state.parts["taken"][0]) == (3, 1.5, 1)
    assert torch.equal(state.parts["model"]["w"], torch.arange(4.0))
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(InputError, match=r"training\.safetensors is damaged \(.*start anew with --overwrite"):
            read_state(path, "run")


@pytest.mark.parametrize(
    "end", ['{"step": 3, "lo', "{", "\0\0\0", "3", '{"step": null}\n', '{"step": 3, "loss": "low"}', "\udcff"]
)
def test_a_last_line_that_was_being_written_is_dropped(tmp_path: Path, end: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in RECORDS) + end, errors="surrogateescape")
    log = TrainingLog(path)
    log.resume(2)
    assert log.records == RECORDS[:2]
    log.add(RECORDS[2], 3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


def test_a_last_line_without_its_end_counts_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in RECORDS))
    log = TrainingLog(path)
    log.resume(3)
    assert log.records == RECORDS


def test_another_broken_line_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(each) for each in RECORDS]
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"train\.jsonl: line 2 is no record .* --overwrite"):
        TrainingLog(path).resume(3)
    assert path.read_bytes() == before


def strict(text: str) -> Any:
    """What JSON says; NaN and Infinity are no JSON."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_the_log_is_strict_json(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "train.jsonl")
    log.resume(0)
    log.add(RECORDS[0] | {"losses": {"kl": math.nan}, "lr": math.inf}, 3)
    assert [strict(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == [
        RECORDS[0] | {"losses": {"kl": None}, "lr": None}
    ]
    assert strict(log.text) == strict((tmp_path / "train.jsonl").read_text())


def test_a_sealed_record_is_strict_json_and_comes_back_as_it_was(tmp_path: Path) -> None:
    record = {"kl": math.nan, "each": [1.5, math.inf, {"low": -math.inf}], "name": "nan", "none": None, "pair": (1, 2)}
    write_sealed(tmp_path / "stage", {"w": torch.ones(2)}, record)
    with safe_open(tmp_path / "stage", framework="pt") as file:
        strict(file.metadata()["record"])
    found = read_sealed(tmp_path / "stage")
    assert found is not None
    assert math.isnan(found[1].pop("kl"))
    assert found[1] == {"each": [1.5, math.inf, {"low": -math.inf}], "name": "nan", "none": None, "pair": [1, 2]}


@pytest.mark.parametrize(
    "change",
    [
        {"parts": {}},
        {"parts": {"items": 3}},
        {"parts": {"items": [["model", {"tensor": "/none"}]]}},
        {"parts": {"value": 3}},
        {"parts": [1, 2]},
        {"step": "3"},
        {"step": None},
        {"seconds": []},
        None,
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_though_its_checksum_is_right(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "training.safetensors"
    write_state(path, "run", TrainingState(3, 1.5, {"model": {"w": torch.ones(2)}}))
    found = read_sealed(path)
    assert found is not None
    write_sealed(path, found[0], {} if change is None else found[1] | change)
    with pytest.raises(InputError, match=r"training\.safetensors is no state of this training \(.*--overwrite$"):
        read_state(path, "run")
