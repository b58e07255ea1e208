"""The work of a run as numbers: bytes of memory and disk, seconds of a step (training/README.md §6).

Memory is arithmetic on the configuration and the model's sizes. Time divides operations and bytes by a machine's rates.

Letters: S source layers, B tokens of a step, F features of a layer (f: owned by one rank), D width, k active features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from circuit_tracer.errors import InputError
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.export.calibration import n_batches
from circuit_tracer.training.run.machine import Machine
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Rule

if TYPE_CHECKING:
    from circuit_tracer.models.parts import ModelParts

BYTES = {"float32": 4, "bfloat16": 2}
MOMENTS = 8  # bytes a parameter: two moments in float32
ENTRY = 64  # bytes of an entry: row, feature, value, score and key, and a copy of those that stay
WORKSPACE = {"cpu": 192 * 2**20, "cuda": 2**30}  # blocks of pre-activations and of decoder gradients
# How much longer sparse rows take than their operations and bytes would at full rate: as measured on a CPU at S = 12,
# D = 768 and S = 30, D = 576. Kernels made for a GPU come close to its full rate.
SPARSE = {"cpu": 3.0, "cuda": 1.0}
ROUNDING = {"cpu": 180, "cuda": 120}  # bytes that could be copied while a number is rounded stochastically
CHECKPOINTS = 3  # two are kept, and stay until a third is complete


@dataclass(frozen=True)
class ModelSizes:
    """What a plan must know of a language model."""

    name: str
    n_layers: int
    d_model: int
    d_mlp: int
    parameters: int
    embedding_parameters: int  # looked up, not multiplied with

    @classmethod
    def of(cls, parts: ModelParts) -> ModelSizes:
        """Read off a loaded model or off its outline."""
        embedding = parts.model.get_input_embeddings()
        return cls(
            parts.config.model_name,
            parts.config.n_layers,
            parts.config.d_model,
            parts.config.d_mlp,
            sum(parameter.numel() for parameter in parts.model.parameters()),
            sum(parameter.numel() for parameter in embedding.parameters()),
        )


@dataclass(frozen=True)
class TrainingCost:
    """The numbers that memory and time follow from, for one of ``ranks`` processes."""

    config: TrainingConfig
    sizes: ModelSizes
    ranks: int
    features: int  # F
    on_cpu: bool

    def __post_init__(self) -> None:
        chosen, n_layers = self.config.dictionary.layers, self.sizes.n_layers
        if chosen is not None and chosen[-1] >= n_layers:
            raise InputError(
                f"dictionary.layers names layer {chosen[-1]}, but {self.sizes.name} has {n_layers} layers; "
                f"use numbers from 0 to {n_layers - 1}"
            )

    @property
    def rule(self) -> Rule:
        """What decides how many features are active."""
        return rule_of(self.config.sparsity)

    @property
    def layers(self) -> int:
        """S."""
        chosen = self.config.dictionary.layers
        return self.sizes.n_layers if chosen is None else len(chosen)

    @property
    def pairs(self) -> int:
        """Pairs of source and target."""
        return self.layers * (self.layers + 1) // 2 if self.config.dictionary.kind == "clt" else self.layers

    @property
    def owned(self) -> int:
        """f."""
        return math.ceil(self.features / self.ranks)

    @property
    def parameters(self) -> int:
        """Numbers trained, on this rank."""
        layers, width, config = self.layers, self.sizes.d_model, self.config
        rows = self.owned * (layers * width + self.pairs * width + layers)
        thresholds = layers * self.owned if self.rule.learns_thresholds else 0
        skip = layers * width**2 if config.dictionary.kind == "skip" else 0
        return rows + thresholds + skip + layers * width

    @property
    def width(self) -> int:
        """Numbers of all layers' inputs (or outputs) for a token."""
        return self.layers * self.sizes.d_model

    @property
    def sides(self) -> int:
        """Vectors of that width that are kept for a token: input, output, and a direction with its derivative."""
        return (1 if self.config.dictionary.kind == "sae" else 2) + (2 if self.config.sparsity.jacobian_weight else 0)

    def active(self, when: str) -> float:
        """k, entries of a token and layer over all ranks: the most ("most") or on average ("mean")."""
        mean, most = self.rule.entries(self.config.active_at_start, self.features)
        return most if when == "most" else mean


def device_memory(work: TrainingCost) -> dict[str, int]:
    """Bytes beside the model, by what they hold."""
    config, sizes, batch = work.config, work.sizes, work.config.run.batch
    pass_tokens = config.data.sequences_per_pass * config.data.context_length
    model_item = BYTES[config.model.dtype]
    entries = batch * work.layers * work.active("most") / work.ranks * work.rule.candidates
    needs = {
        "weights": work.parameters * BYTES[config.dictionary.dtype],
        "moments": work.parameters * MOMENTS,
        "gradient of one encoder": work.owned * sizes.d_model * 4,
        "batch, outputs and errors": batch * work.width * max(_step_bytes(config), _calibration_bytes(work)),
        "active entries": round(entries * ENTRY),
        "language model": sizes.parameters * model_item,
        "a pass of the model": pass_tokens * (2 * work.width + 8 * sizes.d_model + 3 * sizes.d_mlp) * model_item,
        "blocks in hand": WORKSPACE["cpu" if work.on_cpu else "cuda"],
    }
    if config.data.buffer_place == "device":
        needs["activation buffer"] = buffer_bytes(work)
    return needs


def _step_bytes(config: TrainingConfig) -> int:
    """Bytes of a step's arrays for each number of a token's inputs: raw and normalised batch, outputs, their columns."""
    return 4 * (6 + 2 * (config.sparsity.aux_active > 0) + 3 * (config.sparsity.jacobian_weight > 0))


def _calibration_bytes(work: TrainingCost) -> int:
    """The same for the held-out batches that thresholds are calibrated on: as buffered, in float32, and normalised."""
    if not work.rule.has_budget:
        return 0
    return n_batches(work.config.run.batch) * (work.sides * (BYTES[work.config.data.buffer_dtype] + 4) + 8)


def buffer_bytes(work: TrainingCost) -> int:
    """Bytes of the shuffle buffer, wherever it lies."""
    data = work.config.data
    return data.buffer_tokens * work.width * work.sides * BYTES[data.buffer_dtype]


def disk_space(work: TrainingCost) -> dict[str, int]:
    """Bytes written below the run's folder, by what they hold; of all ranks."""
    config = work.config
    whole = replace(work, ranks=1).parameters
    copies = min(CHECKPOINTS, 1 + config.steps // config.run.checkpoint_every_steps)
    needs = {
        "checkpoints": copies * whole * (BYTES[config.dictionary.dtype] + MOMENTS),
        "dictionary": whole * BYTES[config.run.export_dtype],
    }
    if config.data.buffer_place == "disk":
        needs["activation buffer"] = buffer_bytes(work) * work.ranks
    return needs


def cached_token_bytes(work: TrainingCost) -> int:
    """Bytes that `data.cache` takes for each token of one pass over the data."""
    return work.width * work.sides * BYTES[work.config.data.buffer_dtype]


def cache_space(work: TrainingCost) -> dict[str, int]:
    """Bytes written below `data.cache`, if it is known before how many tokens a pass over the data has."""
    data = work.config.data
    if data.cache is None or data.epochs != 1:
        return {}
    return {"activations": work.config.run.tokens * cached_token_bytes(work)}


def step_seconds(work: TrainingCost, machine: Machine) -> dict[str, float]:
    """Seconds of a step by phase, on average over the run."""
    config, sizes, batch = work.config, work.sizes, work.config.run.batch
    place = "cpu" if work.on_cpu else "cuda"
    kept = "float32" if work.on_cpu else config.dictionary.dtype  # what weights are multiplied in
    rounded = ROUNDING[place] if config.dictionary.dtype == "bfloat16" else 0
    moved, rate = machine.bytes_per_second, machine.flops
    entry_width = work.active("mean") / work.ranks * batch * work.pairs * sizes.d_model
    multiplied = sizes.parameters - sizes.embedding_parameters
    passes = 3 if config.sparsity.jacobian_weight else 1  # a derivative costs about two passes of the MLPs
    return {
        "language model": passes * 2 * multiplied * batch / work.ranks / rate[config.model.dtype],
        "encoders": 2 * batch * work.layers * work.owned * sizes.d_model / rate[kept],
        "decoders": max(6 * entry_width / rate["float32"], 3 * entry_width * BYTES[kept] / moved) * SPARSE[place],
        "optimizer": work.parameters * (2 * (BYTES[config.dictionary.dtype] + MOMENTS) + rounded) / moved,
        "buffer": 4 * batch * work.width * work.sides * BYTES[config.data.buffer_dtype] / moved,
    }
