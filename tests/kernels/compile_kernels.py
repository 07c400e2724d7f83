"""Compile every kernel ahead of time for one architecture, without a GPU, and print what came out as JSON.

Not a test by itself: test_ptx.py runs it in a process where kernels are of the compiled kind.
"""

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dcvit_kernels import linear, linear_backward, norm, pairs

TYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32}
FP32 = {"mean", "rstd", "partial", "partial_weight", "partial_bias"}
SIZES = {"rows", "tokens", "channels", "height", "width", "prefix", "batch_size", "patches", "stride_token"}
TENSORS = {
    "x", "out", "weight", "bias", "norm_weight", "norm_bias", "merged", "normed",
    "grad", "grad_input", "grad_merged", "grad_normed",
}  # fmt: skip


def kernels(dtype: str):
    """Each kernel with its constants as DeiT-S (384 channels) sets them."""
    dot = {"OPERAND": TYPES[dtype], "DOT": TYPES[dtype], "PRECISION": "ieee"}
    yield pairs.reduce_pairs_kernel, {"VERTICAL": False, "AVERAGE": True}
    yield pairs.expand_pairs_kernel, {"VERTICAL": True, "AVERAGE": False}
    yield norm.mean_norm_kernel, {"VERTICAL": True, "BLOCK_CHANNELS": 512}
    yield norm.norm_backward_kernel, {"VERTICAL": False, "TO_PAIRS": True, "BLOCK_CHANNELS": 512}
    for fused in (False, True):
        yield linear.linear_kernel, {"VERTICAL": False, "NORM": fused, "NORM_ROWS": 16, "BLOCK_CHANNELS": 512, **dot}
    yield linear_backward.linear_grad_input_kernel, {"VERTICAL": True, "ODD": True, **dot}
    yield linear_backward.linear_grad_weight_kernel, {"VERTICAL": False, **dot}


def type_of(argument: str, dtype: str) -> str:
    if argument in TENSORS:
        return f"*{dtype}"
    if argument in FP32:
        return "*fp32"
    return {"finished": "*i32", "eps": "fp32"}.get(argument, "i32")


def compile_one(tuned, constants: dict, dtype: str, capability: int) -> dict[str, object]:
    # Lists go from the largest configuration to the smallest, which is the one that fp32 needs.
    config = tuned.configs[0 if dtype == "fp16" else -1]
    kernel, constants = tuned.fn, {**constants, **config.kwargs}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in names}
    # What a launch finds out by itself: allocations, channels and strides are multiples of 16.
    aligned = [
        i
        for i, name in enumerate(names)
        if name not in constants and (signature[name][0] == "*" or "stride" in name or name == "channels")
    ]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = result.asm["ptx"]
    return {
        "kernel": kernel.__name__,
        "dtype": dtype,
        "config": str(config),
        "target": next(line.split()[1].rstrip(",") for line in ptx.splitlines() if line.startswith(".target")),
        "entry": f".visible .entry {kernel.__name__}(" in ptx,
        "async_copy": "cp.async" in ptx,
        "tensor_cores": "mma" in ptx,
        "shared_bytes": result.metadata.shared,
        "cubin_bytes": len(result.asm["cubin"]),
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    results = []
    for dtype in sys.argv[2:]:
        for tuned, constants in kernels(dtype):
            # A launch makes constants of the numbers that are 1, which is another program: one prefix token as in DeiT,
            # and with bf16 every size there is.
            ones = SIZES if dtype == "bf16" else {"prefix"}
            constants |= {name: 1 for name in ones if name in tuned.fn.arg_names}
            results.append(compile_one(tuned, constants, dtype, capability))
    print(json.dumps(results))
