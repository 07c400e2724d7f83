"""What a server starts from: each folder is run where its package is at hand, and checked against its schema else."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from timm.data import create_transform

import dcvit.exporting.storage
from dcvit.errors import InputError
from dcvit.exporting import export_each
from dcvit.folder.model_folder import ModelFolder
from dcvit.packaging import Server, package
from dcvit.packaging.client import client_for
from dcvit.packaging.packed import choose
from dcvit.plan import CompressionPlan
from dcvit.preprocessing import Preprocessing

from .triton_schema import parsed

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]
NAMES = [f"class {letter}" for letter in "abcdefghij"]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, make_folder: MakeFolder, tiny_plan: CompressionPlan
) -> ModelFolder:
    """With a file of batch 2 and one of any batch, of which the weights of the first are beside it; names known."""
    plan = tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"depth": 1})
    made = make_folder(tmp_path_factory.mktemp("package") / "my model", plan)
    made.manifest.classes = tuple(NAMES)
    kept = ModelFolder.create(made.path, made.load(), plan, made.manifest, overwrite=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dcvit.exporting.storage, "_LIMIT", 10_000)
        export_each(kept, (2,))
    export_each(kept, ("dynamic",))
    return ModelFolder(kept.path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [place / f"{index}.png" for index in range(3)]
    for path, size in zip(paths, [(40, 60), (33, 33), (90, 50)], strict=True):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return paths


def expected(folder: ModelFolder, images: list[Path]) -> list[str]:
    transform = create_transform(**folder.manifest.preprocessing.model_dump())
    with torch.no_grad():
        logits = folder.load()(torch.stack([transform(Image.open(path).convert("RGB")) for path in images]))
    return [NAMES[index] for index in logits.argmax(1)]


def answers(place: Path, images: list[Path], path: Path | None = None) -> list[str]:
    """What the client says of the images; `path` has modules for it."""
    extra = "" if path is None else f"import sys; sys.path.insert(0, {str(path)!r}); "
    code = f"{extra}import runpy, sys; sys.argv = {['client.py', *map(str, images)]}; " + (
        f"runpy.run_path({str(place / 'client.py')!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [line.split(maxsplit=1)[1] for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(("server", "batch"), [("onnxruntime", 2), ("onnxruntime", "dynamic"), ("openvino", "dynamic")])
def test_the_client_runs_it_and_is_right(
    folder: ModelFolder, images: list[Path], tmp_path: Path, server: Server, batch: int | str
) -> None:
    if find_spec(server) is None:
        pytest.skip(f"{server} is not installed")
    result = package(folder, server, tmp_path / "out", batch=batch)
    assert result.to_json()["batch"] == batch
    assert {"client.py", "README.md", "labels.txt"} < set(result.files)
    assert answers(tmp_path / "out", images) == expected(folder, images)


def test_a_full_disk_is_one_line_from_openvino_too(folder: ModelFolder, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = f"""
import resource, signal
from dcvit.errors import WriteError
from dcvit.packaging import package

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    package({str(folder.path)!r}, "openvino", {str(tmp_path / "out")!r})
except WriteError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{tmp_path} cannot be written to by OpenVINO; is the disk full?\n"
    assert not (tmp_path / "out").exists()


def test_tritons_repository_is_of_its_schema_and_served(
    folder: ModelFolder, images: list[Path], tmp_path: Path
) -> None:
    """The server is no package; a stand-in for its client reads the repository as the server does."""
    result = package(folder, "triton", tmp_path / "out")
    assert set(result.files) == {
        "README.md", "client.py", "my_model/1/model.onnx", "my_model/config.pbtxt", "my_model/labels.txt",
    }  # fmt: skip
    config = parsed((tmp_path / "out" / "my_model" / "config.pbtxt").read_text())
    assert config.name == "my_model"
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([3, 32, 32], [10])
    assert config.output[0].label_filename == "labels.txt"
    assert (tmp_path / "out" / "my_model" / "labels.txt").read_text().splitlines() == NAMES
    (tmp_path / "tritonclient").mkdir()
    (tmp_path / "tritonclient" / "__init__.py").touch()
    (tmp_path / "tritonclient" / "http.py").write_text(f"""
import onnxruntime

class InferInput:
    def __init__(self, name, shape, datatype):
        assert datatype == "FP32"
        self.name, self.shape = name, shape
    def set_data_from_numpy(self, batch):
        assert list(batch.shape) == self.shape
        self.batch = batch

class InferenceServerClient:
    def __init__(self, url):
        assert url == "localhost:8000"
    def infer(self, model, inputs):
        path = {str(tmp_path / "out")!r} + f"/{{model}}/1/model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (self.logits,) = session.run(["logits"], {{each.name: each.batch for each in inputs}})
        return self
    def as_numpy(self, name):
        assert name == "logits"
        return self.logits
""")
    assert answers(tmp_path / "out", images, tmp_path) == expected(folder, images)


def test_a_fixed_batch_is_among_tritons_dimensions(folder: ModelFolder, tmp_path: Path) -> None:
    result = package(folder, "triton", tmp_path / "out", batch=2)
    assert "my_model/1/model.b2.fp32.onnx.data" in result.files  # under the name that the graph has for it
    config = parsed((tmp_path / "out" / "my_model" / "config.pbtxt").read_text())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([2, 3, 32, 32], [2, 10])


def test_the_schema_refuses_what_triton_would() -> None:
    for text in ("batch_size: 4", 'max_batch_size: "four"', "input [ { data_type: FLOAT } ]"):
        with pytest.raises(text_format.ParseError):
            parsed(text)


def test_for_tensorrt_the_line_builds_what_the_file_is(folder: ModelFolder, tmp_path: Path) -> None:
    package(folder, "tensorrt", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped --minShapes=images:1x3x32x32 "
        "--optShapes=images:64x3x32x32 --maxShapes=images:256x3x32x32\n"
    ) in text
    assert onnx.load(tmp_path / "out" / "model.onnx").graph.input[0].name == "images"
    compile((tmp_path / "out" / "client.py").read_text(), "client.py", "exec")
    package(folder, "tensorrt", tmp_path / "fixed", batch=2)
    assert "--stronglyTyped\n" in (tmp_path / "fixed" / "README.md").read_text()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40), (1, 32, 32)])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
def test_images_are_prepared_as_timm_does(
    folder: ModelFolder, images: list[Path], mode: str, size: tuple[int, int, int], crop_pct: float
) -> None:
    channels = size[0]
    preprocessing = Preprocessing(
        input_size=size, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.25)[:channels], interpolation="bicubic",
        crop_pct=crop_pct, crop_mode=mode,
    )  # fmt: skip
    manifest = folder.manifest.model_copy(update={"preprocessing": preprocessing})
    packed = choose(folder, "dynamic", None, with_preprocessing=False, for_engine=False)
    folder_like = type("Folder", (), {"path": folder.path, "manifest": manifest})()
    code = client_for("onnxruntime", type(packed)(**vars(packed) | {"folder_opened": folder_like}))
    names: dict[str, object] = {"__file__": str(folder.path / "client.py"), "__name__": "client"}
    exec(code.replace(code.split("CLASSES = ")[1].split("\n")[0], "None"), names)
    transform = create_transform(**preprocessing.model_dump())
    for path in images:
        image = Image.open(path)
        wanted = transform(image.convert("L" if channels == 1 else "RGB")).numpy()
        assert np.abs(names["prepare"](image) - wanted).max() < 1e-5


@pytest.mark.parametrize(("arguments", "message"), [
    ({"server": "tfserving"}, "--for tfserving: choose triton, onnxruntime, tensorrt, openvino"),
    ({"batch": 8}, r"no ONNX file of that kind \(it has model.b2.fp32.onnx, .*\); make one with .* --batch 8`"),
    ({"precision": "fp16"}, "make one with .* --batch dynamic --precision fp16`"),
])  # fmt: skip
def test_what_is_not_there_is_refused(
    folder: ModelFolder, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        package(folder, **{"server": "onnxruntime", "out": tmp_path / "out"} | arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_kept(folder: ModelFolder, tmp_path: Path) -> None:
    package(folder, "onnxruntime", tmp_path / "out")
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        package(folder, "onnxruntime", tmp_path / "out")
    with pytest.raises(InputError, match="is a model folder"):
        package(folder, "onnxruntime", folder.path, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match="was not written by this command"):
        package(folder, "onnxruntime", tmp_path / "photos", overwrite=True)
    package(folder, "onnxruntime", tmp_path / "out", batch=2, overwrite=True)
    assert (tmp_path / "out" / "model.b2.fp32.onnx.data").exists()


def test_int8_of_the_cpu_is_not_for_tensorrt(folder: ModelFolder, tmp_path: Path) -> None:
    """Whose parser refuses it; the last file that was exported would else be taken."""
    copy = ModelFolder(shutil.copytree(folder.path, tmp_path / "copy"))
    for name, changes in (("model.b4.int8.onnx", {"precision": "int8"}), ("model.b4.bf16.onnx", {"precision": "bf16"})):
        source = copy.path / "model.dynamic.fp32.onnx"
        entry = copy.manifest.exports[source.name] | {"dynamic": False, "batch": 4} | changes
        copy.add(name, lambda aside, source=source: shutil.copyfile(source, aside) and None, entry)
    with pytest.raises(InputError, match=r"make one with `.* --precision int8 --data IMAGES --trt`"):
        package(copy, "tensorrt", tmp_path / "out", precision="int8")
    assert package(copy, "onnxruntime", tmp_path / "int8", precision="int8").packed.file == "model.b4.int8.onnx"
    assert package(copy, "tensorrt", tmp_path / "bf16", batch=4).packed.file == "model.b4.bf16.onnx"
    assert package(copy, "onnxruntime", tmp_path / "four", batch=4).packed.file == "model.b4.int8.onnx"
