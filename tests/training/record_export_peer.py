"""Makes the data of `test_export_peer.py`: what circuit-tracer 0.5.0 computes from dictionaries exported by the trainer.

python tests/training/record_export_peer.py inputs [FOLDER]               # in this project's environment
PEER/bin/python tests/training/record_export_peer.py outputs [FOLDER]     # in the one that benchmarks/peer/setup_peer.sh makes
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

from tests.support.export_peer_cases import (
    DICTIONARIES,
    FOLDER,
    INPUTS,
    OUTPUTS,
    REFUSALS,
    REFUSED,
    outcomes,
    refusals,
)


def inputs(folder: Path, **sizes: int) -> None:
    """Train and export every dictionary into ``folder``, and draw inputs."""
    import shutil

    from tests.support.export_cases import exported, random_inputs
    from tests.support.loop_cases import Run

    for name in (*DICTIONARIES, *REFUSED):
        kind, activation, dtype = name.split("-")
        with tempfile.TemporaryDirectory() as temporary:
            run = Run(kind, activation, **sizes)
            made = exported(run, Path(temporary), run__export_dtype=dtype)
            shutil.copytree(made.folder, folder / name, dirs_exist_ok=True)
    save_file({"x_LPD": random_inputs(run.width)}, folder / INPUTS)


def outputs(folder: Path) -> None:
    """Run circuit-tracer on them."""
    from importlib.metadata import version

    assert version("circuit-tracer") == "0.5.0"
    save_file(outcomes(folder, load_file(folder / INPUTS)["x_LPD"]), folder / OUTPUTS)
    (folder / REFUSALS).write_text(json.dumps(refusals(folder), indent=1) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else FOLDER
    {"inputs": inputs, "outputs": outputs}[sys.argv[1]](target)
