"""How much memory a model needs: measured in a fresh process that does nothing else.

    python -m dcvit.bench.memory FOLDER RUNTIME VARIANT [THREADS]

takes the variant as JSON and prints one JSON object. In the process that measures latency the figure would hold the
other model, the interpreter's leftovers and whatever the caller keeps.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dcvit.errors import CheckFailedError
from dcvit.folder.model_folder import ModelFolder
from dcvit.runtimes import limited_to, runtime_named
from dcvit.variant import Variant

_PASSES = 3
_MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """What a fresh process needed to load a model and run it three times.

    Attributes:
        peak_mib: MiB. On a CPU the highest resident memory less what was resident before the model was opened (the
            interpreter and its packages); pages of shared libraries that the model was first to touch are in it, and
            what a compiled PyTorch model needs to be compiled. On a GPU for PyTorch the most that its tensors held, for
            other runtimes what the process took of the device's free memory, context and workspaces included.
        where: Whose memory it is.
    """

    peak_mib: float
    where: Literal["process", "GPU tensors", "GPU"]


def peak_memory(folder: Path, runtime: str, variant: Variant, threads: int | None) -> Memory | None:
    """Measures one of a comparison's two models in a fresh process; None where the system tells no peak (Windows).

    Raises:
        CheckFailedError: If the model cannot be opened or run there.
    """
    if _resident_peak() is None:
        return None
    arguments = [str(folder), runtime, variant.model_dump_json(), *([] if threads is None else [str(threads)])]
    command = [sys.executable, "-m", "dcvit.bench.memory", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    if ended.returncode != 0:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise CheckFailedError(f"memory of {folder} in {runtime} cannot be measured: {reason}")
    return Memory(**json.loads(ended.stdout))


def _measure(folder: Path, runtime: str, variant: Variant) -> Memory:
    model = ModelFolder(folder)
    chosen = runtime_named(runtime)
    images = torch.zeros(variant.batch, *model.manifest.preprocessing.input_size)
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else 0
    _reset_peak()
    before = _resident_peak() or 0
    session = chosen.open(model, variant)
    session.load(images)
    for _ in range(_PASSES):
        session.execute()
    if session.threads is not None:
        return Memory(((_resident_peak() or 0) - before) / _MIB, "process")
    if runtime.startswith("torch"):
        return Memory(torch.cuda.max_memory_allocated() / _MIB, "GPU tensors")
    return Memory((free - torch.cuda.mem_get_info()[0]) / _MIB, "GPU")


def _reset_peak() -> None:
    """Forgets the peak so far (imports need more for a moment than they keep)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _resident_peak() -> int | None:
    """Highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _main() -> None:
    folder, runtime, variant, *threads = sys.argv[1:]
    with limited_to(int(threads[0]) if threads else None):
        found = _measure(Path(folder), runtime, Variant.model_validate_json(variant))
    print(json.dumps(vars(found)))


if __name__ == "__main__":
    _main()
