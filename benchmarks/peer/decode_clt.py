"""What the two scripts on decode-clt 0.0.1 share: its version, sizes, recipe, and its own trainer on batches of ours.

The recipe is the one of its tutorial on BatchTopK (tutorials/1B, repository curt-tigges/crosslayer-coding): AdamW with beta2
0.98, learning rate 1e-4, constant and falling to zero over the last fifth of the steps, AuxK with weight 1/32 on features
silent for 200 steps, no penalty. One thing differs: the tutorial's topk_mode "per_layer" selects nothing at all in 0.0.1, so
it is "global", the default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from torch import Tensor

EXPECTED = "0.0.1"
RATE = 1e-4
ByLayer = dict[int, Tensor]


def require_version() -> dict[str, str]:
    """Versions for the record; SystemExit in another environment. Its many lines of log are switched off."""
    if version("decode-clt") != EXPECTED:
        raise SystemExit(f"decode-clt {EXPECTED} expected, found {version('decode-clt')}: use setup_decode_clt.sh")
    logging.disable(logging.WARNING)
    return {"decode-clt": EXPECTED, "torch": version("torch")}


def sizes(layers: int, width: int, features: int, active: int) -> Any:
    """Its CLTConfig; ``active`` features a layer and token."""
    from clt.config import CLTConfig

    return CLTConfig(
        num_features=features,
        num_layers=layers,
        d_model=width,
        activation_fn="batchtopk",
        batchtopk_k=active * layers,
        clt_dtype="float32",
    )


def recipe(steps: int, batch: int, **others: Any) -> Any:
    """Its TrainingConfig."""
    from clt.config import TrainingConfig

    values = {
        "learning_rate": RATE,
        "training_steps": steps,
        "train_batch_size_tokens": batch,
        "activation_path": "unused",
        "activation_dtype": "float32",
        "normalization_method": "none",
        "sparsity_lambda": 0.0,
        "sparsity_c": 0.0,
        "preactivation_coef": 0.0,
        "aux_loss_factor": 1 / 32,
        "apply_sparsity_penalty_to_batchtopk": False,
        "optimizer": "adamw",
        "optimizer_beta2": 0.98,
        "lr_scheduler": "linear_final20",
        "dead_feature_window": 200,
        "eval_interval": 10**9,
        "checkpoint_interval": 10**9,
    }
    return TrainingConfig(**(values | others))


def train(config: Any, training: Any, store: Iterator[tuple[ByLayer, ByLayer]], scratch: str) -> Any:
    """Its own CLTTrainer, unchanged, until the steps or the store's batches are at their end; the model.

    Only where batches come from is ours, and that no checkpoint of gigabytes is written.
    """
    from clt.training import trainer as module

    module.create_activation_store = lambda **_: store
    trainer = module.CLTTrainer(config, training, log_dir=scratch, device="cpu")
    trainer.checkpoint_manager._save_checkpoint = lambda *_, **__: None
    return trainer.train()
