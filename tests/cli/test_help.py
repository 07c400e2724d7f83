"""What `--help` says of options that are fields: names, types, ranges and defaults."""

import re
from collections.abc import Callable
from typing import Any

import pytest

Tool = Callable[..., Any]

PRECISION = "--precision [fp32|fp16|bf16|int8|fp8]"
OF_A_VARIANT = ("--batch INTEGER Images in every batch. [default: 64]", PRECISION)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bench", (
            PRECISION,
            "--batch INTEGER Images in every batch; repeatable: 1 for latency, 64 for throughput. [default: 64]",
            "--with-preprocessing Time the exported files that take pixels.",
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
            *OF_A_VARIANT,
            "or 'shapes'. [required]",
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
