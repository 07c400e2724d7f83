"""A client in Python, which prepares images as the model was evaluated, with numpy and Pillow alone."""

import math

from dcvit.exporting.onnx import INPUT, OUTPUT
from dcvit.packaging.packed import Packed
from dcvit.preprocessing import Preprocessing

_NEEDS = {
    "triton": "import tritonclient.http as triton  # pip install 'tritonclient[http]'",
    "onnxruntime": "import onnxruntime  # reports its use to its maker, unless ORT_DISABLE_TELEMETRY=1 is set",
    "openvino": "import openvino",
    "tensorrt": "import tensorrt as trt  # or tensorrt_rtx, for its engines\nimport torch",
}
_INFER = {
    "triton": """\
    images = triton.InferInput("{input}", list(batch.shape), "{triton_type}")
    images.set_data_from_numpy(batch)
    return triton.InferenceServerClient("localhost:8000").infer("{name}", [images]).as_numpy("{output}")""",
    "onnxruntime": """\
    providers = ["CPUExecutionProvider"]  # on a GPU "CUDAExecutionProvider" first
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=providers)
    return session.run(["{output}"], {{"{input}": batch}})[0]""",
    "openvino": """\
    return openvino.Core().compile_model(str(HERE / "model.xml"), "CPU")(batch)[0]""",
    "tensorrt": """\
    path = next(HERE.glob("*.engine"))
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    images = torch.from_numpy(batch).cuda()
    context.set_input_shape("{input}", tuple(batch.shape))
    logits = torch.zeros(tuple(context.get_tensor_shape("{output}")), device="cuda")
    for name, tensor in (("{input}", images), ("{output}", logits)):
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    return logits.cpu().numpy()""",
}


def client_for(server: str, packed: Packed) -> str:
    """`client.py`: `python client.py IMAGE …` prints the class of each image."""
    facts = {
        "input": INPUT,
        "output": OUTPUT,
        "name": packed.name,
        "triton_type": "UINT8" if packed.record.with_preprocessing else "FP32",
    }
    needs = [*sorted([*_NEEDS[server].splitlines(), "import numpy as np"]), "from PIL import Image"]
    labels = f"{packed.name}/labels.txt" if server == "triton" else "labels.txt"
    classes = f'(HERE / "{labels}").read_text(encoding="utf-8").splitlines()' if packed.labels else "None"
    return f'''"""The class of each image: python client.py IMAGE …"""

import sys
from pathlib import Path

{chr(10).join(needs)}

HERE = Path(__file__).parent
CLASSES = {classes}


{_prepare(packed)}


def infer(batch: np.ndarray) -> np.ndarray:
{_INFER[server].format(**facts)}


def logits_of(images: list[Image.Image]) -> np.ndarray:
    prepared = np.stack([prepare(image) for image in images])
{_batches(packed)}


if __name__ == "__main__":
    for path, logits in zip(sys.argv[1:], logits_of([Image.open(path) for path in sys.argv[1:]]), strict=True):
        best = logits.argmax(axis=0)
        print(path, CLASSES[int(best)] if CLASSES else best)
'''


def _batches(packed: Packed) -> str:
    if packed.record.dynamic:
        return "    return infer(prepared)"
    batch = packed.record.batch
    return f"""\
    missing = -len(prepared) % {batch}  # the file takes {batch} at a time
    filled = np.concatenate([prepared, np.zeros((missing, *prepared.shape[1:]), prepared.dtype)])
    logits = [infer(filled[start : start + {batch}]) for start in range(0, len(filled), {batch})]
    return np.concatenate(logits)[: len(prepared)]"""


def _prepare(packed: Packed) -> str:
    preprocessing = packed.preprocessing
    channels, height, width = preprocessing.input_size
    mode = "L" if channels == 1 else "RGB"
    lines = [
        "def prepare(image: Image.Image) -> np.ndarray:",
        f'    """{_in_words(preprocessing)}."""',
        f'    image = image.convert("{mode}")',
        *(f"    {line}" for line in _resize(preprocessing)),
        f"    left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
        f"    image = image.crop((left, top, left + {width}, top + {height}))",
    ]
    if packed.record.with_preprocessing:
        lines.append(f"    return np.asarray(image, np.uint8).reshape({height}, {width}, {channels})")
    else:
        lines += [
            f"    pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}) / 255",
            f"    mean, std = np.array({list(preprocessing.mean)}), np.array({list(preprocessing.std)})",
            "    return ((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1)",
        ]
    return "\n".join(lines)


def _resize(preprocessing: Preprocessing) -> list[str]:
    """The lines that resize, as timm's transform does in each mode."""
    _, height, width = preprocessing.input_size
    tall, wide = (math.floor(side / preprocessing.crop_pct) for side in (height, width))
    how = f"Image.Resampling.{preprocessing.interpolation.upper()}"
    if preprocessing.crop_mode == "squash":
        return [f"image = image.resize(({wide}, {tall}), {how})"]
    if preprocessing.crop_mode == "border":
        fill = tuple(round(255 * value) for value in preprocessing.mean)
        return [
            f"ratio = max(image.height / {tall}, image.width / {wide})",
            f"image = image.resize((round(image.width / ratio), round(image.height / ratio)), {how})",
            f"canvas = Image.new(image.mode, (max(image.width, {width}), max(image.height, {height})), "
            f"{fill if len(fill) > 1 else fill[0]})",
            "canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))",
            "image = canvas",
        ]
    if tall == wide:
        return [
            "short = min(image.size)",
            f"size = tuple({tall} if side == short else int({tall} * side / short) for side in image.size)",
            f"image = image.resize(size, {how})",
        ]
    return [
        f"ratio = min(image.height / {tall}, image.width / {wide})",
        f"image = image.resize((round(image.width / ratio), round(image.height / ratio)), {how})",
    ]


def _in_words(preprocessing: Preprocessing) -> str:
    _, height, width = preprocessing.input_size
    return f"Resize and crop to {height} × {width} as the model was evaluated ({preprocessing.crop_mode})"
