"""The whole benchmark, on small models."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch

import dcvit.bench.pair
from dcvit.bench import benchmark
from dcvit.bench.pair import pair_of
from dcvit.bench.warm_up import warm_up
from dcvit.cost import count_macs
from dcvit.errors import InputError
from dcvit.exporting import export
from dcvit.folder.model_folder import ModelFolder
from dcvit.folder.temporary import temporary_folder
from dcvit.model import build, stand_in
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.runtimes import available_cores
from dcvit.subject import open_shapes

MakeFolder = Callable[[Path, CompressionPlan], ModelFolder]


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcvit.bench.rounds.warm_up", partial(warm_up, window_seconds=0.02, max_seconds=0.1))


def test_result_is_written_with_machine_macs_and_protocol(
    exported_copy: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    result = benchmark(exported_copy.path, runtimes=["onnxruntime", "torch", "torch"], batch=4, runs=10)
    folder = ModelFolder(exported_copy.path)  # checks the sha256 of bench.json
    report = json.loads((folder.path / "bench.json").read_text())
    assert report == json.loads(json.dumps(result.to_json() | {"folder": folder.path.name}, allow_nan=False))
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [row["runtime"] for row in report["results"]] == ["onnxruntime", "torch"]
    original = count_macs(build(folder.plan.original(), device="meta"), (3, 32, 32)).total
    for row in report["results"]:
        assert (row["batch"], row["precision"], row["runs"], row["stopped"]) == (4, "fp32", 10, "runs")
        assert row["speedup"] == pytest.approx(row["baseline_median_ms"] / row["median_ms"])
        low, high = row["speedup_ci95"]
        assert low <= row["speedup"] <= high
        assert row["median_ms"] <= row["p95_ms"]
        assert row["baseline_macs"] == original
        assert row["macs_ratio"] == pytest.approx(original / row["macs"])
        assert row["macs"] < original
        assert row["threads"] == (None if row["device"] != "CPU" else available_cores())
        assert row["p95_ms"] <= row["p99_ms"]
        assert row["verdict"] in ("faster", "slower", "no difference")
        assert row["images_per_second"] == pytest.approx(4000 / row["median_ms"])
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["macs_ratio"])
        assert row["sha256"] == folder.manifest.files[row["file"]].sha256
        assert row["machine"] == report["machine"]
    assert report["against"] == "vit_tiny_patch16_224 (uncompressed, random weights)"
    assert {"cpu", "cores", "gpu", "versions", "load", "load_after", "kind"} <= set(report["machine"])


def test_a_model_without_most_of_its_blocks_is_faster(
    make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    kwargs = tiny_plan.model_kwargs | {"embed_dim": 128, "depth": 8, "patch_size": 4}
    plan = tiny_plan.replace(
        model_kwargs=kwargs, blocks=tuple(BlockPlan(index=index, removed="block") for index in range(1, 8))
    )
    folder = make_folder(tmp_path / "model", plan)
    export(folder, 8)
    original = exported_original(make_folder, tmp_path, plan)
    (row,) = benchmark(folder, original, batch=8, runs=30, threads=1).rows
    assert row.verdict == "faster"
    # One block of eight is left, about 1/7 of the MACs: ×5 on a quiet machine. Beside another test process on two cores
    # ×1.8 was seen at the lower end of the interval, so the test asks for the direction, with certainty.
    assert row.speedup_ci95[0] > 1
    (swapped,) = benchmark(original, folder.path, batch=8, runs=30, threads=1).rows
    assert swapped.speedup_ci95[1] < 1
    assert swapped.verdict == "slower"


def exported_original(make_folder: MakeFolder, tmp_path: Path, plan: CompressionPlan) -> Path:
    folder = make_folder(tmp_path / "original", plan.original())
    export(folder, 8)
    return folder.path


def test_bench_json_keeps_what_earlier_runs_found_of_the_same_files(exported_copy: ModelFolder, exported: Path) -> None:
    def rows() -> list[tuple[str, str, int]]:
        report = json.loads((exported_copy.path / "bench.json").read_text())
        return [(row["runtime"], row["precision"], row["runs"]) for row in report["results"]]

    run = partial(benchmark, against=exported, batch=4, threads=1)
    run(exported_copy, runs=5)
    run(exported_copy, runs=6, precision="fp16")
    run(exported_copy, runs=7)
    assert rows() == [("onnxruntime", "fp16", 6), ("onnxruntime", "fp32", 7)]
    # The same network with another weight: what was measured with the file before holds no longer.
    file = onnx.load(exported_copy.path / "model.b4.fp16.onnx")
    file.doc_string = "changed"
    exported_copy.add("model.b4.fp16.onnx", lambda path: path.write_bytes(file.SerializeToString()))
    run(ModelFolder(exported_copy.path), runtimes=["torch"], runs=5)
    assert rows() == [("onnxruntime", "fp32", 7), ("torch", "fp32", 5)]


def test_files_that_take_pixels_are_timed_against_the_original_that_does(exported_copy: ModelFolder) -> None:
    run = partial(benchmark, exported_copy, batch=4, runs=5, threads=1)
    with pytest.raises(InputError, match=r"no model.b4.fp32.u8.onnx; make it with .* --with-preprocessing"):
        run(with_preprocessing=True)
    with pytest.raises(InputError, match="--with-preprocessing is about exported files, and runtime torch"):
        run(with_preprocessing=True, runtimes=["torch"])
    export(exported_copy, 4, with_preprocessing=True)
    (row,) = run(with_preprocessing=True, memory=True).rows
    assert row.measured is not None
    assert (row.measured.file, row.measured.with_preprocessing) == ("model.b4.fp32.u8.onnx", True)
    assert row.memory is not None
    run(exported_copy.path)
    rows = json.loads((exported_copy.path / "bench.json").read_text())["results"]
    assert [(each["file"], each["with_preprocessing"]) for each in rows] == [
        ("model.b4.fp32.u8.onnx", True), ("model.b4.fp32.onnx", False),
    ]  # fmt: skip


def test_the_papers_protocol_takes_means_of_500_runs(exported_copy: ModelFolder, exported: Path) -> None:
    (row,) = benchmark(exported_copy, exported, batch=4, protocol="paper", threads=1).rows
    assert (row.runs, row.protocol, row.threads) == (500, "paper", 1)
    assert row.speedup == pytest.approx(row.baseline.mean_ms / row.latency.mean_ms)
    assert row.images_per_second == pytest.approx(4000 / row.latency.mean_ms)


def test_peak_memory_is_that_of_a_process_that_runs_the_model_alone(make_folder: MakeFolder, tmp_path: Path) -> None:
    # 6 blocks 512 wide are 75 MB of weights, of which the other model has none.
    kwargs = {"img_size": 32, "patch_size": 16, "embed_dim": 512, "depth": 7, "num_heads": 2, "num_classes": 10}
    plan = CompressionPlan(model="vit_tiny_patch16_224", model_kwargs=kwargs)
    small = plan.replace(blocks=tuple(BlockPlan(index=index, removed="block") for index in range(1, 7)))
    folder, other = make_folder(tmp_path / "small", small), make_folder(tmp_path / "large", plan)
    (row,) = benchmark(folder, other.path, runtimes=["torch"], batch=1, runs=5, threads=1, memory=True).rows
    assert row.memory is not None
    assert row.baseline_memory is not None
    assert row.memory.where == ("process" if row.threads else "GPU tensors")
    difference = row.baseline_memory.peak_mib - row.memory.peak_mib
    weights = 6 * 12 * 512**2 * 4
    assert 0.8 * weights < difference * 2**20 < 2.3 * weights  # loading may hold them twice


def test_another_timm_model_gets_the_folders_arguments(exported_copy: ModelFolder) -> None:
    result = benchmark(exported_copy, "vit_small_patch16_224", runtimes=["torch"], batch=2, runs=5, threads=1)
    assert result.against == "vit_small_patch16_224 (uncompressed, random weights)"
    assert result.baseline_macs > result.macs


def test_models_for_images_of_other_sizes_are_not_compared(
    exported_copy: ModelFolder, make_folder: MakeFolder, tmp_path: Path, tiny_plan: CompressionPlan
) -> None:
    other = make_folder(tmp_path / "other", tiny_plan.replace(model_kwargs=tiny_plan.model_kwargs | {"img_size": 64}))
    before = sorted(exported_copy.path.iterdir())
    with pytest.raises(InputError, match=r"takes images of \[3, 64, 64\] and .* of \[3, 32, 32\]"):
        benchmark(exported_copy, other.path, runtimes=["torch"], batch=4)
    assert sorted(exported_copy.path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "at least one image"),
        ({"batch": 8}, "no model.b8.fp32.onnx; make it with `dcvit-tool export .* --batch 8`"),
        ({"batch": 4, "runtimes": ["torch", "tflite"]}, "no runtime 'tflite'"),
        ({"batch": 4, "against": "no_such_model"}, "neither a model folder nor a timm model"),
        ({"batch": 4, "runs": 3}, "--runs 3"),
        ({"batch": 4, "precision": "fp4"}, "--precision fp4: choose fp32"),
        ({"batch": 4, "baseline_precision": "fp4"}, "--precision fp4: choose fp32"),
        ({"batch": 4, "protocol": "best"}, "--protocol best: choose default or paper"),
        ({"batch": 4, "threads": 0}, "--threads 0: this process may use"),
    ],
)
def test_bad_arguments_are_refused_before_any_timing(
    exported_copy: ModelFolder, arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcvit.bench.pair, "export_for", lambda *_: pytest.fail("the original was exported already"))
    with pytest.raises(InputError, match=message):
        benchmark(exported_copy, **arguments)
    assert not (exported_copy.path / "bench.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_runtime_without_a_gpu_is_refused(exported_copy: ModelFolder) -> None:
    with pytest.raises(InputError, match="runtime tensorrt-rtx cannot run here"):
        benchmark(exported_copy, runtimes=["torch", "tensorrt-rtx"], batch=4)


def test_the_original_has_biases_where_the_model_has(tiny_plan: CompressionPlan, tmp_path: Path) -> None:
    """ONNX Runtime leaves additions of 0 out, and was a tenth faster with an original that was never trained."""
    kinds = {}
    for name, model in (("first", build(tiny_plan)), ("trained", stand_in(tiny_plan))):
        preprocessing = open_shapes(tiny_plan.model, tiny_plan.model_kwargs).preprocessing
        with temporary_folder(model, tiny_plan, preprocessing) as folder, pair_of(folder, None) as pair:
            kinds[name] = pair.baseline.load().state_dict()
    assert not kinds["first"]["blocks.0.mlp.fc1.bias"].any()
    assert all(bool((tensor != 0).all() and (tensor != 1).all()) for tensor in kinds["trained"].values())
