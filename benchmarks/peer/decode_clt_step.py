"""Times a training step of decode-clt 0.0.1 on the same synthetic activations as ../training_step.py; prints one json object.

Runs inside the virtual environment that setup_decode_clt.sh makes. The step is the leanest that its API allows: one encoding
(its trainer encodes twice), reconstruction loss alone (no penalty, no loss on dead features, statistics or logs), backward,
and torch's fused AdamW, which is faster than the loop over parameters that its trainer gets by default.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from harness import process_peak_gb
from training_inputs import SyntheticActivations

EXPECTED = "0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 4), ("width", 64), ("features", 256), ("batch", 128), ("active", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--warmup", type=int, default=1, help="steps that do not count")
    parser.add_argument("--steps", type=int, default=3, help="steps that do")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if version("decode-clt") != EXPECTED:
        raise SystemExit(f"decode-clt {EXPECTED} expected, found {version('decode-clt')}: use setup_decode_clt.sh")
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    from clt.config import CLTConfig, TrainingConfig
    from clt.models.clt import CrossLayerTranscoder
    from clt.training.losses import LossManager

    config = CLTConfig(
        num_features=args.features,
        num_layers=args.layers,
        d_model=args.width,
        activation_fn="batchtopk",
        batchtopk_k=args.active * args.layers,
        clt_dtype="float32",
    )
    training = TrainingConfig(
        learning_rate=1e-4,
        training_steps=1000,
        normalization_method="none",
        activation_path="unused",
        sparsity_lambda=0.0,
        preactivation_coef=0.0,
    )
    torch.manual_seed(0)
    model = CrossLayerTranscoder(config, process_group=None, device=torch.device("cpu"))
    losses = LossManager(training, clt_config=config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, fused=True)
    batches = SyntheticActivations(args.layers, args.width).batches(args.batch)
    seconds = []
    for step in range(args.warmup + args.steps):
        x_BSD, y_BSD = next(batches)
        inputs = {layer: x_BSD[:, layer].contiguous() for layer in range(args.layers)}
        targets = {layer: y_BSD[:, layer].contiguous() for layer in range(args.layers)}
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        # no activations for its penalty, which is off: otherwise it would encode once more
        loss, _ = losses.compute_total_loss(model, inputs, targets, step, 1000, precomputed_activations={})
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    timed = seconds[args.warmup :]
    found = {
        "tokens_per_second": args.batch / statistics.median(timed),
        "batch": args.batch,
        "step_seconds": timed,
        "peak_gb": process_peak_gb(),
        "threads": torch.get_num_threads(),
        "versions": {"decode-clt": version("decode-clt"), "torch": version("torch")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
