"""sha256 of the weights that fixed seeds give, one run for each method and search: is a change one of structure alone?

    python benchmarks/fixed_seeds.py -o after.json                      # of this checkout
    python benchmarks/fixed_seeds.py --tree ../before -o before.json    # of another one, with the same packages
    python benchmarks/fixed_seeds.py --compare before.json after.json   # exit status 1 if any differs

Every run is a `dcvit-tool` command on bundled data, on the CPU with one thread. Rounding depends on the processor, so
two files can be compared only if one machine made both.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
WEIGHTS = "toolchain/dcvit/assets/digits_vit.safetensors"
DIGITS = {
    "img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 8, "num_heads": 4, "num_classes": 10,
    "pretrained_cfg_overlay": {"mean": [0.3, 0.3, 0.3], "std": [0.35, 0.35, 0.35], "crop_pct": 1.0},
}  # fmt: skip
SWIN = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": [2, 2, 4, 2],
        "num_heads": [1, 2, 4, 8], "num_classes": 10}  # fmt: skip
RESNET = {"num_classes": 10, "pretrained_cfg_overlay": {"input_size": [3, 32, 32]}}

FEW = ["--samples", "64", "--data", "digits"]
TRAINED = ["--method", "cait", "--samples", "256", "--data", "digits", "--epochs", "3", "--batch-size", "64"]
RUNS: dict[str, list[str]] = {
    "solver": [*FEW, "--macs-reduction", "0.4", "--steps", "20"],
    "solver, heads kept, multiples of 4": [*FEW, "--macs-reduction", "0.4", "--steps", "10", "--keep-heads",
                                           "--width-multiple", "4"],
    "solver with merges": [*FEW, "--macs-reduction", "0.5", "--steps", "10", "--merge", "horizontal@3"],
    "trials": [*FEW, "--macs-reduction", "0.3", "--steps", "10", "--search", "trials"],
    "trials, recipe of the paper": [*FEW, "--macs-reduction", "0.3", "--steps", "5", "--recipe", "paper",
                                    "--metric", "train"],
    "practise": [*FEW, "--macs-reduction", "0.3", "--steps", "10", "--method", "practise"],
    "cait, refitted widths": [*TRAINED, "--macs-reduction", "0.4"],
    "cait, channels pruned": [*TRAINED, "--macs-reduction", "0.4", "--widths", "cdcp"],
    "cait, recipe of the paper, merges given": [*TRAINED, "--macs-reduction", "0.5", "--recipe", "paper",
                                                "--merge", "horizontal@2,vertical@5"],
    "cait, without labels, merges alone": [*TRAINED, "--macs-reduction", "0.2", "--no-prune", "--no-labels"],
    "nothing trained": ["--macs-reduction", "0.5", "--recover", "none", "--merge", "vertical@4"],
    "cait, nothing trained": ["--method", "cait", "--macs-reduction", "0.4", "--recover", "none"],
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, object], list[str]]] = {
    "Swin, trials": ("swin_tiny_patch4_window7_224", SWIN, [*FEW, "--macs-reduction", "0.15", "--steps", "4"]),
    "ResNet, practise": ("resnet18", RESNET, [*FEW, "--macs-reduction", "0.2", "--steps", "4", "--method", "practise"]),
}


def measure(tree: Path, only: list[str], kept: Path | None) -> dict[str, str]:
    """sha256 of `model.safetensors` by run; written to `kept` after each, beside what stands there of other runs."""
    with tempfile.TemporaryDirectory(prefix="dcvit-seeds-") as place:
        root = Path(place)
        found: dict[str, str] = json.loads(kept.read_text()) if only and kept is not None and kept.is_file() else {}
        digits = ["deit_tiny_patch16_224", "--checkpoint", str(tree / WEIGHTS), "--model-kwargs", json.dumps(DIGITS)]
        commands = {name: ["compress", *digits, *arguments] for name, arguments in RUNS.items()}
        commands |= {
            name: ["compress", model, "--random-init", "--model-kwargs", json.dumps(kwargs), *arguments]
            for name, (model, kwargs, arguments) in OTHERS.items()
        }
        commands["frontier"] = ["frontier", *digits, *FEW, "--steps", "10", "--macs-reduction", "0.2",
                                "--macs-reduction", "0.5"]  # fmt: skip
        for number, (name, command) in enumerate(commands.items()):
            if only and name not in only:
                continue
            out, started = root / f"{number}", time.perf_counter()
            _run(tree, [*command, "-o", str(out)])
            for weights in sorted(out.rglob("model.safetensors")):
                inner = weights.parent.relative_to(out)
                label = name if inner == Path() else f"{name}, {inner}"
                found[label] = hashlib.sha256(weights.read_bytes()).hexdigest()
                print(f"{found[label][:16]}  {label}  ({time.perf_counter() - started:.0f} s)", flush=True)
            if kept is not None:
                kept.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _run(tree: Path, command: list[str]) -> None:
    environment = os.environ | {
        "PYTHONPATH": f"{tree / 'toolchain'}{os.pathsep}{tree / 'kernels'}",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    run = [sys.executable, "-c", "import torch; torch.set_num_threads(1); from dcvit.cli.main import cli; cli()"]
    done = subprocess.run([*run, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def compare(before: Path, after: Path) -> bool:
    """Prints which weights differ; whether none does."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    for name in sorted(old | new):
        print(f"{'equal' if old.get(name) == new.get(name) else 'DIFFERS':8} {name}")
    return bool(old == new)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=HERE, help="the checkout to run")
    parser.add_argument("--only", action="append", default=[], help="names of runs")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    asked = parser.parse_args()
    if asked.compare:
        sys.exit(0 if compare(*asked.compare) else 1)
    measure(asked.tree.resolve(), asked.only, asked.out)


if __name__ == "__main__":
    main()
