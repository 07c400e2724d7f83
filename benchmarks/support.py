"""Which timm families go the whole path, tried on the smallest member of each: writes the table of `docs/support.md`.

    python benchmarks/support.py -o benchmarks/results/support.json

Each member is real but for its depth and its input, which are cut. It gets weights like trained ones, and then: nothing
cut gives equal outputs; each kind of cut is planned, or refused with the reason; all that are taken, together, are
compressed, exported in fp32 and fp16, run in ONNX Runtime against PyTorch, and built by TensorRT-RTX, without a GPU.
`tests/test_support.py` runs the same on narrower members. About five minutes on two cores.
"""

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import nn

from dcvit.cli.main import cli
from dcvit.compression import compress
from dcvit.cost import count_macs
from dcvit.errors import DcvitError, InputError
from dcvit.exporting import export
from dcvit.families import Family, family_of
from dcvit.files import whole_file
from dcvit.folder.model_folder import ModelFolder
from dcvit.model import build, create
from dcvit.plan import BlockPlan, CompressionPlan, parse_merges
from dcvit.runtimes.flavors import installed
from dcvit.summary import PlanSummary, summarize
from dcvit.verification import Check, verify
from dcvit.versions import package_versions

DOCS = Path(__file__).parents[1] / "docs" / "support.md"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- support: written by benchmarks/support.py -->", "<!-- /support -->"
BATCH = 2


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Attributes:
        model: timm name of the smallest member.
        kwargs: Few blocks, small images.
        narrow: What makes it cheaper still, for tests.
    """

    model: str
    kwargs: dict[str, Any]
    narrow: dict[str, Any]

    def plan(self, *, narrow: bool = False) -> CompressionPlan:
        return CompressionPlan(model=self.model, model_kwargs=self.kwargs | (self.narrow if narrow else {}))


_16 = {"img_size": 64, "depth": 4}  # patches of 16 pixels, as those of 14 below: a grid of 4×4
_14 = {"img_size": 56, "depth": 4}
_NARROW = {"embed_dim": 96, "num_heads": 3, "num_classes": 10}
_SWIN = {"img_size": 64, "window_size": 4, "depths": [1, 2, 4, 1]}
_NARROW_SWIN = {"depths": [1, 4, 1], "embed_dim": 24, "num_heads": [1, 2, 2], "num_classes": 10}

MEMBERS: dict[str, Member] = {
    "ViT": Member("vit_tiny_patch16_224", _16, _NARROW),
    "DeiT": Member("deit_tiny_patch16_224", _16, _NARROW),
    "DeiT III": Member("deit3_small_patch16_224", _16, _NARROW),
    "ViT with registers": Member("vit_betwixt_patch16_reg4_gap_256", _16, _NARROW),
    "DINOv2": Member("vit_small_patch14_dinov2", _14, _NARROW),
    "DINOv3": Member("vit_small_patch16_dinov3", _16, _NARROW),
    "SigLIP": Member("vit_base_patch16_siglip_224", _16, _NARROW),
    "FlexiViT": Member("flexivit_small", _16, _NARROW),
    "EVA-02": Member("eva02_tiny_patch14_224", _14, _NARROW),
    "BEiT": Member("beit_base_patch16_224", _16, _NARROW),
    "CaiT": Member("cait_xxs24_224", _16, _NARROW),
    "Swin": Member("swin_tiny_patch4_window7_224", _SWIN, _NARROW_SWIN),
    "Swin V2": Member("swinv2_tiny_window8_256", _SWIN, _NARROW_SWIN),
    "ResNet": Member(
        "resnet18",
        {"pretrained_cfg_overlay": {"input_size": [3, 64, 64]}},
        {"layers": [2, 1, 1, 1], "num_classes": 10},
    ),
}

REFUSED: dict[str, str] = {
    "EVA-02, base and larger": "eva02_base_patch14_224",
    "ViT, mixed rotary embedding": "vit_small_patch16_rope_mixed_224",
    "ViT, relative positions": "vit_relpos_small_patch16_224",
    "Swin V2 CR": "swinv2_cr_tiny_224",
    "ResNet V2": "resnetv2_50",
    "ConvNeXt": "convnext_atto",
    "MLP-Mixer": "mixer_s32_224",
}
"""Near relatives that are not taken, by one model each."""

CUTS = ("merge tokens", "remove attention", "narrow MLPs", "narrow heads", "remove blocks")
STEPS = ("identity", "plan", "compress", "export", "ONNX Runtime", "engine")


@dataclass
class Row:
    """What was found of one family.

    Attributes:
        cuts: For each of `CUTS`, `yes` or the reason why not.
        steps: For each of `STEPS`, `ok`, `not run`, or what failed.
        figures: Of the compressed model: MACs before and after, of one image; largest error against PyTorch as a share
            of the largest logit.
    """

    family: str
    model: str
    model_kwargs: dict[str, Any]
    cuts: dict[str, str] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=lambda: dict.fromkeys(STEPS, "not run"))
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(found in ("ok", "not run") for found in self.steps.values())


class Trial:
    """One member, step by step; each raises an error where it does not hold.

    Args:
        plan: Of the member, with nothing cut.
        place: A folder for files.
    """

    def __init__(self, plan: CompressionPlan, place: Path) -> None:
        self.plan, self.place = plan, place
        torch.manual_seed(0)
        self.model = like_trained(create(plan.model, plan.model_kwargs))
        self.family: Family = family_of(self.model)
        self.size = self.family.architecture(self.model).input_size

    @torch.no_grad()
    def identity(self) -> None:
        """Nothing cut gives equal outputs, in a copy and built anew."""
        images = torch.randn(BATCH, *self.size)
        wanted = self.model(images)
        rebuilt = build(self.plan)
        rebuilt.load_state_dict(self.model.state_dict())
        for other in (self.family.cut(self.model, self.plan), rebuilt):
            if not torch.equal(other(images), wanted):
                raise AssertionError(f"{self.plan.model} changes where nothing is cut")

    def cuts(self) -> dict[str, str]:
        """Every kind of cut alone: taken, which means fewer MACs, or refused, for a reason."""
        before = count_macs(build(self.plan, device="meta"), self.size).total
        found = {}
        for cut in CUTS:
            plan = self._planned([cut])
            try:
                student = build(plan, device="meta")
            except InputError as error:
                found[cut] = str(error).split(f"{self.plan.model}: ", 1)[-1]
                continue
            if not count_macs(student, self.size).total < before:
                raise AssertionError(f"{cut} saves nothing in {plan.model}")
            found[cut] = "yes"
        return found

    def planned(self, cuts: dict[str, str]) -> PlanSummary:
        """All cuts that are taken, together."""
        return summarize(self._planned([cut for cut, taken in cuts.items() if taken == "yes"]), self.plan)

    def compress(self, summary: PlanSummary) -> ModelFolder:
        """A model folder of the plan, whose model has the MACs that were planned."""
        weights = self.place / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, weights)
        folder = self.place / "model"
        compress(
            self.plan.model,
            out=folder,
            plan=summary.plan,
            recover="none",
            model_kwargs=self.plan.model_kwargs,
            checkpoint=weights,
        )
        made = ModelFolder(folder)
        if count_macs(made.load(), self.size).total != summary.macs_after:
            raise AssertionError(f"{made.path} has other MACs than its plan")
        return made

    def parity(self, folder: ModelFolder) -> float:
        """Largest error of ONNX Runtime in fp32, as a share of the largest logit; everything exported is checked."""
        # How far bf16 is off depends on the weights, and these are random.
        checks = [check for check in verify(folder).checks if " bf16 " not in check.name]
        if failed := [f"{check.name}: {check.detail}" for check in checks if not check.passed]:
            raise AssertionError("; ".join(failed))
        return max(_relative(check) for check in checks if "fp32.onnx: ONNX Runtime against PyTorch" in check.name)

    def _planned(self, cuts: Iterable[str]) -> CompressionPlan:
        """Different blocks for different cuts, so that they compose; all MLPs that stay become narrower."""
        cuts, specs = set(cuts), self.family.architecture(self.model).blocks
        units = self.family.units(self.model)
        entries = {index: BlockPlan(index=index) for index in range(len(specs))}

        def change(index: int, **fields: Any) -> None:
            entries[index] = BlockPlan.model_validate(entries[index].model_dump() | fields)

        if "narrow heads" in cuts:
            change(0, head_dim=max(1, specs[0].head_dim // 2))
        if "remove attention" in cuts:
            change(units[0][0], removed="attention")
        if "remove blocks" in cuts:
            for index in units[-1]:
                change(index, removed="block")
        if "narrow MLPs" in cuts:
            for index, spec in enumerate(specs):
                if entries[index].removed != "block":
                    change(index, mlp_hidden=max(8, spec.mlp_hidden // 2))
        plan = self.plan.replace(
            blocks=tuple(entry for entry in entries.values() if entry != BlockPlan(index=entry.index))
        )
        if "merge tokens" in cuts:
            merges, _ = parse_merges("horizontal@1,vertical@2")
            plan = plan.replace(merges=merges, size_aware_attention=True)
        return plan


def like_trained(model: nn.Module) -> nn.Module:
    """Weights like trained ones: timm starts biases and layer scales near 0, which would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            # Matrices that keep the size of what they multiply, whatever the width; tokens, biases and scales of 0.1.
            fan_in = parameter[0].numel() if parameter.dim() > 1 and len(parameter) > 1 else 100
            parameter.add_(fan_in**-0.5 * torch.randn_like(parameter))
    return model.eval()


def try_family(name: str, place: Path, *, narrow: bool = False, engine: bool = True) -> Row:
    """Every step in turn; the first that fails is the last.

    Args:
        name: Out of `MEMBERS`.
        place: A folder for files.
        narrow: Take the member that is cheap.
        engine: Build an engine too, of an fp16 file.
    """
    plan = MEMBERS[name].plan(narrow=narrow)
    row = Row(name, plan.model, plan.model_kwargs)
    step = STEPS[0]
    try:
        trial = Trial(plan, place)
        trial.identity()
        row.steps[step], step = "ok", "plan"
        row.cuts = trial.cuts()
        summary = trial.planned(row.cuts)
        row.figures |= {"macs_before": summary.macs_before, "macs_after": summary.macs_after}
        row.steps[step], step = "ok", "compress"
        folder = trial.compress(summary)
        row.steps[step], step = "ok", "export"
        export(folder, BATCH, "fp32")
        if engine:
            row.steps[step], step = "ok", "engine"
            export(folder, BATCH, "fp16", trt=True, flavor="tensorrt-rtx", compute_capabilities=("8.6",))
        row.steps[step], step = "ok", "ONNX Runtime"
        row.figures["max_error"] = trial.parity(folder)
        row.steps[step] = "ok"
    except (DcvitError, AssertionError) as error:
        row.steps[step] = f"failed: {error}"
    return row


def refusal(model: str) -> tuple[int, str]:
    """Exit status and what stands on stderr when the command line is asked to plan for a model."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli(["plan", model, "--macs-reduction", "0.2"])
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue().strip()
    return 0, ""


def reason(message: str) -> str:
    """What of a refusal differs from model to model."""
    found = re.search(r"(?:Error: )?(.*?) is not supported", message)
    return found[1] if found else message


def table(report: dict[str, Any]) -> str:
    """Markdown: what works with which family, what is refused, and how many of each."""
    marks = {"yes": "✓", "ok": "✓", "not run": ""}
    lines = [
        "| family | tried on | " + " | ".join(CUTS) + " | ONNX Runtime = PyTorch | TensorRT-RTX builds |",
        "|---|---|" + "---|" * (len(CUTS) + 2),
    ]
    for row in report["families"]:
        cells = [marks.get(row["cuts"].get(cut, ""), "–") for cut in CUTS]
        cells += [marks.get(row["steps"][step], "✗") for step in ("ONNX Runtime", "engine")]
        lines.append(f"| {row['family']} | `{row['model']}` | " + " | ".join(cells) + " |")
    whole = sum(all(found == "ok" for found in row["steps"].values()) for row in report["families"])
    steps = sum(found == "ok" for row in report["families"] for found in row["steps"].values())
    cuts = sum(found == "yes" for row in report["families"] for found in row["cuts"].values())
    lines += [
        "",
        f"{whole} of {len(report['families'])} families go the whole way ({', '.join(STEPS)}: {steps} steps of "
        f"{len(STEPS) * len(report['families'])}), with {cuts} kinds of cuts in all. Not supported, in one line and "
        f"with exit status 2: " + ", ".join(f"{row['family']} ({row['reason']})" for row in report["refused"]) + ".",
    ]
    return "\n".join(lines) + "\n"


def write_between_marks(path: Path, text: str) -> None:
    """Replaces what stands between the marks in a file; a file without them stays as it is."""
    old = path.read_text(encoding="utf-8")
    if BEGIN in old:
        before, rest = old.split(BEGIN, 1)
        path.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def _relative(check: Check) -> float:
    found = re.search(r"off by (\S+) of the largest logit", check.detail)
    assert found is not None, check.detail
    return float(found[1])


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS, show_default=True)
@click.option(
    "--family", "families", type=click.Choice(list(MEMBERS)), multiple=True, help="Only these; writes no table."
)
def main(out: Path, docs: Path, families: tuple[str, ...]) -> None:
    engine = installed("tensorrt-rtx")
    rows = []
    for name in families or MEMBERS:
        with tempfile.TemporaryDirectory() as place:
            rows.append(try_family(name, Path(place), engine=engine))
        click.echo(f"{name}: {json.dumps(rows[-1].steps)} {json.dumps(rows[-1].figures)}")
    refused = []
    for name, model in REFUSED.items():
        status, message = refusal(model)
        if status != 2:
            raise click.ClickException(f"{model} is not refused: exit status {status}")
        refused.append({"family": name, "model": model, "exit_status": status, "reason": reason(message)})
    report = {"families": [asdict(row) for row in rows], "refused": refused, "versions": package_versions()}
    with whole_file(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    if not families:
        with whole_file(docs) as aside:
            aside.write_text(table(report))
        write_between_marks(README, table(report))
    if not all(row.ok for row in rows):
        raise click.ClickException("not every step holds")


if __name__ == "__main__":
    main()
