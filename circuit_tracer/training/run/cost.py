"""The work of a run as numbers: its sizes, and the seconds of a step (training/README.md §6); bytes are in memory.py.

Time divides operations and bytes by a machine's rates.

Letters: S source layers, B tokens of a step, F features of a layer (f: owned by one rank), D width, k active features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuit_tracer.errors import InputError
from circuit_tracer.kernels.adam.packed import BLOCK
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.run.machine import Machine
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.sparsity.base import Rule

if TYPE_CHECKING:
    from circuit_tracer.models.parts import ModelParts

BYTES = {"float32": 4, "bfloat16": 2}
SUM_BYTES = 4  # of a parameter's summed gradient, or of its average
# Bytes of a parameter's two moments, by their format; int8 with an exponent for each block.
MOMENT_BYTES = {"float32": 8.0, "bfloat16": 4.0, "int8": 2.0 + 2 / BLOCK}  # of those of a decoder; vectors hardly count
# How much longer sparse rows take than their operations and bytes would at full rate: as measured on a CPU at S = 12,
# D = 768 and S = 30, D = 576. Kernels made for a GPU come close to its full rate.
SPARSE = {"cpu": 3.0, "cuda": 1.0}
ROUNDING = {"cpu": 180, "cuda": 0}  # bytes that could be copied while a number is rounded stochastically
# Products of half precision that one of float32 with weights of a format is made of on a GPU (kernels/encode/README.md).
PRODUCTS = {"float32": 6, "bfloat16": 3}
# What the host needs to start an operation on a GPU, and how many a step has, and each of its sources. They run on while it
# starts more; where it starts them too slowly, the GPU waits.
LAUNCH, STEP_OPERATIONS, SOURCE_OPERATIONS = 5e-6, 70, 66
NETWORK = 5e10  # bytes a second between GPUs, not measured
HOST_LINK = 2.5e10  # and between a GPU and its host, each way


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
    """The numbers that memory and time follow from, for one of ``ranks * replicas`` processes."""

    config: TrainingConfig
    sizes: ModelSizes
    ranks: int  # that share the features
    features: int  # F
    on_cpu: bool
    replicas: int = 1  # groups of ranks that share the tokens

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
    def world(self) -> int:
        """All processes."""
        return self.ranks * self.replicas

    @property
    def batch(self) -> int:
        """B, tokens of a step that this rank sees."""
        return self.config.run.batch // self.replicas

    @property
    def part(self) -> int:
        """Tokens of them that it works on at a time."""
        return self.batch // self.config.run.accumulate

    @property
    def owned(self) -> int:
        """f."""
        return math.ceil(self.features / self.ranks)

    @property
    def parameters(self) -> int:
        """Numbers trained, on this rank."""
        layers, width, config = self.layers, self.sizes.d_model, self.config
        rows = self.owned * (layers * width + self.pairs * width + layers)
        vectors = layers * self.owned * len(self.rule.own)
        skip = layers * width**2 if config.dictionary.kind == "skip" else 0
        router = layers * self.rule.experts * (width + 1)
        return rows + vectors + skip + router + layers * width

    @property
    def width(self) -> int:
        """Numbers of all layers' inputs (or outputs) for a token."""
        return self.layers * self.sizes.d_model

    @property
    def sides(self) -> int:
        """Vectors of that width that are kept for a token: input, output, and a direction with its derivative."""
        return (1 if self.config.dictionary.kind == "sae" else 2) + (2 if self.config.sparsity.jacobian_weight else 0)

    @property
    def prefixes(self) -> int:
        """Matryoshka's at most, besides the whole dictionary."""
        return len(self.config.sparsity.prefixes or ()) + self.config.sparsity.prefixes_drawn

    @property
    def further_outputs(self) -> int:
        """Of that width, computed beside the outputs of a token: those of prefixes and of gates."""
        return self.prefixes + self.rule.gated

    @property
    def moment_bytes(self) -> float:
        """Of a parameter's two moments."""
        return MOMENT_BYTES[self.config.optimizer.moments]

    @property
    def average_bytes(self) -> int:
        """Of a parameter's average."""
        return SUM_BYTES if self.config.optimizer.averaging else 0

    def entries(self, when: str, tokens: int) -> float:
        """Active entries of this rank among so many tokens."""
        return tokens * self.layers * self.active(when) / self.ranks

    def active(self, when: str) -> float:
        """k, entries of a token and layer over all ranks: the most ("most") or on average ("mean")."""
        mean, most = self.rule.entries(self.config.active_at_start, self.features)
        return most if when == "most" else mean


def operations(work: TrainingCost) -> int:
    """Operations that the host starts in a step on a GPU, without the model's; in each part of its batch about as many."""
    return work.config.run.accumulate * (STEP_OPERATIONS + work.layers * SOURCE_OPERATIONS)


def flop(work: TrainingCost) -> dict[str, float]:
    """Operations of arithmetic of a step by phase, of this rank, on average over the run."""
    sizes = work.sizes
    passes = 3 if work.config.sparsity.jacobian_weight else 1  # a derivative costs about two passes of the MLPs
    multiplied = sizes.parameters - sizes.embedding_parameters
    return {
        "language model": passes * 2 * multiplied * work.config.run.batch / work.world,
        "encoders": 2 * work.batch * work.layers * round(work.owned * work.rule.searched) * sizes.d_model,
        "decoders": (10 if work.rule.gated else 6) * _entry_width(work),  # gates are decoded too, and learn from it
    }


def moved_bytes(work: TrainingCost) -> dict[str, float]:
    """Bytes read and written in a step by phase, of this rank, on average over the run (kernels/*/README.md)."""
    config, entries = work.config, _entry_width(work)
    kept, rows = BYTES[config.dictionary.dtype], work.owned * work.pairs * work.sizes.d_model
    # forward: rows of weights, outputs twice; backward: rows of errors, weights once a part, gradients written
    decoders = entries * (kept + 4) + 8 * work.batch * work.pairs * work.sizes.d_model
    decoders += config.run.accumulate * rows * (kept + 4)
    if work.on_cpu:
        decoders = 12 * entries
    return {
        "decoders": decoders,
        "optimizer": work.parameters * (2 * (kept + work.moment_bytes) + 4 + _summed_bytes(work)),
        "buffer": 8 * work.batch * work.width * work.sides * BYTES[config.data.buffer_dtype],
    }


def step_seconds(work: TrainingCost, machine: Machine) -> dict[str, float]:
    """Seconds of a step by phase, on average over the run."""
    config = work.config
    place = "cpu" if work.on_cpu else "cuda"
    rounded = ROUNDING[place] if config.dictionary.dtype == "bfloat16" else 0
    speed, rate, count, moved = machine.bytes_per_second, machine.flops, flop(work), moved_bytes(work)
    encode_rate = rate["float32"] if work.on_cpu else rate["bfloat16"] / PRODUCTS[config.dictionary.dtype]
    phases = {
        "language model": count["language model"] / rate[config.model.dtype],
        "encoders": count["encoders"] / encode_rate,
        "decoders": max(count["decoders"] / rate["float32"], moved["decoders"] / speed) * SPARSE[place],
        "optimizer": (moved["optimizer"] + work.parameters * rounded) / speed,
        "buffer": moved["buffer"] / speed,
        "communication": _communicated(work) / NETWORK,
    }
    if config.optimizer.place == "host" and not work.on_cpu:  # copies run beside the work; what is longer counts
        phases["moments from the host"] = max(
            0.0, work.parameters * work.moment_bytes / HOST_LINK - sum(phases.values())
        )
    if not work.on_cpu:
        phases["starting operations"] = max(0.0, operations(work) * LAUNCH - sum(phases.values()))
    return {name: seconds for name, seconds in phases.items() if seconds}


def _summed_bytes(work: TrainingCost) -> int:
    """Bytes of a parameter moved for sums of gradients and for averages."""
    return 3 * SUM_BYTES * (work.config.run.accumulate - 1) + 3 * work.average_bytes


def _entry_width(work: TrainingCost) -> float:
    """Numbers of the decoder rows of all entries of a step."""
    return work.active("mean") / work.ranks * work.batch * work.pairs * work.sizes.d_model


def _communicated(work: TrainingCost) -> float:
    """Bytes that a rank sends in a step: outputs among those that share features, gradients among those that share tokens, rows
    of the model's passes among all. A sum over n ranks sends 2 (n - 1) / n of its bytes.
    """
    outputs = 2 * (1 - 1 / work.ranks) * work.batch * work.width * 4 * (1 + work.further_outputs)
    gradients = 2 * (1 - 1 / work.replicas) * work.parameters * 4
    rows = (1 - 1 / work.world) * work.config.run.batch * work.width * work.sides
    return outputs + gradients + rows * BYTES[work.config.data.buffer_dtype]
