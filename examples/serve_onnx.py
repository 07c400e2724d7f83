"""Top-1 of a few images by ONNX Runtime alone: the file itself says how an image becomes its input.

python examples/serve_onnx.py [FILE.onnx IMAGE …]      # without arguments: makes a file, and takes eight digits
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def classify(file: str, images: list[Image.Image]) -> list[str]:
    """The class of each image, by name where the file has names; the batch is static, so a short one is filled up."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    preprocessing, batch = json.loads(about["dcvit.preprocessing"]), about["dcvit.batch"]
    prepared = np.stack([prepare(image, preprocessing) for image in images])
    names = ast.literal_eval(about.get("names", "{}"))  # {0: 'cat', 1: 'dog'}
    batch = max(len(prepared), 1) if batch == "dynamic" else int(batch)
    classes: list[str] = []
    for start in range(0, len(prepared), batch):
        part = prepared[start : start + batch]
        whole = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.float32)])
        (logits,) = session.run(None, {session.get_inputs()[0].name: whole})
        classes += [names.get(index, str(index)) for index in logits.argmax(axis=1)[: len(part)].tolist()]
    return classes


def prepare(image: Image.Image, preprocessing: dict) -> np.ndarray:
    """Resize the shorter side, crop the centre, normalise: [C, H, W], fp32."""
    _, height, width = preprocessing["input_size"]
    scale = max(height, width) / preprocessing["crop_pct"] / min(image.size)
    size = [max(round(side * scale), least) for side, least in zip(image.size, (width, height), strict=True)]
    resized = image.convert("RGB").resize(size, Image.Resampling[preprocessing["interpolation"].upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)


def eight_digits() -> tuple[str, list[Image.Image]]:
    """A file of the bundled model with a tenth of its MACs less, for batches of three, and eight images."""
    from io import BytesIO

    import dcvit
    from dcvit.data import DigitsSource
    from dcvit.demo_model import MODEL, MODEL_KWARGS, WEIGHTS

    settings = dcvit.SearchSettings(steps=0)  # weights are refitted in closed form, and not trained
    cut = {"macs_reduction": 0.1, "samples": 64, "settings": settings, "overwrite": True}
    dcvit.compress(MODEL, "digits", out="digits-served", model_kwargs=MODEL_KWARGS, checkpoint=WEIGHTS, **cut)
    test = DigitsSource("test")
    images = [Image.open(BytesIO(test.read(index)[0])) for index in range(8)]
    return str(dcvit.export("digits-served", batch=3).onnx.path), images


if __name__ == "__main__":
    file, images = (sys.argv[1], [Image.open(Path(name)) for name in sys.argv[2:]]) if sys.argv[2:] else eight_digits()
    print("classes:", *classify(file, images))
