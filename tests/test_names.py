"""Families and methods are known by name to their own rooms alone: everybody else asks them what they can do."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dcvit
from dcvit.families import FAMILIES

ROOT = Path(dcvit.__file__).parent
FAMILY_NAMES = {family.name for family in FAMILIES}
FAMILY_CLASSES = {base.__name__ for family in FAMILIES for base in type(family).__mro__ if base.__module__ != "abc"}
FAMILY_CLASSES -= {"object", "Family"}  # the interface itself is for everybody
METHOD_NAMES = {"dcvit", "practise", "cait"}


def sources(outside: str) -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] != outside]


def relevant(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node but docstrings and other strings that stand for themselves."""
    comments = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return (node for node in ast.walk(tree) if id(node) not in comments)


def strings(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    for node in relevant(tree):
        if isinstance(node, ast.Constant) and node.value in names:
            yield node.lineno, f"the string {node.value!r}"


def family_tests(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in FAMILY_CLASSES:
                    yield node.lineno, f"import of {alias.name}"
        elif isinstance(node, ast.Call) and _last_name(node.func) in ("isinstance", "issubclass"):
            for inner in ast.walk(node.args[1]):
                if _last_name(inner) in FAMILY_CLASSES:
                    yield node.lineno, f"{_last_name(node.func)} of {_last_name(inner)}"
        elif isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Attribute) and side.attr == "name" and _last_name(side.value) == "family":
                    yield node.lineno, "comparison of family.name"


def methods_by_name(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Whole strings; `dcvit` is also this package's logger and a way of counting MACs, which is no method."""
    others = {id(constant) for node in ast.walk(tree) for constant in _not_a_method(node)}
    for node in relevant(tree):
        if isinstance(node, ast.Constant) and node.value in METHOD_NAMES and id(node) not in others:
            yield node.lineno, f"the string {node.value!r}"


def _not_a_method(node: ast.AST) -> Iterable[Any]:
    """The strings `dcvit` in a place that speaks of loggers or of the convention by which MACs are counted."""
    if isinstance(node, ast.Call) and _last_name(node.func) == "getLogger":
        parts: list[ast.AST] = [*node.args]
    elif isinstance(node, (ast.Compare, ast.keyword, ast.Dict, ast.Assign, ast.AnnAssign, ast.Call, ast.Subscript)):
        parts = _beside_convention(node)
    else:
        parts = []
    return [part for top in parts for part in ast.walk(top) if isinstance(part, ast.Constant) and part.value == "dcvit"]


def _beside_convention(node: ast.AST) -> list[ast.AST]:
    """What a comparison, keyword, dictionary, definition, option or choice says of the MACs convention."""
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
            return sides if any("convention" in _words(side) for side in sides) else []
        case ast.keyword(arg=str(name), value=value) if "convention" in name:
            return [value]
        case ast.Dict():
            return [v for k, v in zip(node.keys, node.values, strict=True) if k and "convention" in _words(k)]
        case ast.Assign(targets=[target], value=value) if "convention" in _words(target):
            return [value]
        case ast.AnnAssign(target=target, value=value) if "convention" in _words(target):
            return [node.annotation, *([value] if value else [])]
        case ast.Call(args=[ast.Constant(value=str(flag)), *_]) if "convention" in flag:
            return [*node.args, *(keyword.value for keyword in node.keywords)]
        case _:
            return []


def _words(node: ast.AST) -> str:
    return ast.unparse(node).lower()


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def found(outside: str) -> list[str]:
    lines = []
    for path in sources(outside):
        tree = ast.parse(path.read_text())
        if outside == "families":
            seen = [*strings(tree, FAMILY_NAMES), *family_tests(tree)]
        else:
            seen = [*methods_by_name(tree)]
        lines += [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in sorted(seen)]
    return lines


@pytest.mark.parametrize("room", ["families", "methods"])
def test_nobody_outside_knows_their_names(room: str) -> None:
    lines = found(room)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "source",
    [
        'if family.name == "a": pass',
        "if job.family.name not in names: pass",
        'if kind in ("vit", "other"): pass',
        'lookup = {"swin": 1}',
        "isinstance(job.family, ResnetFamily)",
        "isinstance(family, (families.SwinFamily, int))",
        "from dcvit.families.staged import StagedFamily",
    ],
)
def test_a_test_of_a_family_is_seen(source: str) -> None:
    tree = ast.parse(source)
    assert [*strings(tree, FAMILY_NAMES), *family_tests(tree)]


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ('if method == "cait": pass', True),
        ('Choice(["dcvit", "practise"])', True),
        ('chosen = settings.get("method", "dcvit")', True),
        ('{"method": "dcvit", "macs_convention": "full"}', True),
        ('{"macs_convention": "dcvit"}', False),
        ('option("--macs-convention", type=Choice(["full", "dcvit"]))', False),
        ('MacsConvention = Literal["full", "dcvit"]', False),
        ('macs_convention: Literal["full", "dcvit"] = "dcvit"', False),
        ('if convention == "dcvit": pass', False),
        ('count(model, macs_convention="dcvit")', False),
        ('logging.getLogger("dcvit")', False),
        ('"""cait"""', False),
        ('say("use --method cait")', False),  # words for the user
    ],
)
def test_a_method_s_name_is_seen_and_other_meanings_are_not(source: str, seen: bool) -> None:
    assert bool([*methods_by_name(ast.parse(source))]) == seen
