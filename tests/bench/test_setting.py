"""How two models are run, and how a baseline writes it down."""

from pathlib import Path

import pytest

from dcvit.bench.baseline import Baseline
from dcvit.bench.pair import Setting
from dcvit.errors import InputError
from dcvit.variant import Variant

BASELINES = sorted((Path(__file__).parents[2] / "benchmarks" / "baselines").glob("*.json"))


def test_the_baseline_is_the_same_variant_but_for_its_precision() -> None:
    pixels = Variant.of(4, "int8", with_preprocessing=True)
    assert Setting.of("onnxruntime", pixels).baseline_variant == pixels
    other = Setting.of("onnxruntime", pixels, "fp32", threads=1)
    assert (other.variant, other.threads) == (pixels, 1)
    assert other.baseline_variant == Variant.of(4, with_preprocessing=True)


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(InputError, match="--precision fp4: choose fp32"):
        Setting.of("onnxruntime", Variant(), "fp4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="there is no runtime 'caffe'"):
        Setting.of("caffe", Variant())


@pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
def test_a_baseline_is_written_as_it_was_read(file: Path, tmp_path: Path) -> None:
    baseline = Baseline.read(file)
    assert baseline.setting == Setting.of("onnxruntime", Variant.of(baseline.batch), threads=1)
    baseline.write(tmp_path / "again.json")
    before, after = (path.read_text().splitlines() for path in (file, tmp_path / "again.json"))
    # Files of before pixels say nothing of them.
    assert [line for line in after if "with_preprocessing" not in line] == [
        line for line in before if "with_preprocessing" not in line
    ]
