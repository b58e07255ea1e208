"""What is traced and how: the value that every stage of a trace begins with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuit_tracer.attribution.held import Held
from circuit_tracer.attribution.targets import Aim
from circuit_tracer.attribution.trace_sizes import TraceSizes
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.progress import Progress, silent
from circuit_tracer.ranks import Ranks


@dataclass(frozen=True)
class Options:
    """How a trace goes about its work; `attribute` describes each."""

    batch_size: int = 512
    max_feature_nodes: int | None = None  # None or 0: all
    may_keep_rows: bool = True
    memory: int | None = None  # bytes; None: what is free
    keep_edge_mass: float | None = None  # None: the rule of `kept_mass`
    max_residual: float | None = None  # None: what is promised for the model's dtype
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = silent
    verbose: bool = False

    def check(self) -> None:
        """Raise InputError for numbers that mean nothing."""
        if self.batch_size < 1 or (self.max_feature_nodes or 0) < 0:
            raise InputError(
                f"batch_size {self.batch_size} must be at least 1, max_feature_nodes {self.max_feature_nodes} at least 0 (0 or "
                "None: all)"
            )
        if self.keep_edge_mass is not None and not 0 < self.keep_edge_mass <= 1:
            raise InputError(
                f"keep_edge_mass is {self.keep_edge_mass}; it is a share of each row, above 0 and at most 1 (keep all)"
            )
        if self.max_residual is not None and not self.max_residual >= 0:
            raise InputError(f"max_residual is {self.max_residual}; it is a share of a row's terms, such as 1e-4")


@dataclass(frozen=True)
class Task:
    """One trace to do."""

    model: Traceable
    ids: Tensor  # (P,)
    left_out: list[int]  # positions without features and errors
    aim: Aim
    options: Options
    held: int  # bytes that the process holds already
    budget: int  # bytes that it may hold in all
    intervention: Held | None = None  # features that are set
    started: float = field(default_factory=time.perf_counter)
    fingerprint: dict[str, str | int] | None = None  # of model and dictionary, where it is known
    coarse: int = 0  # bytes of what is held that are coarse copies of encoders

    @property
    def held_now(self) -> int:
        """Bytes held, with the coarse copies of encoders that were made when features were looked for."""
        return self.held + self.model.transcoders.coarse_bytes - self.coarse

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.parts.device

    def sizes(self, active_LP: Tensor, distinct_L: Tensor | None = None) -> TraceSizes:
        """What it is about, given how many features are active at each layer and position, and in each layer anywhere."""
        parts = self.model.parts
        return TraceSizes.of(
            parts.config,
            self.model.transcoders,
            active_LP,
            n_targets=self.aim.n_targets,
            n_rows=self.options.max_feature_nodes,
            item=parts.compute_dtype.itemsize,
            processes=self.options.ranks.world,
            on_gpu=self.device.type == "cuda",
            attention=0 if self.model.attention is None else len(self.model.attention.layers),
            distinct_L=distinct_L,
        )
