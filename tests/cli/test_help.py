"""What `--help` says of options that are fields: names, types, ranges and defaults."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcvit.cli.main import COMMANDS

Tool = Callable[..., Any]

PRECISION = "--precision [fp32|fp16|bf16|int8|fp8]"
OF_A_CHOICE = (
    "--batch INTEGER Images in every batch. [default: 64, or what is exported]",
    "Of the computation. [default: fp32, or what is exported]",
)
OF_A_VARIANT = ("--batch INTEGER Images in every batch. [default: 64]", PRECISION)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bench", (
            "--batch INTEGER Images in every batch; repeatable: 1 for latency, 64 for throughput. "
            "[default: 64, or what is exported]",
            "Of the computation. [default: fp32, or what is exported]",
            "--with-preprocessing / --no-with-preprocessing Time the exported files that take pixels. "
            "[default: what is exported]",
            "--against TEXT Another model folder or a timm name. [default: the folder's model, uncompressed]",
            "--runtime TEXT A runtime that `dcvit-tool doctor` lists; repeatable. "
            "[default: onnxruntime, or a GPU's fastest]",
            "--against-precision [fp32|fp16|bf16|int8|fp8] Of the other model. [default: the same]",
            "--threads INTEGER RANGE CPU threads of each model. [default: all cores] [x>=1]",
            "--protocol [default|paper]",
            "[default: until ±1 %, or 500]",
            "[default: 60, or none with --runs]",
            "--memory / --no-memory Measure peak memory in fresh processes. [default: memory]",
            "--check BASELINE The regression gate",
            "--undecided [pass|fail]",
            "that is too near to the limit to tell. [default: fail]",
            "--tolerance FLOAT With --update: share it may fall by. [default: 0.05, or as it was]",
        )),
        ("evaluate", (
            *OF_A_CHOICE,
            "'shapes' or 'thin-shapes'. [required]",
            "--runtime TEXT A runtime that `dcvit-tool doctor` lists. [default: torch]",
            "--as-original-of FOLDER",
            "--checkpoint FILE",
            "--random-init Random weights",
            "--model-kwargs JSON",
            "[OPTIONS] MODEL",
        )),
        ("export", (
            PRECISION,
            "--batch N|dynamic Images in every batch; repeatable, one file each. "
            "'dynamic' leaves the number open. [default: 64]",
            "--profile MIN,OPT,MAX",
            "Of the graph; images, logits and layer norms stay fp32.",
            "--with-preprocessing The graph takes pixels of the model's input size",
            "--evaluate IMAGES",
            "--max-drop POINTS",
            "(exit status 1). [default: 1]",
            "--flavor [tensorrt|tensorrt-rtx]",
            "--compute-capability X.Y",
        )),
        ("verify", ("[OPTIONS] FOLDER", "--data TEXT Real images", "[default: what it is for]")),
        ("inspect", ("[OPTIONS] FOLDER", "--pictures PATH", "--layers List the layers")),
        ("report", ("[OPTIONS] FOLDER",)),
        ("package", (PRECISION, "--for [triton|onnxruntime|tensorrt|openvino] What is to run it. [required]")),
        ("demo", ("-o, --out PATH The model folder to write. [default: dcvit-demo]", "--overwrite Replace")),
    ],
)  # fmt: skip
def test_names_types_and_defaults(tool: Tool, command: str, said: tuple[str, ...]) -> None:
    ended = tool(command, "--help")
    assert ended.status == 0
    text = re.sub(r"\s+", " ", ended.stdout)
    assert [line for line in said if line not in text] == []
    assert "None" not in text


def groups(text: str) -> dict[str, list[str]]:
    """The options below each heading of a help."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            found[line[:-1]] = []
        elif option := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            found[[*found][-1]].append(option[1])
    return found


def test_compress_is_in_groups_and_shows_the_method_that_is_asked_about(tool: Tool) -> None:
    few_shot, cait, practise = (
        groups(tool("compress", *arguments).stdout)
        for arguments in (["--help"], ["--method", "cait", "--help"], ["--help", "--method=practise"])
    )
    assert [*few_shot] == [
        "What to compress",
        "Target",
        "Method",
        "DC-ViT (few-shot block compression): --method dcvit",
        "Run",
        "Examples",
    ]
    assert {"--data", "--out", "--checkpoint", "--model-kwargs", "--samples"} <= {*few_shot["What to compress"]}
    assert {"--macs-reduction", "--speedup", "--merge", "--preset", "--plan"} <= {*few_shot["Target"]}
    assert {"--seed", "--resume", "--json", "--quiet", "--verbose", "--debug"} <= {*few_shot["Run"]}
    own = {"--steps", "--search", "--examination"}, {"--epochs", "--distill", "--widths"}
    assert own[0] <= {*few_shot["DC-ViT (few-shot block compression): --method dcvit"]}
    assert own[1] <= {*cait["CAIT (token merging and channel pruning): --method cait"]}
    flat_few, flat_cait, flat_practise = (
        {option for found in help_.values() for option in found} for help_ in (few_shot, cait, practise)
    )
    assert not own[1] & flat_few
    assert not own[0] & flat_cait
    assert ("--keep-heads" in flat_few, "--keep-heads" in flat_practise) == (True, False)
    assert groups(tool("compress", "--preset", "cait-tiny", "--help").stdout) == cait


def test_the_examples_of_compress_are_commands(tool: Tool) -> None:
    shown = tool("compress", "--help").stdout.split("Examples:\n")[1].split("\n\n")[0]
    lines = [line.strip() for line in shown.replace("\\\n", " ").splitlines()]
    assert len(lines) == 3
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "dcvit-tool"
        ended = tool(*arguments, "--from-manifest", "none.json")  # refused after all options were read
        assert "--from-manifest decides it" in ended.error


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_is_plain_text_with_the_common_options(tool: Tool, command: str) -> None:
    text = tool(*filter(None, [command]), "--help").stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    if command:
        assert all(option in text for option in ("--json", "-q, --quiet", "-v, --verbose", "--debug"))


@pytest.mark.parametrize("arguments", [[], ["--keep-heads"], ["--merge", "none"], ["--method", "practise"]])
def test_a_missing_target_is_said_before_anything_is_read(tool: Tool, tmp_path: Path, arguments: list[str]) -> None:
    """Neither the model nor the images are there, and the weights would have to be fetched."""
    ended = tool("compress", "no_such_model", "--data", "nowhere", *arguments, "-o", tmp_path / "out")
    assert ended.status == 2
    assert ended.error.startswith("nothing to do: give a target, such as --macs-reduction 0.3")
