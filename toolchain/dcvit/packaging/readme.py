"""What a packed folder says of itself: how it is started, in one line for each way."""

from dcvit.exporting.onnx import INPUT, OUTPUT
from dcvit.exporting.targets import DEFAULT_PROFILE
from dcvit.packaging.packed import Packed

_CPP = {
    "onnxruntime": """\
Ort::Env env;
Ort::Session session(env, "model.onnx", Ort::SessionOptions{{}});
const char *inputs[] = {{"{input}"}}, *outputs[] = {{"{output}"}};
auto logits = session.Run(Ort::RunOptions{{}}, inputs, &images, 1, outputs, 1);  // images: an Ort::Value {shape}""",
    "openvino": """\
auto request = ov::Core().compile_model("model.xml", "CPU").create_infer_request();
request.set_input_tensor(images);  // an ov::Tensor {shape}
request.infer();
auto logits = request.get_output_tensor();""",
    "tensorrt": """\
std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
context->setTensorAddress("{input}", images);  // on the GPU, {shape}
context->setTensorAddress("{output}", logits);
context->enqueueV3(stream);""",
}


def readme_for(server: str, packed: Packed) -> str:
    """`README.md`."""
    record = packed.record
    batch = "any number of images" if record.dynamic else f"{record.batch} images at a time"
    lines = [
        f"# {packed.name}",
        "",
        f"{packed.file}, {record.precision}, {batch}: `{INPUT}` {_shape(packed)}, `{OUTPUT}` "
        f"{_dims(packed, packed.classes)}, float32.",
        "`client.py` prepares images as the model was evaluated: `python client.py IMAGE …`",
        "",
    ]
    if server == "triton":
        lines += [
            "Mount this folder as a model repository, and ask it once it is ready:",
            "",
            "```sh",
            "docker run --rm --gpus all -p 8000:8000 -v $PWD:/models nvcr.io/nvidia/tritonserver:<yy.mm>-py3 \\",
            "  tritonserver --model-repository=/models",
            "curl -f localhost:8000/v2/health/ready && python client.py image.jpg",
            "```",
        ]
        if not record.dynamic:
            lines += [
                "",
                "The file has a fixed batch, so the server joins no requests: `dcvit-tool export --batch dynamic`.",
            ]
        return "\n".join([*lines, ""])
    if server == "tensorrt":
        lines += ["An engine is built on the GPU that is to run it:", "", "```sh", trtexec_line(packed), "```", ""]
    code = _CPP[server].format(input=INPUT, output=OUTPUT, shape=_shape(packed))
    return "\n".join([*lines, "In C++:", "", "```cpp", code, "```", ""])


def trtexec_line(packed: Packed) -> str:
    """The command that builds an engine with TensorRT's own tool; the types are those of the file."""
    line = "trtexec --onnx=model.onnx --saveEngine=model.engine --stronglyTyped"
    if packed.record.dynamic:
        for name, size in zip(("min", "opt", "max"), DEFAULT_PROFILE, strict=True):
            line += f" --{name}Shapes={INPUT}:{'x'.join(map(str, (size, *packed.image)))}"
    return line


def _shape(packed: Packed) -> str:
    kind = "uint8, NHWC" if packed.record.with_preprocessing else "float32, NCHW, normalised"
    return f"{_dims(packed, packed.image)}, {kind}"


def _dims(packed: Packed, rest: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ('N' if packed.record.dynamic else packed.record.batch, *rest)))}]"
