"""Good files made hostile, by a seed: their bytes, their JSON, their ONNX graph, the tree of a data folder."""

import copy
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import onnx

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**70, 1e308, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\0",
    "{{7*7}}", "\ud800", [], [[]], {}, {"": None}, [1, 2, 3], "9" * 5000,
)  # fmt: skip
NAMES = ("x", "../x", "", "checkpoint_path", "__class__")
WHOLE, SINGLE = (-1, 0, 1, 2, 2**31 - 1, 2**31, 2**62, -(2**63)), (0.0, -1.0, 1e38, float("nan"), float("inf"))
ENTRIES = (
    "0/b.png", "0/b.txt", "3/b.png", "0/deep/er/b.png", ".hidden.png", ".0/b.png", "b.png", "train/0/b.png",
    "images/b.png", "masks/b.png", "0/b.PNG", "0/b", "[red]/b.png", "a b/\n.png", "²/b.png", "٣/b.png",
    "9" * 200 + "/b.png", "x" * 250 + ".png", "\udcff/\udc80.png", "0/-1.png", "0/*.png", "CON/b.png", "0/b.tar",
)  # fmt: skip
LINKS = (".", "..", "../..", "nothing", "/dev/zero", "/etc/passwd", "a.png", "0", "0/a.png")
SORTS = ("image", "empty", "noise", "folder", "link", "pipe")


def bytes_changed(good: bytes, choice: random.Random) -> bytes:
    """One to four bits flipped, parts taken out, put in or doubled, or an end cut off."""
    found = bytearray(good)
    for _ in range(choice.randint(1, 4)):
        at, how = choice.randrange(len(found) + 1), choice.randrange(5)
        if how == 0 and at < len(found):
            found[at] ^= 1 << choice.randrange(8)
        elif how == 1:
            del found[at:]
        elif how == 2:
            found[at:at] = choice.randbytes(choice.randint(1, 64))
        elif how == 3:
            found[at : at + choice.randint(1, 64)] = b""
        else:
            found[at:at] = found[at : at + 256]
    return bytes(found)


def json_changed(good: bytes, choice: random.Random) -> bytes:
    """Values and keys of a document exchanged, mostly; else its bytes. Of JSON lines, one is the document."""
    if choice.random() >= 0.8:
        return bytes_changed(good, choice)
    try:
        json.loads(good)
    except ValueError:
        lines = good.splitlines()
        number = choice.randrange(len(lines))
        return b"\n".join([*lines[:number], record_changed(lines[number], choice), *lines[number + 1 :]])
    return record_changed(good, choice)


def record_changed(good: bytes, choice: random.Random) -> bytes:
    """JSON that stays JSON: whoever writes it knows how."""
    document = json.loads(good)
    for _ in range(choice.randint(1, 3)):
        document = _exchanged(document, choice)
    return json.dumps(document).encode()


def _exchanged(document: Any, choice: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return copy.deepcopy(choice.choice(VALUES))
    inside, key = choice.choice(places)
    how = choice.randrange(4)
    if how == 0:
        del inside[key]
    elif how == 1 and isinstance(inside, dict):
        inside[choice.choice(NAMES)] = inside.pop(key)
    else:
        inside[key] = copy.deepcopy(choice.choice(VALUES))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(pairs):
        yield document, key
        yield from _places(value)


def graph_changed(good: bytes, choice: random.Random) -> bytes:
    """An ONNX file of which one to three fields are exchanged, or whose weights are said to lie in another file."""
    model = onnx.ModelProto.FromString(good)
    for _ in range(choice.randint(1, 3)):
        if choice.random() < 0.15:
            weight = choice.choice(model.graph.initializer)
            weight.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", choice.choice(["../x", "/etc/passwd", "plan.json", ""])), ("length", "9")):
                weight.external_data.add(key=key, value=value)
        else:
            _exchange_field(*choice.choice(list(_fields(model))), choice)
    return model.SerializeToString()


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.type == field.TYPE_MESSAGE:
            for each in value if field.is_repeated else [value]:
                yield from _fields(each)


def _exchange_field(message: Any, field: Any, choice: random.Random) -> None:
    if field.is_repeated:
        values = getattr(message, field.name)
        at, how = choice.randrange(len(values)), choice.randrange(3)
        if how == 0:
            del values[at]
        elif how == 1 and field.type == field.TYPE_MESSAGE:
            values.add().CopyFrom(values[at])
        elif field.type != field.TYPE_MESSAGE:
            values[at] = _field_value(field, choice)
    elif field.type == field.TYPE_MESSAGE:
        message.ClearField(field.name)
    else:
        with suppress(ValueError):  # an enumeration that takes no other number
            setattr(message, field.name, _field_value(field, choice))


def _field_value(field: Any, choice: random.Random) -> Any:
    kinds = {field.CPPTYPE_FLOAT: SINGLE, field.CPPTYPE_DOUBLE: SINGLE, field.CPPTYPE_INT64: WHOLE}
    if field.cpp_type in kinds:
        return choice.choice(kinds[field.cpp_type])
    if field.cpp_type == field.CPPTYPE_UINT64:
        return choice.choice([0, 1, 2**63])
    if field.cpp_type == field.CPPTYPE_STRING:
        text = choice.choice(["", "x", "../x", "images", "logits", "Loop", "MatMul", "com.microsoft", "9" * 5000])
        return text.encode() if field.type == field.TYPE_BYTES else text
    return choice.choice([0, 1, 2, 7, 10, 16, 99])  # 32 bits, and what an enumeration has


def tree_changed(good: bytes, choice: random.Random) -> bytes:
    """A data folder, as JSON pairs of path and sort, of which some are taken out, and hostile ones put in."""
    tree: list[list[str]] = json.loads(good)
    for _ in range(choice.randint(1, 6)):
        if tree and choice.random() < 0.3:
            del tree[choice.randrange(len(tree))]
        else:
            tree.append([choice.choice(ENTRIES), choice.choice(SORTS), choice.choice(LINKS)])
    return json.dumps(tree).encode()


def nothing_changed(good: bytes, _choice: random.Random) -> bytes:
    """The file as it is: it is hostile already."""
    return good
