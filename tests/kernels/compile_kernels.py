"""Compile every kernel ahead of time for one architecture, without a GPU, and print what came out as JSON.

Not a test by itself: test_compiled.py runs it in a process where kernels are of the compiled kind.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dcvit_kernels import linear, linear_backward, norm, pairs, sums, tiles

TYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
TENSORS = {
    "x", "out", "weight", "bias", "norm_weight", "norm_bias", "merged", "normed",
    "grad", "grad_input", "grad_merged", "grad_normed", "first", "second",
}  # fmt: skip
FP32 = {"statistics", "partial"}
CHANNELS = 384  # of DeiT-S


def kernels(dtype: str, hopper: bool, every_tile: bool):
    """Each kernel as a launch would build it: (kernel, constants, warps, stages)."""
    row = {"BLOCK_ROWS": 2, "BLOCK_CHANNELS": 512}
    pair = {"BLOCK_ROWS": pairs.BLOCK_ELEMENTS // 128, "BLOCK_CHANNELS": tiles.channel_block(CHANNELS)}
    yield pairs.reduce_pairs_kernel, {"VERTICAL": False, "AVERAGE": True, **pair}, 4, 3
    yield pairs.expand_pairs_kernel, {"VERTICAL": True, "AVERAGE": False, **pair}, 4, 3
    yield norm.norm_kernel, {"JOIN": True, "KEEP": True, "VERTICAL": True, **row}, 4, 3
    yield norm.norm_kernel, {"JOIN": False, "KEEP": True, "VERTICAL": True, **row}, 4, 3
    yield norm.norm_backward_kernel, {"VERTICAL": False, "TO_PAIRS": True, **row}, 4, 3
    yield sums.column_sums_kernel, {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": 128}, 4, 3
    dot = {"OPERAND": TYPES[dtype], "DOT": TYPES[dtype], "PRECISION": "ieee"}
    fitting = tiles.candidates(BYTES[dtype], BYTES[dtype], hopper)
    first = next(tile for tile in fitting if not tile.hopper)
    for tile in fitting if every_tile else [first]:
        product = ({**dot, **tile.constants}, tile.warps, tile.stages)
        whole = {"VERTICAL": False, "WHOLE": True, "FLAT": tile.flat}
        yield linear.linear_kernel, {**whole, **product[0]}, *product[1:]
        if tile is not first:  # the gradients' kernels are compiled once
            continue
        yield linear_backward.linear_grad_input_kernel, {"VERTICAL": True, "ODD": True, **product[0]}, *product[1:]
        yield linear_backward.linear_grad_weight_kernel, {"VERTICAL": False, **product[0]}, *product[1:]


def type_of(argument: str, dtype: str) -> str:
    if argument in TENSORS:
        return f"*{dtype}"
    if argument in FP32:
        return "*fp32"
    return "fp32" if argument == "eps" else "i32"


def instructions(cubin: bytes) -> str:
    """The machine code, as the disassembler that comes with Triton shows it."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    disassembler = shutil.which("nvdisasm", path=str(tools))
    if disassembler is None:
        return ""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        return subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=True).stdout


def registers(cubin: bytes) -> int | None:
    """Registers of a thread, from the program's own header (EIATTR_REGCOUNT does not stand in every format)."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    reader = shutil.which("cuobjdump", path=str(tools))
    if reader is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = subprocess.run([reader, "-res-usage", file.name], capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+)", usage)
    return int(found.group(1)) if found else None


def compile_one(kernel, constants: dict, warps: int, stages: int, dtype: str, capability: int) -> dict[str, object]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in names}
    # What a launch finds out by itself: allocations, channels and strides are multiples of 16.
    aligned = [
        i
        for i, name in enumerate(names)
        if name not in constants and (signature[name][0] == "*" or "stride" in name or name == "channels")
    ]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {"num_warps": warps, "num_stages": stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx, code = result.asm["ptx"], instructions(result.asm["cubin"])
    return {
        "kernel": kernel.__name__,
        "dtype": dtype,
        "blocks": {name: value for name, value in constants.items() if name.startswith("BLOCK")},
        "warps": warps,
        "target": next(line.split()[1].rstrip(",") for line in ptx.splitlines() if line.startswith(".target")),
        "entry": f".visible .entry {kernel.__name__}(" in ptx,
        "async_copy": "cp.async" in ptx,
        "wgmma": "wgmma.mma_async" in ptx,
        "mma": "mma.sync" in ptx,
        "shared_bytes": result.metadata.shared,
        "cubin_bytes": len(result.asm["cubin"]),
        "registers": registers(result.asm["cubin"]),
        # Loads and stores of local memory are what the registers did not hold.
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)) if code else None,
        "instructions": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, re.M)) if code else None,
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    results = []
    for argument in sys.argv[2:]:
        dtype, _, every = argument.partition(":")
        for kernel, constants, warps, stages in kernels(dtype, capability == 90, bool(every)):
            results.append(compile_one(kernel, constants, warps, stages, dtype, capability))
    print(json.dumps(results))
