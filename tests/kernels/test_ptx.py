"""The kernels compile to PTX, and on to machine code with the ptxas of Triton, for three architectures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "reduce_pairs_kernel", "expand_pairs_kernel", "mean_norm_kernel", "norm_backward_kernel", "linear_kernel",
    "linear_grad_input_kernel", "linear_grad_weight_kernel",
}  # fmt: skip


@pytest.mark.parametrize(("capability", "dtypes"), [(80, ["fp16", "bf16", "fp32"]), (90, ["fp16"]), (120, ["fp16"])])
def test_kernels_compile_to_ptx(capability: int, dtypes: list[str], tmp_path: Path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # An empty cache, so that it has to compile.
    environment |= {"PYTHONPATH": ":".join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_kernels.py")
    process = subprocess.run(
        [sys.executable, script, str(capability), *dtypes], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads(process.stdout.splitlines()[-1])
    assert {(result["kernel"], result["dtype"]) for result in results} == {(k, d) for k in KERNELS for d in dtypes}
    for result in results:
        assert result["target"].startswith(f"sm_{capability}"), result
        assert result["entry"], result
        assert result["cubin_bytes"] > 0, result
        # 99 KiB is what a program may have on the smallest of the three, sm_120.
        assert result["shared_bytes"] <= 99 * 1024, result
        if "linear" in result["kernel"] and result["dtype"] == "fp16":
            assert result["async_copy"], f"loads are not overlapped with products: {result}"
            assert result["tensor_cores"], result
