"""How to load and serve what a folder holds: code that runs as it stands, next to the folder."""

import json
from dataclasses import dataclass

from dcvit.exporting.onnx import INPUT, OUTPUT
from dcvit.folder.model_folder import MANIFEST
from dcvit.folder.records import EngineRecord, OnnxRecord
from dcvit.preprocessing import Preprocessing
from dcvit.reporting.facts import Facts
from dcvit.variant import Variant

_IMAGE = 'Image.open("image.jpg").convert("{mode}")'


@dataclass(frozen=True)
class Snippet:
    """Code for one runtime.

    Attributes:
        code: Empty where the folder lacks the file.
        note: What to know beside it; where the file is missing, the command that makes it.
    """

    title: str
    code: str
    note: str = ""
    missing: str = ""


def snippets(facts: Facts) -> list[Snippet]:
    """PyTorch, ONNX Runtime, and TensorRT where there is an engine."""
    return [_pytorch(facts), _onnx_runtime(facts), _engine(facts)]


def _pytorch(facts: Facts) -> Snippet:
    segmentation = facts.plan.task == "segmentation"
    code = f"""\
{_imports(facts)}import dcvit
import torch
from PIL import Image
from timm.data import create_transform

model = dcvit.load({_literal(facts.title)})  # a timm module in evaluation mode
{_transform(facts.manifest.preprocessing)}
images = transform({_open_image(facts)}).unsqueeze(0)
with torch.inference_mode():
    logits = model(images)  # {_shape_of(facts, 1)}
{_answer(facts, "logits.argmax(1)" if segmentation else "logits.argmax(1).item()")}
"""
    return Snippet("PyTorch", code, "needs: pip install dcvit-tool")


def _onnx_runtime(facts: Facts) -> Snippet:
    preferred = _preferred(facts.onnx)
    if preferred is None:
        return Snippet("ONNX Runtime", "", missing=Variant().export_command(facts.title))
    name, record = preferred
    code = f"""\
{_imports(facts)}import numpy as np
import onnxruntime
from PIL import Image
from timm.data import create_transform

{_transform(facts.manifest.preprocessing, pixels=record.with_preprocessing)}
session = onnxruntime.InferenceSession(
    {_literal(f"{facts.title}/{name}")}, providers=["CPUExecutionProvider"]
)
batch = np.zeros({_input_shape(facts, record)}, dtype=np.{"uint8" if record.with_preprocessing else "float32"})
batch[0] = {_prepared(facts, record)}
(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": batch}})  # {_shape_of(facts, record.batch)}
{_answer(facts, "logits[0].argmax(0)")}
"""
    fixed = f"the file takes exactly {record.batch} images; fill up the last batch with zeros"
    if record.dynamic:
        fixed = "the file takes any number of images"
    others = [other for other in facts.onnx if other != name]
    return Snippet("ONNX Runtime", code, fixed + (f". Also here: {', '.join(others)}" if others else ""))


def _engine(facts: Facts) -> Snippet:
    if not facts.engines:
        command = Variant(precision="fp16").export_command(facts.title, "tensorrt-rtx")
        return Snippet("TensorRT", "", missing=command)
    name, engine = next(reversed(facts.engines.items()))
    record = facts.onnx.get(engine.onnx)
    if record is None:
        return Snippet("TensorRT", "", missing=f"{engine.variant.export_command(facts.title)} --trt")
    module = engine.flavor.replace("-", "_")
    dtype = "uint8" if record.with_preprocessing else "float32"
    code = f"""\
{_imports(facts)}import torch
import {module} as trt
from PIL import Image
from timm.data import create_transform

{_transform(facts.manifest.preprocessing, pixels=record.with_preprocessing)}
runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
with open({_literal(f"{facts.title}/{name}")}, "rb") as file:
    engine = runtime.deserialize_cuda_engine(file.read())
context = engine.create_execution_context()
images = torch.zeros({_input_shape(facts, record)}, dtype=torch.{dtype}, device="cuda")
logits = torch.zeros(tuple(engine.get_tensor_shape("{OUTPUT}")), device="cuda")
context.set_tensor_address("{INPUT}", images.data_ptr())
context.set_tensor_address("{OUTPUT}", logits.data_ptr())
images[0] = torch.as_tensor({_prepared(facts, record)})
stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
context.execute_async_v3(stream.cuda_stream)
stream.synchronize()
{_answer(facts, "logits[0].argmax(0)")}
"""
    return Snippet(_title(engine), code, _runs_on(engine))


def _literal(text: str) -> str:
    """A string of Python and of nothing else, whatever is in it."""
    return json.dumps(text)


def _title(engine: EngineRecord) -> str:
    return "TensorRT-RTX" if engine.flavor == "tensorrt-rtx" else "TensorRT"


def _runs_on(engine: EngineRecord) -> str:
    capabilities = engine.compute_capabilities or ((engine.compute_capability,) if engine.compute_capability else ())
    where = f", on GPUs of compute capability {', '.join(capabilities)}" if capabilities else ""
    return f"an engine runs with the version that built it, {engine.flavor} {engine.version}{where}"


def _preferred(files: dict[str, OnnxRecord]) -> tuple[str, OnnxRecord] | None:
    """fp32 if there is one, as the others need a word on accuracy first; bf16 never, as the CPU provider lacks it."""
    for precision in ("fp32", "fp16", "int8"):
        for name, record in files.items():
            if record.precision == precision and not record.variant.explicit:
                return name, record
    return None


def _prepared(facts: Facts, record: OnnxRecord) -> str:
    """One image as the file takes it."""
    pixels = ".permute(1, 2, 0)" if record.with_preprocessing else ""
    return f"transform({_open_image(facts)}){pixels}.numpy()"


def _transform(preprocessing: Preprocessing, *, pixels: bool = False) -> str:
    """Resize and crop as timm evaluates the model; normalisation too, where the graph does not do it.

    Of channels that no picture has, only the user knows how to read them.
    """
    if preprocessing.input_size[0] not in (1, 3):
        dtype, what = ("uint8", "pixels") if pixels else ("float32", "normalised")
        return f"""\
def transform(file):  # no picture has {preprocessing.input_size[0]} channels: read the file here; {what}, [C, H, W]
    import torch

    return torch.zeros({preprocessing.input_size}, dtype=torch.{dtype})

"""
    fields = preprocessing.model_dump(exclude={"mean", "std"} if pixels else None)
    lines = [f"    {name}={value!r}," for name, value in (fields | ({"normalize": False} if pixels else {})).items()]
    return "\n".join(["transform = create_transform(", *lines, ")"])


def _answer(facts: Facts, index: str) -> str:
    """Prints what the model says: a name of the manifest, where it has names."""
    if facts.manifest.classes is None:
        return f"print({index})"
    opened = f"open({_literal(f'{facts.title}/{MANIFEST}')}, encoding='utf-8')"
    return f'with {opened} as file:\n    names = json.load(file)["classes"]\nprint(names[{index}])'


def _imports(facts: Facts) -> str:
    return "" if facts.manifest.classes is None else "import json\n\n"


def _open_image(facts: Facts) -> str:
    channels = facts.manifest.preprocessing.input_size[0]
    if channels not in (1, 3):
        return '"image.file"'
    return _IMAGE.format(mode="L" if channels == 1 else "RGB")


def _input_shape(facts: Facts, record: OnnxRecord) -> str:
    channels, height, width = facts.manifest.preprocessing.input_size
    shape = (height, width, channels) if record.with_preprocessing else (channels, height, width)
    return str((record.batch, *shape))


def _shape_of(facts: Facts, batch: int) -> str:
    if facts.plan.head is None:
        return f"[{batch}, {facts.architecture.num_classes}]"
    return f"[{batch}, {facts.plan.head.num_classes} classes, height, width]"
