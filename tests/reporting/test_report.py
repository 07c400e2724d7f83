"""The report says what the folder's files say, in one file that stands alone."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dcvit.errors import InputError
from dcvit.evaluation.interval import packed, paired_interval, share_interval, unpacked
from dcvit.exporting import export
from dcvit.folder.findings import note_evaluation
from dcvit.folder.model_folder import ModelFolder
from dcvit.plan import BlockPlan, CompressionPlan
from dcvit.reporting import report
from dcvit.reporting.facts import Facts
from dcvit.summary import summarize

from . import page as pages
from .changes import change_manifest
from .page import cells, section

MakeFolder = Callable[..., ModelFolder]

SECTIONS = ["summary", "depth", "recoverability", "training", "accuracy", "parity", "latency", "serve", "origin"]


@pytest.fixture(scope="module")
def page(full: Path, tmp_path_factory: pytest.TempPathFactory) -> pages.Element:
    copy = shutil.copytree(full, tmp_path_factory.mktemp("page") / "small-vit")
    return pages.read(report(copy).html)


def test_the_page_stands_alone_and_its_links_lead_somewhere(page: pages.Element) -> None:
    assert [each.attributes["id"] for each in page.all("section")] == SECTIONS
    everything = page.all("a") + page.all("link") + page.all("script") + page.all("img") + page.all("image")
    targets = [value for each in everything for name, value in each.attributes.items() if name in ("href", "src")]
    assert "#latency" in targets
    ids = [each for each in _ids(page) if each]
    assert len(ids) == len(set(ids))
    assert all(target == "data:," or target.removeprefix("#") in ids for target in targets)
    (style,) = page.all("style")
    assert not re.search(r"@import|url\(", "".join(style.own))


def test_what_is_drawn_has_a_name_and_tables_have_headings(page: pages.Element) -> None:
    drawings = [each for each in page.all("svg") if "aria-hidden" not in each.attributes]
    assert len(drawings) == 2 * 4  # depth, damage, training and latency, for a laptop and for a phone
    assert all(each.attributes["role"] == "img" and each.attributes["aria-label"] for each in drawings)
    assert len(page.all("h1")) == 1
    for table in page.all("table"):
        assert all("scope" in heading.attributes for heading in table.all("th"))


def test_the_costs_are_those_of_the_plan(full: Path, page: pages.Element) -> None:
    plan = ModelFolder(full).plan
    costs = summarize(plan, plan.original())
    rows = {row[0]: row[1:] for row in cells(section(page, "summary").all("table")[0])}
    assert rows["MACs"][2] == f"−{100 * costs.macs_reduction:.1f} %"
    assert rows["tokens into the last block"] == ["17", "5", "−70.6 %"]
    assert rows["latency, batch 4"][2].startswith("×1.5")


def test_accuracy_before_and_after_and_of_each_precision(full: Path, page: pages.Element) -> None:
    found = json.loads((full / "evaluations.json").read_text())["results"]
    top1 = next(row["top1"] for row in found if not row["original"])
    rows = {row[0]: row[1:] for row in cells(section(page, "summary").all("table")[0])}
    assert rows["top-1, digits"] == ["50.00 %", f"{top1:.2f} %", f"{top1 - 50:+.2f} pt".replace("-", "−")]
    measured, compared = section(page, "accuracy").all("table")
    assert [row[0] for row in cells(measured)] == ["original", "this model"]
    (own,) = (row for row in found if not row["original"])
    low, high = share_interval(round(5 * own["top1"]), 500)
    mine = cells(measured)[1]
    assert mine[1] == "model.safetensors"
    assert mine[3].startswith(f"top-1 {top1:.2f} % [{low:.2f}, {high:.2f}], top-5")
    assert mine[4] == f"{top1 - 50:+.2f} pt".replace("-", "−")  # which images the original is right on is not known
    ((file, *_, drop, _),) = cells(compared)
    assert file == "model.b4.fp16.onnx"
    record = ModelFolder(full).manifest.exports[file]["evaluation"]
    assert drop == f"{record['top1_fp32'] - record['top1']:.2f} (100)"


def test_a_change_of_accuracy_has_a_paired_interval_where_each_image_was_judged(full_copy: ModelFolder) -> None:
    row = {"top1": 50.0, "data": "digits", "images": 500, "corrupt": 0, "runtime": "torch", "precision": "fp32",
           "device": "CPU"}  # fmt: skip
    before = np.arange(500) < 250
    note_evaluation(full_copy, row | {"right": packed(before)}, batch=4, file=None)
    (own,) = (each for each in json.loads((full_copy.path / "evaluations.json").read_text())["results"]
              if not each["original"])  # fmt: skip
    low, high = paired_interval(before, unpacked(own["right"], 500))
    page = pages.read(report(full_copy.path).html)
    (_, mine) = cells(section(page, "accuracy").all("table")[0])
    assert mine[4].endswith(f"[{low:+.2f}, {high:+.2f}]".replace("-", "−"))
    assert low < own["top1"] - 50 < high


def test_files_exported_since_verify_are_named_and_the_newest_measured_one_is_the_headline(
    full_copy: ModelFolder,
) -> None:
    page = pages.read(report(full_copy.path).html)
    assert "Not verified" not in section(page, "parity").text
    export(full_copy, 8, "fp32")
    page = pages.read(report(full_copy.path).html)
    parity = " ".join(section(page, "parity").text.split())
    assert "Not verified" in parity
    assert "model.b8.fp32.onnx" in [code.text for code in section(page, "parity").all("code")]
    assert "Every exported file" not in parity
    facts = Facts(ModelFolder(full_copy.path))
    assert facts.headline is not None
    rows = {row["file"] for row in facts.bench}
    newest = max(rows, key=lambda name: (full_copy.path / name).stat().st_mtime_ns)
    assert facts.headline["file"] == newest
    assert newest in section(page, "summary").text


def test_batches_do_not_share_an_axis(full_copy: ModelFolder) -> None:
    bench = json.loads((full_copy.path / "bench.json").read_text())
    bench["results"].append(bench["results"][0] | {"batch": 1, "median_ms": 0.01})
    full_copy.add("bench.json", lambda path: path.write_text(json.dumps(bench)) and None)
    facts = Facts(ModelFolder(full_copy.path))
    assert [{row["batch"] for row in rows} for rows in facts.bench_by_batch] == [{4}, {1}]
    page = pages.read(report(full_copy.path).html)
    names = [each.attributes.get("aria-label", "") for each in section(page, "latency").all("svg")]
    assert sum(name.startswith("Distribution") for name in names) == 2 * 2  # each wide, and for a phone


def test_every_check_of_verify_is_listed(full: Path, page: pages.Element) -> None:
    checks = json.loads((full / "verify.json").read_text())["checks"]
    parity = section(page, "parity")
    assert sum(len(cells(table)) for table in parity.all("table")) == len(checks)
    assert f"All {len(checks)} checks hold" in parity.text


def test_bars_are_as_high_as_the_widths(page: pages.Element) -> None:
    drawing = section(page, "depth").all("svg")[0]
    kept = [float(bar.attributes["height"]) for bar in drawing.all("rect", "kept")]
    # Tokens 17 9 5 5 of 17; attention 32 – 16 32 of 32; MLP 128 64 128 32 of 128. Panels are 84 high.
    shares = [1, 9 / 17, 5 / 17, 5 / 17, 1, 0.5, 1, 1, 0.5, 1, 0.25]
    assert kept == pytest.approx([84 * share for share in shares], abs=0.1)
    assert len(drawing.all("rect", "dashed")) == 1
    assert [text.text for text in drawing.all("text", "grid-size")] == ["2×2", "4×2"]


def test_low_damage_is_drawn_low(page: pages.Element) -> None:
    drawing = section(page, "recoverability").all("svg")[0]
    heights = [float(mark.attributes["d"].split()[1].split("L")[0]) for mark in drawing.all("path", "attention")]
    assert heights == sorted(heights)  # damage falls from block to block, so the marks sink; y counts downwards
    assert [mark.text for mark in drawing.all("path", "chosen")] == ["block 1 without attention: 0.1 nats"]
    heads = [mark for mark in drawing.all("circle") if "heads" in mark.attributes["class"]]
    assert [mark.text for mark in heads] == [f"block {block}, heads of 8: {block + 1}e-05 nats" for block in range(4)]
    lower = [float(mark.attributes["cy"]) for mark in heads]
    assert lower == sorted(lower, reverse=True)  # here damage rises


def test_where_the_time_went(page: pages.Element) -> None:
    bars = section(page, "origin").all("ul", "bars")[0].all("li")
    assert [bar.children[0].text for bar in bars] == ["recovery", "refit", "other"]
    assert [bar.children[1].attributes["style"] for bar in bars] == ["width:60.00%", "width:20.00%", "width:20.00%"]


@pytest.mark.parametrize(("kept", "word"), [(True, "kept, learning rate 5e-06"), (False, "taken back")])
def test_what_training_did_on_unseen_images_is_told(full_copy: ModelFolder, kept: bool, word: str) -> None:
    training = {"images": 8, "before": 0.25, "after": 0.125, "lr": 5e-6, "kept": kept}
    change_manifest(full_copy, metrics={"training": training, "kl": 0.1})
    text = section(pages.read(report(full_copy.path).html), "origin").text
    assert f"KL 0.25 → 0.125 nats on 8 images that were neither fitted nor trained on: {word}" in text


def test_nothing_of_the_machine_s_paths_is_told(full_copy: ModelFolder) -> None:
    made = report(full_copy.path)
    for text in (made.html.read_text(), made.card.read_text()):
        assert "photos" in text
        assert "somebody" not in text
        assert str(full_copy.path.parent) not in text


def test_what_is_missing_names_its_command(bare: ModelFolder) -> None:
    page = pages.read(report(bare.path).html)
    commands = [code.text for code in page.all("code", "command")]
    assert "dcvit-tool export bare && dcvit-tool bench bare" in commands
    assert "dcvit-tool evaluate bare --data IMAGES" in commands
    (original,) = (shlex.split(command) for command in commands if "--as-original-of" in command)
    assert original[:4] == ["dcvit-tool", "evaluate", "vit_tiny_patch16_224", "--model-kwargs"]
    assert json.loads(original[4]) == bare.plan.model_kwargs
    assert original[5:] == ["--data", "IMAGES", "--as-original-of", "bare"]
    assert "dcvit-tool export bare && dcvit-tool verify bare" in commands
    assert "dcvit-tool export bare --precision fp16 --trt --flavor tensorrt-rtx" in commands
    assert not section(page, "latency").all("svg")
    assert "recoverability" not in [each.attributes["id"] for each in page.all("section")]


def test_what_was_found_of_another_file_is_not_shown(full_copy: ModelFolder) -> None:
    name = "model.b4.fp32.onnx"
    model = onnx.load(full_copy.path / name)
    model.doc_string = "another file"
    full_copy.add(name, lambda path: onnx.save(model, path), full_copy.manifest.exports[name])
    page = pages.read(report(full_copy.path).html)
    assert "dcvit-tool bench small-vit" in " ".join(section(page, "latency").text.split())
    files = [summary.text for summary in section(page, "parity").all("summary")]
    assert any("model.b4.fp16.onnx" in file for file in files)
    assert not any(name in file for file in files)


def test_a_failed_check_is_open_and_counted(full_copy: ModelFolder) -> None:
    found = json.loads((full_copy.path / "verify.json").read_text())
    found["checks"][0]["passed"] = False
    full_copy.add("verify.json", lambda path: path.write_text(json.dumps(found)) and None)
    parity = section(pages.read(report(full_copy.path).html), "parity")
    assert f"1 of {len(found['checks'])} checks FAILED" in parity.text
    assert [("open" in each.attributes) for each in parity.all("details")] == [True, False]


def test_names_are_text_and_never_markup(full_copy: ModelFolder) -> None:
    row = {"top1": 1.0, "images": 5, "runtime": "torch", "precision": "fp32", "device": "CPU"}
    note_evaluation(full_copy, row | {"data": "<script>alert(1)<b>"}, batch=4, file="model.safetensors")
    page = pages.read(report(full_copy.path).html)
    assert not page.all("script")
    assert "5 of <script>alert(1)<b>" in section(page, "accuracy").text


def test_the_report_belongs_to_the_folder_and_is_the_same_twice(full_copy: ModelFolder) -> None:
    first = report(full_copy.path).html.read_bytes()
    assert ModelFolder(full_copy.path).manifest.files["report.html"].bytes == len(first)
    assert report(full_copy.path).html.read_bytes() == first
    assert len(first) < 300_000


def test_an_edited_card_is_kept(full_copy: ModelFolder) -> None:
    card = report(full_copy.path).card
    assert "| MACs |" in card.read_text()
    assert "\n\n## Parity\n\nEvery exported file" in card.read_text()
    change_manifest(full_copy, seed=7)
    assert not report(full_copy.path).card_kept
    assert "seed 7" in card.read_text()
    card.write_text(card.read_text().replace("# small-vit", "# My model"))
    again = report(full_copy.path)
    assert again.card_kept
    assert "# My model" in card.read_text()


def test_the_card_s_front_matter_claims_nothing_unknown(full_copy: ModelFolder) -> None:
    yaml = pytest.importorskip("yaml")
    text = report(full_copy.path).card.read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert front["metrics"] == ["accuracy"]
    assert {"base_model", "license", "datasets"}.isdisjoint(front)


def test_a_frontier_has_a_page_of_its_own_and_each_model_its_place_on_it(frontier_folder: Path) -> None:
    made = report(frontier_folder)
    page = pages.read(made.html)
    rows = cells(section(page, "models").all("table")[0])
    assert [row[0] for row in rows] == ["original", "r0.1", "r0.3", "r0.5"]
    assert [row[3] for row in rows] == ["91.00 %", "90.00 %", "80.00 %", "85.00 %"]
    by_macs = section(page, "frontier").all("svg")[0]
    assert [mark.text.split(":")[0] for mark in by_macs.all("circle", "beaten")] == ["r0.3"]
    assert "somebody" not in made.html.read_text()
    assert [model.html for model in made.models] == [frontier_folder / f"r{r}" / "report.html" for r in (0.1, 0.3, 0.5)]
    model = pages.read(made.models[1].html)
    assert len(section(model, "frontier").all("circle", "ring")) == 4  # by MACs and latency, in two widths
    rows = {row[0]: row for row in cells(section(model, "summary").all("table")[0])}
    assert rows["top-1, digits"][1:3] == ["91.00 %", "80.00 %"]
    assert rows["latency, batch 4"][3].startswith("×1.3")  # as the frontier measured it


def test_neither_a_model_nor_a_frontier(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a model folder .* nor a frontier"):
        report(tmp_path)


def _ids(element: pages.Element) -> list[str]:
    own = [element.attributes["id"]] if "id" in element.attributes else []
    return own + [each for child in element.children for each in _ids(child)]


def test_trials_are_bars_and_the_chosen_ones_stand_out(full_copy: ModelFolder) -> None:
    trials = [{"blocks": [block], "kl": kl, "seconds": 1.0} for block, kl in ((2, 0.4), (1, 0.1))]
    change_manifest(full_copy, metrics={"trials": trials})
    drawing = section(pages.read(report(full_copy.path).html), "recoverability").all("svg")[0]
    (cut,), (left,) = drawing.all("rect", "kept"), drawing.all("rect", "gone")
    assert (cut.text, left.text) == ("block 1: 0.1 nats", "block 2: 0.4 nats")
    assert float(left.attributes["height"]) == pytest.approx(4 * float(cut.attributes["height"]), rel=0.01)


@pytest.mark.parametrize(
    ("model", "kwargs", "block", "panels"),
    [
        ("resnet18", {"num_classes": 3}, BlockPlan(index=1, removed="block"), ["tokens", "block channels"]),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]},
            BlockPlan(index=1, mlp_hidden=8),
            ["tokens", "attention channels", "MLP hidden nodes"],
        ),
    ],
)
def test_other_families(
    tmp_path: Path, make_folder: MakeFolder, model: str, kwargs: dict[str, Any], block: BlockPlan, panels: list[str]
) -> None:
    plan = CompressionPlan(model=model, model_kwargs=kwargs, blocks=(block,))
    page = pages.read(report(make_folder(tmp_path / "other", plan).path).html)
    drawing = section(page, "depth").all("svg")[0]
    names = [text.text for text in drawing.all("text", "name")]
    assert names == panels
    cut = [bar.text for bar in drawing.all("rect", "gone") if bar.text.startswith("block 1:")]
    assert cut[-1] in ("block 1: removed", "block 1: 8 of 96")
