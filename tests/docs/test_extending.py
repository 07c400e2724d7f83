"""The worked examples of docs/extending.md, taken from the page, put where they say, and used."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = {match[1]: match[2] for match in re.finditer(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, flags=re.DOTALL)}

START = """
import sys
from pathlib import Path
import dcvit
root = Path(sys.argv[1])
for room in ("methods", "families", "runtimes"):  # as if the files stood in the package
    __import__(f"dcvit.{room}")
    sys.modules[f"dcvit.{room}"].__path__.append(str(root / room))
"""
TINY = "{'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 4, 'num_heads': 2, 'num_classes': 10}"


def run(tmp_path: Path, names: list[str], code: str) -> str:
    """Runs code with the files of the page in place; what it prints."""
    for name in names:
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BLOCKS[name], encoding="utf-8")
    for folder in (tmp_path / "package").rglob("*"):
        if folder.is_dir() and folder.parent.name == "methods":
            (folder / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", START + code, str(tmp_path / "package")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_page_names_every_file_once() -> None:
    assert sorted(BLOCKS) == [
        "families/rel_pos.py",
        "methods/uniform/compressor.py",
        "methods/uniform/method.py",
        "methods/uniform/settings.py",
        "runtimes/onnx_reference.py",
    ]


def test_a_method_is_one_folder_and_one_line(tmp_path: Path) -> None:
    files = [name for name in BLOCKS if name.startswith("methods/")]
    out = run(
        tmp_path,
        files,
        f"""
import json
from dcvit.methods import registry
from dcvit.methods.uniform.method import Uniform
registry.METHODS["uniform"] = Uniform()  # the one line
from dcvit.cli.main import cli

def tool(*arguments):
    try:
        cli([*map(str, arguments)])
    except SystemExit as ended:
        assert not ended.code, ended.code

model = ["vit_tiny_patch16_224", "--model-kwargs", json.dumps({TINY}), "--method", "uniform"]
tool("plan", *model, "--macs-reduction", 0.3)
few = ["--random-init", "--data", "digits", "--samples", 16, "--steps", 1]
tool("compress", *model, *few, "--macs-reduction", 0.3, "-o", "one")
tool("frontier", *model, *few, "--macs-reduction", 0.2, "--macs-reduction", 0.3, "-o", "many")
tool("report", "one")
tool("inspect", "one", "--json")
""",
    )
    assert '"method": "uniform"' in out
    widths = set(re.findall(r'"mlp_hidden": (\d+)', out))
    assert len(widths) == 1
    assert int(widths.pop()) < 128
    assert "uniform widths" in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "many" / "r0.2" / "model.safetensors").is_file()


@pytest.mark.thorough
def test_a_family_is_one_file_and_one_line(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        ["families/rel_pos.py"],
        f"""
import torch
from dcvit import families
from dcvit.families.rel_pos import RelPosFamily
families.FAMILIES += (RelPosFamily(),)  # the one line
from dcvit.model import build, create
from dcvit.plan import CompressionPlan

plan = CompressionPlan(model="vit_relpos_small_patch16_224", model_kwargs={TINY})
torch.manual_seed(0)
model = create(plan.model, plan.model_kwargs)
same = build(plan)
same.load_state_dict(model.state_dict())
images = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    assert torch.equal(same(images), model(images))
settings = dcvit.SearchSettings(steps=1)
made = dcvit.compress(model, "digits", out="small", macs_reduction=0.3, samples=8, settings=settings)
print(made.summary.macs_reduction >= 0.3, dcvit.load("small")(images).shape)
""",
    )
    assert out.splitlines()[-1] == "True torch.Size([2, 10])"


@pytest.mark.thorough
def test_a_runtime_is_one_file_and_one_line(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        ["runtimes/onnx_reference.py"],
        f"""
from dcvit import runtimes
from dcvit.runtimes.onnx_reference import OnnxReference
runtimes.RUNTIMES["onnx-reference"] = OnnxReference()  # the one line
dcvit.compress("vit_tiny_patch16_224", out="small", merge="horizontal@2", recover="none", weights="random",
               model_kwargs={TINY})
dcvit.export("small", batch=2)
checked = dcvit.verify("small")
ours = [check for check in checked.checks if "ONNX reference" in check.name]
print(bool(ours), all(check.passed for check in ours))
print(dcvit.evaluate("small", "digits", runtime="onnx-reference", batch=2).images)
""",
    )
    assert out.splitlines()[-2:] == ["True True", "500"]


@pytest.mark.parametrize("command", ["compress", "frontier"])
def test_an_option_is_one_field(command: str, tmp_path: Path) -> None:
    field = re.search(r"(ridge: Annotated.*?\n\))", PAGE, flags=re.DOTALL)
    assert field is not None
    indented = field[1].replace("\n", "\n    ")
    out = run(
        tmp_path,
        [],
        f"""
from typing import Annotated
from pydantic import Field
from dcvit.flags import Flag
from dcvit.methods.few_shot import settings

class FewShotSettings(settings.FewShotSettings):
    {indented}

class SearchSettings(settings.SearchSettings, FewShotSettings):
    pass

from dcvit.methods import registry
registry.METHODS["dcvit"].__class__.settings = SearchSettings
from dcvit.cli.main import cli
try:
    cli(["{command}", "--help"])
except SystemExit:
    pass
from dcvit.cli.fields import parameters_of
(option,) = (each.opts for each in parameters_of(SearchSettings) if each.name == "ridge")
print(option, SearchSettings(ridge=2).model_dump()["ridge"])
""",
    )
    assert "--ridge λ" in out
    assert "[default: 0.001]" in " ".join(out.split())
    assert out.splitlines()[-1] == "['--ridge'] 2.0"
