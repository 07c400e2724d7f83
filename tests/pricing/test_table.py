"""Latency tables from times that are known: what they predict of plans that were not among those timed."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dcvit.errors import CheckFailedError, InputError
from dcvit.plan import BlockPlan, CompressionPlan, Merge
from dcvit.pricing.kept import check_table, read_table, write_table
from dcvit.pricing.probes import DEPTH, Style, design
from dcvit.pricing.table import Time, style_of
from dcvit.subject import Subject, open_shapes, original_of

SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [2, 2, 4, 2]}
BOTH = Style(("horizontal", "vertical"))


@pytest.fixture(scope="module")
def deit() -> Subject:
    return open_shapes("deit_tiny_patch16_224", {"img_size": 64, "patch_size": 8})


def random_plan(subject: Subject, seed: int, merges: tuple[Merge, ...] = ()) -> CompressionPlan:
    order, entries = random.Random(seed), []
    for index in range(1, subject.architecture.depth):
        kind = order.choice(["none", "block", "attention", "heads", "both"])
        width = order.randrange(24, 768, 8)
        head_dim = order.randrange(16, 64, 8)
        if kind == "block":
            entries.append(BlockPlan(index=index, removed="block"))
        elif kind == "attention":
            entries.append(BlockPlan(index=index, removed="attention", mlp_hidden=width))
        elif kind != "none":
            entries.append(BlockPlan(index=index, head_dim=head_dim, mlp_hidden=width if kind == "both" else None))
    return subject.plan.with_blocks(*entries).replace(merges=merges)


@pytest.mark.parametrize("seed", range(5))
def test_where_times_add_up_every_plan_is_predicted(made_up: Any, deit: Subject, seed: int) -> None:
    latency = made_up.additive(deit)
    table = made_up.table(deit, Style(), latency)
    plan = random_plan(deit, seed)
    tokens = deit.family.tokens(original_of(deit.plan), plan)
    assert table.scale == pytest.approx(1)
    assert table.predict(plan, tokens) == pytest.approx(latency(plan), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_merges_change_the_price_of_every_later_block(made_up: Any, deit: Subject, seed: int) -> None:
    latency = made_up.additive(deit)
    table = made_up.table(deit, BOTH, latency)
    places = sorted(random.Random(seed).sample(range(1, 11), 2))
    merges = (Merge(after=places[0], axis="horizontal"), Merge(after=places[1], axis="vertical"))
    plan = random_plan(deit, seed, merges)
    tokens = deit.family.tokens(original_of(deit.plan), plan)
    assert table.predict(plan, tokens) == pytest.approx(latency(plan), rel=1e-6)
    assert table.merges_ms == pytest.approx((0.5, 0.5))
    early, late = (table.group(1).saved("mlp", 384, count) for count in (tokens[0], tokens[-1]))
    assert late < early / 3  # a quarter of the tokens


def test_a_trimmed_block_costs_what_its_tokens_do(made_up: Any, deit: Subject) -> None:
    additive = made_up.additive(deit)

    def latency(plan: CompressionPlan) -> float:
        """A trimmed block has keys and values of all tokens left: 0.01 ms for each."""
        if not plan.trims_last_block:
            return float(additive(plan))
        tokens = deit.family.tokens(original_of(plan.original()), plan)[-1]
        last = plan.model_kwargs.get("depth", 12) - 1
        gone = plan.replace(trims_last_block=False).with_blocks(BlockPlan(index=last, removed="block"))
        return float(additive(gone)) + 0.01 * tokens

    table = made_up.table(deit, BOTH, latency)
    assert table.trimmed_ms == pytest.approx(0.01 * 65)
    for merges in ((), (Merge(after=4, axis="horizontal"), Merge(after=8, axis="vertical"))):
        plan = deit.plan.replace(merges=merges, trims_last_block=True)
        predicted = table.predict(plan, deit.family.tokens(original_of(deit.plan), plan))
        assert predicted == pytest.approx(latency(plan), rel=0.01)


def test_a_whole_model_that_takes_longer_than_its_parts_scales_them(made_up: Any, deit: Subject) -> None:
    latency = made_up.additive(deit)

    def slower(plan: CompressionPlan) -> float:
        short = plan.model_kwargs.get("depth") == DEPTH
        return latency(plan) if short else 3 + 1.1 * (latency(plan) - 3)

    table = made_up.table(deit, Style(), slower)
    assert table.scale == pytest.approx(1.1)
    for whole in table.whole:
        assert whole.predicted_ms == pytest.approx(whole.measured.ms, rel=1e-6)


def test_probes_are_shallow_where_blocks_are_equal_and_whole_where_not(made_up: Any, deit: Subject) -> None:
    wanted = design(deit, Style())
    assert {probe.plan.model_kwargs["depth"] for probe in wanted.probes} == {DEPTH}
    assert [group.blocks for group in wanted.groups] == [tuple(range(12))]
    swin = open_shapes("swin_tiny_patch4_window7_224", SWIN)
    groups = design(swin, Style()).groups
    assert [len(group.blocks) for group in groups] == [2, 2, 4, 2]
    assert {probe.kind for probe in design(swin, Style()).cuts} == {"block", "mlp"}


def test_stages_have_prices_of_their_own(made_up: Any) -> None:
    swin = open_shapes("swin_tiny_patch4_window7_224", SWIN)
    table = made_up.table(swin, Style(), made_up.additive(swin))
    original = original_of(swin.plan)
    plan = swin.plan.with_blocks(BlockPlan(index=1, mlp_hidden=48), BlockPlan(index=5, mlp_hidden=96))
    tokens = swin.family.tokens(original, plan)
    assert table.predict(plan, tokens) == pytest.approx(made_up.additive(swin)(plan), rel=1e-6)
    assert table.group(1) != table.group(5)


def test_a_runtime_that_is_slower_with_a_narrower_layer_saves_nothing_by_it(made_up: Any, deit: Subject) -> None:
    latency = made_up.additive(deit)

    def odd(plan: CompressionPlan) -> float:
        return latency(plan) + sum(2.0 for block in plan.blocks if block.head_dim == 48)

    table = made_up.table(deit, Style(), odd)
    assert table.group(1).saved("heads", 48, 65) == 0
    assert table.group(1).saved("heads", 32, 65) > 0


def test_a_table_comes_back_from_its_file_and_names_what_it_is_not_for(
    made_up: Any, deit: Subject, tmp_path: Path
) -> None:
    table = made_up.table(deit, BOTH, made_up.additive(deit))
    write_table(table, tmp_path / "edge.json")
    assert read_table(tmp_path / "edge.json") == table
    document = json.loads((tmp_path / "edge.json").read_text())
    assert document["predicted_ms"] == pytest.approx(document["measured_ms"])
    row = next(row for row in document["rows"] if (row["cut"], row["width"], row["tokens"]) == ("mlp", 384, 65))
    # 65 tokens: 0.01 each, 0.0005 a channel of 64, 0.00002 a node of 384, and 0.00005 a pair
    assert row["ms"] == pytest.approx(65 * (0.01 + 0.032 + 0.00768) + 65**2 * 0.00005)
    check_table(table, open_shapes("vit_tiny_patch16_224", {"img_size": 64, "patch_size": 8, "num_classes": 3}), BOTH)
    other = open_shapes("deit_tiny_patch16_224")
    with pytest.raises(InputError, match="--latency-table is of deit_tiny_patch16_224 {'img_size': 64"):
        check_table(table, other, Style())
    linear = deit.plan.replace(merges=(Merge(after=1, axis="vertical"),), merge_operator="linear")
    with pytest.raises(InputError, match="knows merges of the kind 'mean', the plan's are 'linear'"):
        check_table(table, deit, style_of(linear))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', '{"schema_version": 2}'])
def test_other_files_are_no_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(InputError, match="table.json"):
        read_table(tmp_path / "table.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "missing.json")


def test_the_setting_says_what_it_holds_for(made_up: Any, deit: Subject) -> None:
    text = "\n".join(str(line) for line in made_up.table(deit, Style(), made_up.additive(deit)).lines())
    assert "batch 64, onnxruntime fp32, CPU, 2 threads" in text
    assert made_up.setting.machine == "a made-up CPU"


def test_blocks_that_seem_to_cost_nothing_are_no_table(deit: Subject, made_up: Any) -> None:
    """As on a machine that is so busy that a model without blocks takes as long."""
    additive = made_up.additive(deit)

    def upside_down(plan: CompressionPlan) -> float:
        return 100 - additive(plan)

    with pytest.raises(CheckFailedError, match="this machine was too busy"):
        made_up.table(deit, Style(), upside_down)
    with pytest.raises(CheckFailedError, match="this machine was too busy"):
        made_up.table(deit, Style(), lambda _: 1.0)


def test_a_table_says_that_its_machine_was_busy(made_up: Any, deit: Subject) -> None:
    table = made_up.table(deit, BOTH, made_up.additive(deit))
    assert (table.doubts, table.warning) == ((), "")
    (group,) = table.groups
    level = group.levels[1]
    wide = level.model_copy(update={"block": Time(ms=2.0, low=1.6, high=2.4)})
    levels = (group.levels[0], wide, *group.levels[2:])
    unsure = table.model_copy(update={"groups": (group.model_copy(update={"levels": levels}),)})
    assert unsure.doubts == ("a block (0–11) on 33 tokens takes 2 ms, ±20%",)
    assert "--again" in unsure.warning
    whole = table.whole[0].model_copy(update={"predicted_ms": 0.88 * table.whole[0].measured.ms})
    missed = table.model_copy(update={"whole": (whole, *table.whole[1:])})
    assert missed.doubts == ("a whole model is missed by -12%",)
    assert missed.to_json()["doubts"] == [*missed.doubts]
    assert [*missed.lines()][-1] == missed.warning
