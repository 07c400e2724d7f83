"""No command opens a connection; only pretrained weights come from elsewhere."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

WATCH = """
import ctypes, os, platform, struct, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        where = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(where, (str, bytes)) or event.startswith("socket.get"):  # a path is of this machine
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{event} {where}\\n")

sys.addaudithook(watch)

# What libraries in C do, the hook does not see: the system ends a process that asks for a socket of the Internet.
# It is a filter in four instructions: load the call's number, compare, load its first argument, compare.
SOCKET = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
if SOCKET is not None and sys.platform == "linux":
    LOAD, EQUAL, RETURN, ALLOW, KILL = 0x20, 0x15, 0x06, 0x7FFF0000, 0x80000000
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 4, SOCKET), (LOAD, 0, 0, 16), (EQUAL, 1, 0, 2), (EQUAL, 0, 1, 10),
             (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
        sys.exit(f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
"""

STEPS = """
import json, sys
from dcvit.cli.main import cli

for arguments in json.loads(sys.argv[1]):
    try:
        cli(arguments)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments[0]}: {end.code}")
"""


def test_no_command_opens_a_connection(tmp_path: Path) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 10}
    model = ["vit_tiny_patch16_224", "--model-kwargs", json.dumps(kwargs)]
    out, cut = str(tmp_path / "out"), ["--macs-reduction", "0.1"]
    steps = [
        ["plan", *model, "--method", "dcvit", *cut],
        ["compress", *model, "--random-init", "--recover", "none", "--method", "dcvit", *cut, "-o", out],
        ["export", out, "--batch", "2"],
        ["verify", out],
        ["report", out],
        ["evaluate", out, "--data", "digits"],
        ["bench", out, "--runtime", "onnxruntime", "--batch", "2", "--runs", "5", "--no-memory"],
        ["inspect", out],
        ["package", out, "--for", "triton", "-o", str(tmp_path / "packed")],
        ["latency", *model, "--runtime", "torch", "--batch", "2", "-o", str(tmp_path / "table.json")],
        ["frontier", *model, "--random-init", "--data", "digits", "--samples", "8", "--steps", "1", *cut, "-o",
         str(tmp_path / "sizes")],
        ["doctor"],
    ]  # fmt: skip
    if find_spec("openvino"):
        steps += [
            ["export", out, "--batch", "64"],
            ["evaluate", out, "--data", "digits", "--runtime", "openvino"],
        ]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    watched = tmp_path / "watched"
    silent = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in silent}
    environment |= {"PYTHONPATH": path, "HOME": str(tmp_path / "home"), "WATCHED": str(watched)}
    command = [sys.executable, "-c", STEPS, json.dumps(steps)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not watched.exists(), watched.read_text()
    assert not (tmp_path / "home" / "intel").exists()
    assert not [*tmp_path.rglob("*deviceid*")]
    # The watch sees a connection where there is one, and ends what would open one unseen.
    probe = "import socket; socket.getaddrinfo('127.0.0.1', 9)"
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    assert "127.0.0.1" in watched.read_text()
    probe = "from socket import *; print(socket(AF_UNIX) and 7, flush=True); socket(AF_INET, SOCK_DGRAM)"
    ended = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGSYS, "7\n")
