"""Optional packages: what is missing is one line with what to install, and only what can be installed is named."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcvit.doctor import examine
from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.frontiers import frontier
from dcvit.inspection import inspect
from dcvit.runtimes import RUNTIMES, onnx_runtime, runtime_named
from dcvit.training.log import require_tensorboard

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
OPTIONAL = (
    "matplotlib",
    "sklearn",
    "torchmetrics",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "polygraphy",
    "tensorboard",
)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages look as if they were not installed."""

    def block(*names: str) -> None:
        for name in names:
            for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, loaded)
            monkeypatch.setitem(sys.modules, name, None)

    return block


def said(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_missing_package_is_a_line_with_its_extra(
    without: Callable[..., None], exported: Path, tmp_path: Path
) -> None:
    without(*OPTIONAL, "onnxruntime", "torch.utils.tensorboard")
    folder = ModelFolder(exported)
    assert "`pip install 'dcvit-tool[plots]'`" in said(lambda: inspect(exported, pictures=tmp_path / "pictures"))
    assert "'dcvit-tool[openvino]'" in said(lambda: runtime_named("openvino"))
    assert "'dcvit-tool[tensorrt-rtx]'" in said(lambda: runtime_named("tensorrt-rtx"))
    assert "'dcvit-tool[tensorrt]'" in said(lambda: runtime_named("tensorrt"))
    assert f"`pip install {onnx_runtime.PACKAGE}`" in said(lambda: runtime_named("onnxruntime"))
    assert "'dcvit-tool[tensorrt-rtx]'" in said(lambda: export(folder, 4, "fp16", trt=True))
    assert "'dcvit-tool[tensorboard]'" in said(require_tensorboard)
    assert not (tmp_path / "pictures").exists()


def test_a_frontier_needs_no_matplotlib(without: Callable[..., None], tmp_path: Path) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    without("matplotlib")
    result = frontier(
        "vit_tiny_patch16_224", "digits", out=tmp_path / "sizes", reductions=[0.1], model_kwargs=kwargs,
        weights="random", samples=8, recover="none",
    )  # fmt: skip
    assert {path.name for path in (tmp_path / "sizes").iterdir()} >= {"r0.1", "frontier.json"}
    assert not (tmp_path / "sizes" / "frontier.png").exists()
    assert "frontier.png" not in "".join(line for line in result.lines() if isinstance(line, str))


def test_the_base_imports_no_optional_package() -> None:
    code = (
        "import sys\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        "import dcvit\n"
        "for name in dcvit.__all__: getattr(dcvit, name)\n"
        "import dcvit.demo, dcvit.doctor\n"
        "from dcvit.data import DigitsSource\n"
        "print(len(DigitsSource('test')), all(each.detail for each in dcvit.doctor.examine().findings))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-2:] == ["500", "True"]


def test_doctor_points_out_both_packages_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnx_runtime.installed_twice() is None
    assert not any("onnxruntime-gpu" in finding.name for finding in examine().findings)
    both = SimpleNamespace(distribution=str, PackageNotFoundError=metadata.PackageNotFoundError)
    monkeypatch.setattr(onnx_runtime, "metadata", both)
    finding = next(finding for finding in examine().findings if finding.name == "onnxruntime and onnxruntime-gpu")
    assert not finding.usable
    mended = f"`pip uninstall -y onnxruntime onnxruntime-gpu && pip install {onnx_runtime.PACKAGE}`"
    assert finding.detail.endswith(mended)


def test_messages_and_pages_name_only_what_can_be_installed() -> None:
    known = {re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]} | {"dcvit-tool"}
    for extra in PROJECT["optional-dependencies"].values():
        known |= {re.split(r"[^\w-]", line)[0] for line in extra}
    known |= {"triton", "tritonclient", "pre-commit", "torchvision"}
    files = [*(ROOT / "toolchain").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"),
             *(ROOT / "benchmarks").glob("*.py")]  # fmt: skip
    wrong = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path.name}: [{each}]" for each in re.findall(r"dcvit-tool\[([\w,-]+)\]", text)
                  if not set(each.split(",")) <= EXTRAS]  # fmt: skip
        for command in re.findall(r"pip install ([^`\n{(&]*)", text):
            words = re.findall(r"[A-Za-z][\w-]*|-\S+|'[^']*'", re.sub(r"\s#.*", "", command))
            names = [re.split(r"[^\w-]", word.strip("'"))[0] for word in words if not word.startswith("-")]
            wrong += [f"{path.name}: pip install {name}" for name in names[:1] if name and name not in known]
    assert wrong == []
    assert set(RUNTIMES) >= {"torch", "onnxruntime", "openvino"}
