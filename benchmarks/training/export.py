"""What exported files keep of the dictionary as trained: whole short runs of every rule, of the kinds that it serves.

    python -m benchmarks.training.export        # some minutes of one core

Each run is the trainer's own, from text to files; the numbers are those that it prints and keeps in evaluation.json: NMSE and
L0 of the training rule, on held-out batches of the training's size, and of the files through the reader, on the same tokens; KL
of the model with all MLPs replaced (an sae replaces none), the rule token by token (circuit_tracer/training/README.md §9).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import versions
from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS
from circuit_tracer.demo import MODEL, world
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run.trainer import train
from tests.support.loop_cases import SERVED

STEPS, BATCH, FEATURES, ACTIVE = 100, 512, 128, 4.0


def configuration(kind: str, rule: str, text: Path, out: Path) -> TrainingConfig:
    """A run of ``STEPS`` steps."""
    return TrainingConfig.model_validate(
        {
            "model": {"name": str(MODEL), "device": "cpu"},
            "data": {
                "kind": "jsonl", "path": str(text), "context_length": 64, "epochs": None, "held_out": 0.2,
                "buffer_tokens": 16 * BATCH, "statistics_tokens": 16 * BATCH,
            },
            "dictionary": {"kind": kind, "features": FEATURES},
            "sparsity": {"activation": rule, "active": ACTIVE},
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 10},
            "evaluation": {
                "tokens": 2048, "replacement_tokens": 2048, "prompts": [], "held_out_prompts": 0, "random_baseline": False,
            },
            "run": {"out": out, "tokens": STEPS * BATCH, "batch": BATCH, "threads": 1, "export_loss": 1.0},
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "training_export.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "world.jsonl"
        statements = [one.text for one in world.transcoder_training()]
        text.write_text("".join(json.dumps({"text": one}) + "\n" for one in statements), encoding="utf-8")
        for kind, rule in SERVED:
            config = configuration(kind, rule, text, Path(scratch) / f"{kind}-{rule}")
            kept = train(config).evaluation["conditions"]["export"]
            found[f"{kind}-{rule}"] = kept
            print(f"{kind:5}{rule:11} {kept['summary']} ({kept['loss']:+.2%} NMSE)", flush=True)
    about = {"steps": STEPS, "batch": BATCH, "features": FEATURES, "active": ACTIVE}
    write_results(args.results, describe(versions={"ours": versions()}) | {"run": about, "export": found})


if __name__ == "__main__":
    main()
