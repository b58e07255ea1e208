"""What importing and calling does without: one process, which does one thing after the other and looks what it has loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from circuit_tracer.transcoders import save_transcoders
from tests.support.dictionaries import random_clt

SCRIPT = """
import sys

def without(*libraries):
    loaded = sorted(set(libraries) & set(sys.modules))
    assert not loaded, loaded

import circuit_tracer
circuit_tracer.__version__, dir(circuit_tracer)
from circuit_tracer.training.config.keys import keys
keys()
without("torch", "numpy")

from circuit_tracer.transcoders import load_transcoder_from_hub
load_transcoder_from_hub(sys.argv[1])
without("transformers", "huggingface_hub")

import circuit_tracer.training.evaluation
without("matplotlib", "transformers", "datasets")
"""


def test_nothing_heavy_is_loaded_before_it_is_needed(tmp_path: Path) -> None:
    save_transcoders(random_clt(), tmp_path)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
