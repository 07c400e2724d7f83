"""Two processes share the work, as `torchrun` starts them: same trials, same plan, same weights to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcvit.folder.model_folder import ModelFolder
from dcvit.model import create
from dcvit.plan import CompressionPlan


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, tiny_plan: CompressionPlan) -> list[str]:
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(create(tiny_plan.model, tiny_plan.model_kwargs).state_dict(), checkpoint)
    return [
        "compress", tiny_plan.model, "--model-kwargs", json.dumps(tiny_plan.model_kwargs), "--checkpoint",
        str(checkpoint), "--data", "digits", "--samples", "16", "--macs-reduction", "0.4", "--json",
    ]  # fmt: skip


METHODS = {
    "trials": ["--steps", "3", "--search", "trials"],
    "solver": ["--steps", "3", "--search", "solver"],
    # Without pruning: which of two nodes of nearly equal importance goes may hang on the last digit of a gradient.
    "cait": ["--method", "cait", "--merge", "horizontal@1,vertical@1", "--no-prune", "--epochs", "2", "--batch-size",
             "8", "--mixup", "0.5", "--accumulate", "2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["solver", *(pytest.param(name, marks=pytest.mark.thorough) for name in METHODS if name != "solver")]
)
def test_two_processes_do_what_one_does(tmp_path: Path, arguments: list[str], method: str) -> None:
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    reports = {}
    for name, launcher in launchers.items():
        command = [*launcher, "-m", "dcvit.cli.main", *arguments, *METHODS[method], "-o", str(tmp_path / name)]
        environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        reports[name] = json.loads(result.stdout)  # one object: the second process says nothing
    one, two = (ModelFolder(tmp_path / name) for name in launchers)
    assert one.plan.digest == two.plan.digest
    if method == "trials":
        scores = [[trial["kl"] for trial in reports[name]["metrics"]["trials"]] for name in launchers]
        assert scores[0] == scores[1]
    weights = [folder.load().state_dict() for folder in (one, two)]
    for name, tensor in weights[0].items():
        # Averaged gradients of half batches are summed in another order, in bf16 where the machine is fast in it; Adam
        # turns the rounding of a tiny gradient into up to a whole step of lr = 2e-4.
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=3 * 2e-4)
