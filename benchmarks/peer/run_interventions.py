"""circuit-tracer 0.5.0's side of ../comparison/interventions.py; runs inside the virtual environment that setup_peer.sh makes.

PEER/bin/python benchmarks/peer/run_interventions.py --model FOLDER --transcoders FOLDER --out FILE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

import torch
from transformers import AutoTokenizer

from benchmarks.comparison.interventions_run import run
from benchmarks.peer.run_peer import load_model, load_transcoders


def load(folder: Path, transcoders: Path) -> tuple[Any, Any]:
    """(model, tokenizer)"""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = torch.device("cpu")
    model, _ = load_model(folder, load_transcoders(transcoders, device), tokenizer, device)
    return model, tokenizer


if __name__ == "__main__":
    run("peer", load)
