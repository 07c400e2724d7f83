"""No command opens a connection; only pretrained weights come from elsewhere."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        where = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(where, (str, bytes)) or event.startswith("socket.get"):  # a path is of this machine
            with open(os.environ["WATCHED"], "a") as file:
                file.write(f"{event} {where}\\n")

sys.addaudithook(watch)
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
    ]
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
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"PYTHONPATH": path, "HOME": str(tmp_path / "home"), "WATCHED": str(watched)}
    command = [sys.executable, "-c", STEPS, json.dumps(steps)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not watched.exists(), watched.read_text()
    assert not (tmp_path / "home" / "intel").exists()
    # The watch sees a connection where there is one.
    probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True)
    assert "127.0.0.1" in watched.read_text()
