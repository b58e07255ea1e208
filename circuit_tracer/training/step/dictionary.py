"""The weights in training: all layers of a dictionary, or the rows of them that one rank owns (training/README.md §1, §3).

Letters: S source layers, T layers that a source writes to, F features of a layer (f: owned by this rank), D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from circuit_tracer import huge_pages

Kind = Literal["clt", "plt", "skip", "sae"]

# Rows are drawn in blocks with a generator each, so that every number of ranks starts from the same weights.
INITIAL_BLOCK = 256
# log theta of a threshold that has not begun: finite, and of no threshold that means anything
UNSET = -1e4


@dataclass
class Dictionary:
    """Encoders, decoders and biases in the space of training. Lists hold one tensor a source layer.

    ``W_dec[s]`` (f, T * D): row by row what a feature writes to its targets s, s + 1, ... ``owned``: which features of each
    layer these rows are. ``norms[s]`` (f,) are the decoder rows' norms in float32, kept up to date by who changes the rows.
    """

    kind: Kind
    n_features: int
    owned: slice
    W_enc: list[Tensor]  # (f, D)
    b_enc: list[Tensor]  # (f,)
    W_dec: list[Tensor]  # (f, T * D)
    b_dec: Tensor  # (S, D), the same on every rank
    W_skip: Tensor | None = None  # (S, D, D): y_t += W_skip[t] x_t; the same on every rank
    log_threshold: list[Tensor] | None = None  # (f,), float32
    log_scale: list[Tensor] | None = None  # (f,), float32: of a gated dictionary, log of magnitude over gate weights
    b_mag: list[Tensor] | None = None  # (f,), float32: biases of magnitudes
    W_router: Tensor | None = None  # (S, N, D): of a switch's N experts; the same on every rank
    b_router: Tensor | None = None  # (S, N)
    norms: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.norms:
            self.norms = [row_norms(decoder) for decoder in self.W_dec]

    @classmethod
    def initial(
        cls,
        kind: Kind,
        n_layers: int,
        n_features: int,
        d_model: int,
        *,
        owned: slice | None = None,
        own: Mapping[str, float] | None = None,
        experts: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> Dictionary:
        """The start of training (§3). own: what each feature has besides (`Rule.own`), with the value it starts at; experts: N
        of a switch, 0 for none.
        """
        owned = owned or slice(0, n_features)
        n_owned = owned.stop - owned.start
        reach = [n_layers - source if kind == "clt" else 1 for source in range(n_layers)]
        W_enc = [huge_pages.empty((n_owned, d_model), dtype, device) for _ in reach]
        W_dec = [huge_pages.empty((n_owned, n_targets * d_model), dtype, device) for n_targets in reach]
        for source, n_targets in enumerate(reach):
            bound = (n_targets * d_model) ** -0.5
            for rows, place, generator in _blocks(owned, n_features, seed, source):
                encoder = torch.randn(INITIAL_BLOCK, d_model, generator=generator) / d_model**0.5
                decoder = torch.rand(INITIAL_BLOCK, n_targets * d_model, generator=generator) * 2 - 1
                W_enc[source][place] = encoder[rows].to(W_enc[source])
                W_dec[source][place] = (bound * decoder[rows]).to(W_dec[source])
        small: dict[str, Any] = {"dtype": torch.float32 if dtype is torch.bfloat16 else dtype, "device": device}
        further: dict[str, Any] = {
            name: [torch.full((n_owned,), start, **small) for _ in reach] for name, start in (own or {}).items()
        }
        if experts:
            further |= _router(n_layers, experts, d_model, seed, small)
        return cls(
            kind,
            n_features,
            owned,
            W_enc,
            [torch.zeros(n_owned, **small) for _ in reach],
            W_dec,
            torch.zeros(n_layers, d_model, **small),
            torch.zeros(n_layers, d_model, d_model, **small) if kind == "skip" else None,
            **further,
        )

    @property
    def n_layers(self) -> int:
        """S."""
        return len(self.W_enc)

    @property
    def d_model(self) -> int:
        """D."""
        return self.b_dec.shape[1]

    def reach(self, source: int) -> int:
        """T: how many layers a source writes to."""
        return self.W_dec[source].shape[1] // self.d_model

    def columns(self, source: int) -> slice:
        """Where a source writes in rows (S * D) of all layers' outputs: a contiguous slice."""
        return slice(source * self.d_model, (source + self.reach(source)) * self.d_model)

    def thresholds(self, source: int) -> Tensor:
        """JumpReLU's thresholds (f,) of a source; zeros for the other activations."""
        return torch.zeros_like(self.norms[source]) if self.log_threshold is None else self.log_threshold[source].exp()

    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name; those of ``SHARED`` are the same on every rank, the others are its rows."""
        named = {name: tensor for name in SHARED if (tensor := getattr(self, name)) is not None}
        for name in OF_FEATURES:
            for source, tensor in enumerate(getattr(self, name) or []):
                named[f"{name}.{source}"] = tensor
        return named

    def own(self, source: int) -> dict[str, Tensor]:
        """Vectors (f,) of a source's features by name: encoder biases, and what their rule has besides."""
        vectors = (name for name in OF_FEATURES if not name.startswith("W_"))
        return {name: held[source] for name in vectors if (held := getattr(self, name)) is not None}


SHARED = ("b_dec", "W_skip", "W_router", "b_router")
OF_FEATURES = ("W_enc", "b_enc", "W_dec", "log_threshold", "log_scale", "b_mag")


def row_norms(rows_nC: Tensor) -> Tensor:
    """Norms (n,) of decoder rows, accumulated in float32 or wider."""
    wide = torch.promote_types(rows_nC.dtype, torch.float32)
    norms_n: Tensor = torch.linalg.vector_norm(rows_nC, dim=1, dtype=wide)
    return norms_n


def _blocks(owned: slice, n_features: int, seed: int, source: int) -> Iterator[tuple[slice, slice, torch.Generator]]:
    """(rows within a block, their place among the owned, the block's generator) for every block that ``owned`` touches."""
    for block in range(owned.start // INITIAL_BLOCK, (min(owned.stop, n_features) - 1) // INITIAL_BLOCK + 1):
        first = block * INITIAL_BLOCK
        start, stop = max(owned.start, first), min(owned.stop, first + INITIAL_BLOCK)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + source) * 1_000_003 + block & (2**63 - 1))
        yield slice(start - first, stop - first), slice(start - owned.start, stop - owned.start), generator


def _router(n_layers: int, experts: int, d_model: int, seed: int, small: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rows as encoders begin with, so that logits are about one; the same on every rank."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + n_layers & (2**63 - 1))
    rows_SND = torch.randn(n_layers, experts, d_model, generator=generator) / d_model**0.5
    return {"W_router": rows_SND.to(**small), "b_router": torch.zeros(n_layers, experts, **small)}
