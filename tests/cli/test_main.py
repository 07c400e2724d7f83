"""The frame of the command line: fast help, one-line errors, exit statuses, JSON on stdout."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dcvit.cli.main import COMMANDS, cli
from dcvit.errors import InputError

TINY = json.dumps({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10})
MODEL = ["vit_tiny_patch16_224", "--model-kwargs", TINY]


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs the tool in this process, in an empty folder: what a shell would see, without importing torch each time."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        capfd.readouterr()
        try:
            cli(list(arguments))
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return Outcome(status, *capfd.readouterr())

    return call


Run = Callable[..., Outcome]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from dcvit.cli.main import cli\n"
        f"try: cli({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'onnx', 'onnxruntime', 'polygraphy', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--help" in result.stdout


def test_every_command_has_help(run: Run) -> None:
    listed = run("--help").stdout
    for name in ("plan", "compress", "export", "verify", "evaluate", "bench", "inspect", "doctor", "demo"):
        assert f"  {name} " in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres"], "No such command 'compres'"),
        (["plan", "vit_tinny_patch16_224", "--macs-reduction", "0.1"], "did you mean vit_tiny_patch16_224"),
        (["plan", "efficientnet_b0", "--macs-reduction", "0.1"], "EfficientNet is not supported; supported: Vision"),
        (["plan", *MODEL, "--macs-reduction", "0.9"], "out of reach; compressing 1 to 2 blocks takes"),
        (["plan", *MODEL, "--macs-reduction", "1.5"], "is not in the range 0<x<1"),
        (["plan", *MODEL, "--merge", "horizontal@4"], "has 4 blocks, so horizontal@4 is at no block"),
        (["plan", *MODEL], "nothing to do: give --macs-reduction, --merge or --plan"),
        (["plan", *MODEL, "--plan", "nowhere.json"], "cannot read the plan nowhere.json"),
        (["plan", "vit_tiny_patch16_224", "--model-kwargs", "{depth: 3}"], "is not JSON"),
        (["compress", *MODEL, "--random-init", "--merge", "horizontal@2", "-o", "out"], "recovery needs images"),
        (["compress", *MODEL, "--random-init", "--merge", "horizontal@2", "-o", "out", "--data", "nowhere"],
         "there is nothing at nowhere"),
        (["compress", *MODEL, "--checkpoint", "no.pth", "--merge", "horizontal@2", "-o", "out", "--data", "digits"],
         "there is no file no.pth"),
        (["inspect", "nowhere"], "nowhere is not a model folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_too_and_debug_shows_where(run: Run) -> None:
    result = run("inspect", "nowhere", "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["exit_status"] == 2
    with pytest.raises(InputError):
        cli(["inspect", "nowhere", "--debug"])


def test_compress_and_inspect_speak_json(run: Run, tmp_path: Path) -> None:
    arguments = ["compress", *MODEL, "--random-init", "--data", "digits", "--samples", "8", "--steps", "1"]
    result = run(*arguments, "--macs-reduction", "0.3", "-o", "out", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["macs_after"] <= 0.7 * report["macs_before"]
    assert "MACs" in result.stderr
    again = run(*arguments, "--macs-reduction", "0.3", "-o", "out")
    assert again.returncode == 2
    assert "out exists; pass --overwrite" in again.stderr
    shown = json.loads(run("inspect", "out", "--json").stdout)
    assert shown["plan_digest"] == report["plan_digest"]
    assert set(shown["manifest"]["files"]) == {"plan.json", "model.safetensors"}
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    broken = run("inspect", "out")
    assert broken.returncode == 2
    assert "model.safetensors has changed" in broken.stderr


def test_recipe_paper_and_practise_go_through(run: Run) -> None:
    common = ["compress", *MODEL, "--random-init", "--data", "digits", "--samples", "8", "--steps", "1", "--json"]
    paper = run(*common, "--macs-reduction", "0.3", "-o", "paper", "--recipe", "paper", "--metric", "train")
    assert paper.returncode == 0, paper.stderr
    manifest = json.loads(run("inspect", "paper", "--json").stdout)["manifest"]
    assert manifest["settings"]["search"] == "trials"
    assert manifest["settings"]["nodes"] == "random"
    assert manifest["settings"]["metric"] == "train"  # a flag that is given wins
    assert manifest["settings"]["training"]["lr"] == 3e-5
    assert manifest["settings"]["target"]["macs_convention"] == "dcvit"
    assert manifest["settings"]["target"]["width_multiple"] == 1
    practise = run(*common, "--macs-reduction", "0.2", "-o", "practise", "--method", "practise")
    assert practise.returncode == 0, practise.stderr
    assert {block["removed"] for block in json.loads(practise.stdout)["plan"]["blocks"]} == {"block"}
    assert json.loads(run("inspect", "practise", "--json").stdout)["manifest"]["method"] == "practise"


def test_plan_needs_neither_data_nor_weights(run: Run) -> None:
    result = run("plan", *MODEL, "--method", "dcvit", "--macs-reduction", "0.3", "--json")
    report = json.loads(result.stdout)
    for key in (
        "macs_before",
        "macs_after",
        "params_before",
        "params_after",
        "tokens",
        "blocks_compressed",
        "mlp_hidden",
    ):
        assert key in report
    assert report["tokens"] == [17] * 4


def test_doctor_says_what_is_missing_and_how_to_get_it(run: Run) -> None:
    report = json.loads(run("doctor", "--json").stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["runtime torch"]["usable"]
    assert findings["runtime onnxruntime"]["usable"]
    assert all(finding["detail"] for finding in findings.values())


@pytest.mark.parametrize(("flag", "aware", "said"), [
    ((), None, True), (("--size-aware",), True, False), (("--no-size-aware",), None, False),
])  # fmt: skip
def test_plan_says_whether_attention_is_size_aware(
    run: Run, flag: tuple[str, ...], aware: bool | None, said: bool
) -> None:
    shown = json.loads(run("plan", *MODEL, "--merge", "horizontal@2", *flag, "--json").stdout)
    assert shown["plan"].get("size_aware_attention") == aware
    assert ("not size-aware here" in shown["note"]) == said


COMPRESS = ["compress", *MODEL, "--random-init", "--data", "digits", "--macs-reduction", "0.3", "-o", "out"]


@pytest.mark.parametrize(
    ("which", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize(
    ("arguments", "function", "advice"),
    [
        (COMPRESS, "dcvit.compression.compress", "what is done is kept; give the same command with --resume to go on"),
        (["inspect", "out"], "dcvit.inspection.inspect", "give the same command to start again"),
    ],
)
def test_a_signal_clears_up_and_says_how_to_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, which: int, status: int, word: str,
    arguments: list[str], function: str, advice: str,
) -> None:  # fmt: skip
    cleared = []

    def work(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), which)
            time.sleep(10)
        finally:
            cleared.append(True)

    monkeypatch.setattr(function, work)
    before = signal.getsignal(signal.SIGTERM)
    result = run(*arguments, "--json")
    assert cleared == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert result.returncode == status
    line = result.stderr.strip()
    assert line.startswith(f"Error: {word}: ")
    assert line.endswith(advice)
    assert json.loads(result.stdout) == {"error": line.removeprefix("Error: "), "exit_status": status}


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "photos/1.jpg"), 2,
         "Error: photos/1.jpg: permission denied; choose another place, or get the permission"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "Error: no space left on device; free some space"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1,
         "Error: internal error: FileNotFoundError: [Errno 2] No such file: 'x' (--debug shows where)"),
    ],
)  # fmt: skip
def test_what_the_machine_refuses_is_no_internal_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError, status: int, line: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dcvit.inspection.inspect", refuse)
    result = run("inspect", "out")
    assert (result.returncode, result.stderr.strip()) == (status, line)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no full device")
def test_an_output_that_cannot_be_written_to_is_status_2_and_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "dcvit.cli.main", "plan", *MODEL, "--macs-reduction", "0.3", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "Error: no space left on device; free some space"
    assert "Traceback" not in result.stderr
