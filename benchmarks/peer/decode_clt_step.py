"""Times training steps of decode-clt 0.0.1 on the same synthetic activations as ../training/step.py; prints one json object.

Runs inside the virtual environment that setup_decode_clt.sh makes. --step trainer: what its own trainer does from one batch to
the next, by its recipe (decode_clt.py), without evaluation and checkpoints. --step lean: the least that its API allows, which
nobody gets without rewriting its trainer: one encoding instead of three, no AuxK, no statistics, and torch's fused AdamW in
place of the loop over parameters that its trainer gets on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: what is installed here comes before this repository

import torch

from benchmarks.common.harness import process_peak_gb
from benchmarks.peer.decode_clt import ByLayer, recipe, require_version, sizes, train
from benchmarks.training.synthetic import SyntheticActivations

STEPS = 1000  # what its schedule is told; the batches end before


class TimedStore:
    """Hands out batches and marks the time: from one batch handed out to the next one asked for is a step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.layers, self.left = args.layers, args.warmup + args.steps
        self.batches = SyntheticActivations(args.layers, args.width).batches(args.batch)
        self.seconds: list[float] = []
        self._start: float | None = None

    def __iter__(self) -> TimedStore:
        return self

    def __next__(self) -> tuple[ByLayer, ByLayer]:
        if self._start is not None:
            self.seconds.append(time.perf_counter() - self._start)
        if not self.left:
            raise StopIteration
        self.left -= 1
        x_BLD, y_BLD = next(self.batches)
        inputs, targets = (
            {layer: side[:, layer].contiguous() for layer in range(self.layers)} for side in (x_BLD, y_BLD)
        )
        self._start = time.perf_counter()
        return inputs, targets


def lean(config: Any, store: TimedStore) -> None:
    """Steps with nothing in them that can be left out."""
    from clt.models.clt import CrossLayerTranscoder
    from clt.training.losses import LossManager

    torch.manual_seed(0)
    training = recipe(STEPS, 1, aux_loss_factor=None)
    model = CrossLayerTranscoder(config, process_group=None, device=torch.device("cpu"))
    losses = LossManager(training, clt_config=config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, fused=True)
    for step, (inputs, targets) in enumerate(store):
        optimizer.zero_grad(set_to_none=True)
        # no activations for its penalty, which is off: otherwise it would encode once more
        loss, _ = losses.compute_total_loss(model, inputs, targets, step, STEPS, precomputed_activations={})
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 4), ("width", 64), ("features", 256), ("batch", 128), ("active", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--step", choices=["trainer", "lean"], default="trainer")
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=2, help="steps that do")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    found_versions = require_version()
    if args.threads:
        torch.set_num_threads(args.threads)
    config = sizes(args.layers, args.width, args.features, args.active)
    store = TimedStore(args)
    if args.step == "lean":
        lean(config, store)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            train(config, recipe(STEPS, args.batch), store, scratch)
    timed = store.seconds[args.warmup :]
    found = {
        "tokens_per_second": args.batch / statistics.median(timed),
        "batch": args.batch,
        "step_seconds": timed,
        "peak_gb": process_peak_gb(),
        "threads": torch.get_num_threads(),
        "versions": found_versions,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
