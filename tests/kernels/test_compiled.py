"""The machine code of the kernels for three architectures: registers, spills, shared memory, instructions.

Triton's own ptxas makes it, and Triton's own disassembler reads it: no GPU is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PRODUCTS = {"linear_kernel", "linear_grad_input_kernel", "linear_grad_weight_kernel"}
KERNELS = PRODUCTS | {
    "reduce_pairs_kernel", "expand_pairs_kernel", "norm_kernel", "norm_backward_kernel", "column_sums_kernel",
}  # fmt: skip


# On 9.0 the forward product with every tile, flat or not.
@pytest.mark.parametrize(
    ("capability", "asked"),
    [
        (90, ["fp16:all"]),
        pytest.param(80, ["fp16", "bf16", "fp32"], marks=pytest.mark.thorough),
        pytest.param(120, ["fp16"], marks=pytest.mark.thorough),
    ],
)
def test_machine_code(capability: int, asked: list[str], tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # An empty cache, so that it has to compile.
    environment |= {"PYTHONPATH": ":".join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_kernels.py")
    process = subprocess.run(
        [sys.executable, script, str(capability), *asked], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout.splitlines()[-1])
    dtypes = [name.partition(":")[0] for name in asked]
    assert {(result["kernel"], result["dtype"]) for result in results} == {(k, d) for k in KERNELS for d in dtypes}
    for result in results:
        assert result["target"].startswith(f"sm_{capability}"), result
        assert result["entry"], result
        assert result["cubin_bytes"] > 0, result
        # What a program may have on the smallest GPU of the kind: 99 KiB on 8.6, 8.9 and 12.0, 227 KiB on 9.0.
        assert result["shared_bytes"] <= (227 if capability == 90 else 99) * 1024, result
        if result["registers"] is not None:
            # A multiprocessor has 65536 for all threads of a program.
            assert result["registers"] * 32 * result["warps"] <= 65536, result
        if result["dtype"] != "fp32" and result["spills"] is not None:
            assert result["spills"] == 0, result
            assert result["instructions"] < 6000, result
        if result["kernel"] in PRODUCTS and result["dtype"] != "fp32":
            assert result["async_copy"], f"loads are not overlapped with products: {result}"
            assert result["wgmma" if capability == 90 else "mma"], result
