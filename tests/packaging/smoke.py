"""What anybody does first with an installed wheel: the demo, a trace, a look at it, the page. Needs nothing of the repository.

python smoke.py ENVIRONMENT       # a virtual environment with the wheel in it
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

PROMPT = "the capital of Texas is"


def smoke(environment: Path) -> None:
    """Raises CalledProcessError or AssertionError for what does not work."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        assert "Austin" in run_command(environment, "demo", folder=folder)
        traced = ["--demo", "-p", PROMPT, "-o", "texas.safetensors", "--slug", "texas", "--graph_file_dir", "graphs"]
        run_command(environment, "attribute", *traced, folder=folder)
        assert "Austin" in run_command(environment, "info", "texas.safetensors", folder=folder)
        run_command(environment, "view", "texas.safetensors", "-o", "texas.html", folder=folder)
        assert "<html" in (folder / "texas.html").read_text(encoding="utf-8")
        _serve(environment, folder)


def _command(environment: Path, *arguments: str) -> list[str]:
    """Isolated: neither the working folder nor PYTHONPATH brings another copy of the package."""
    scripts = environment / ("Scripts" if sys.platform == "win32" else "bin")
    return [str(scripts / "python"), "-I", "-m", "circuit_tracer", *arguments]


def run_command(environment: Path, *arguments: str, folder: Path) -> str:
    """What `circuit-tracer` with these words prints in a folder; raises AssertionError if it fails."""
    ended = subprocess.run(
        _command(environment, *arguments), cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    if ended.returncode:
        raise AssertionError(f"circuit-tracer {' '.join(arguments)} ended with {ended.returncode}:\n{ended.stderr}")
    return ended.stdout


def _serve(environment: Path, folder: Path) -> None:
    options = ["--demo", "--graph_file_dir", "graphs", "--port", "0", "--no-open"]
    command = _command(environment, "serve", *options)
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        for place, expected in (("", "<html"), ("api/graphs", "texas")):
            with urllib.request.urlopen(address + place, timeout=60) as answer:
                assert expected in answer.read().decode("utf-8"), place
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    smoke(Path(sys.argv[1]).resolve())
    print("the wheel works")
