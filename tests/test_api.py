import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import dcvit
from dcvit.plan import CompressionPlan


def test_importing_the_package_is_light_and_gives_every_verb() -> None:
    code = (
        "import sys, dcvit\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)\n"
        "assert all(callable(getattr(dcvit, name)) for name in dcvit.__all__)\n"
        # A submodule that is imported later must not take the place of a function.
        "import dcvit.exporting, dcvit.verification, dcvit.compression, dcvit.frontiers, dcvit.reporting\n"
        "import dcvit.inspection, dcvit.evaluation, dcvit.bench\n"
        "assert all(callable(getattr(dcvit, name)) for name in dcvit.__all__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dcvit.nonsense  # noqa: B018


@pytest.mark.thorough
def test_the_readmes_example_on_a_small_model(tmp_path: Path, tiny_plan: CompressionPlan) -> None:
    teacher = timm.create_model(tiny_plan.model, **tiny_plan.model_kwargs)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    out = tmp_path / "small"
    result = dcvit.compress(teacher, "digits", out=out, macs_reduction=0.3, samples=16)
    assert result.summary.macs_reduction >= 0.3
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())

    dcvit.export(out, batch=2)
    assert dcvit.verify(out, "digits").passed
    row = dcvit.benchmark(out, batch=2, runs=5).rows[0]
    assert row.runs == 5
    assert row.speedup_ci95[0] <= row.speedup <= row.speedup_ci95[1]
    assert dcvit.evaluate(out, "digits", runtime="onnxruntime", batch=2).images == 500
    model = dcvit.load(out)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.forward_head(model.forward_features(images)), model(images))
