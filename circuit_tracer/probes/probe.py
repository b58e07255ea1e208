"""A probe: a weight for every number that is read of a token, a bias and a threshold, with the card of how it was made.

    probe = Probe.load("names.safetensors")
    probe.score(activations)            # (..., D) -> (...,)
    probe.target(position=7)            # "why did it fire there", for `attribute`

The file is a small safetensors file: `weight` (D,), `features` (n, 2), and all else as JSON in its metadata.
Letters: D numbers read of a token (d_model of the stream, then n features), P positions.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor

from circuit_tracer.arguments import number, whole
from circuit_tracer.attribution.stream_targets import DirectionTarget
from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError, shortened
from circuit_tracer.files import atomic_write, parse_json, require_writable_file
from circuit_tracer.files.checksums import plain_metadata, write_tensors
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.fingerprint import VERSION, model_fingerprint, transcoder_fingerprint
from circuit_tracer.models.sites import SITES, Site, site_named

if TYPE_CHECKING:
    from circuit_tracer.models.parts import ModelParts
    from circuit_tracer.transcoders.base import Transcoders

Pool = Literal["token", "last", "mean", "max"]
POOLS: tuple[Pool, ...] = get_args(Pool)
FEATURES = "features"  # the site of a probe that reads no stream
FORMAT = "circuit-tracer probe 1"


@dataclass(frozen=True)
class Probe:
    """score = <weight, what is read> + bias; it fires where the score is above the threshold.

    Attributes:
        site: The place of the stream that is read (models/sites.py); "features": features alone.
        layer: The layer that is read; None: features alone.
        weight: (D,) float32.
        pool: What is read of a text: every "token" by itself; the numbers of its "last" token; their "mean", or the largest
            of each ("max"), over its tokens.
        features: (layer, feature) of the dictionary, whose activations stand behind the stream's numbers.
        card: JSON values; data, metrics, and the fingerprints of model and dictionary.

    Raises:
        InputError: For parts that do not fit together.
    """

    name: str
    site: str
    layer: int | None
    weight: Tensor
    bias: float
    threshold: float
    pool: Pool
    features: tuple[tuple[int, int], ...] = ()
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InputError(f"pool is {shortened(self.pool)}; expected one of {', '.join(POOLS)}")
        if self.site == FEATURES:
            if self.layer is not None or not self.features:
                raise InputError("a probe on features alone names at least one feature, and no layer of the stream")
        else:
            require_vectors(site_named(self.site))
            if whole(self.layer, "the layer of a probe") < 0:
                raise InputError(f"the layer of a probe is {self.layer}; expected 0 or more")
        if self.weight.ndim != 1 or self.d_stream < 0 or not torch.isfinite(self.weight).all():
            raise InputError(
                f"the weight of a probe must be finite and one number for each that is read, of {len(self.features)} "
                f"features among them; got shape {tuple(self.weight.shape)}"
            )
        for name in ("bias", "threshold"):
            number(getattr(self, name), f"the {name} of a probe")

    @property
    def d_stream(self) -> int:
        """How many of the weights are of the stream."""
        return len(self.weight) - len(self.features)

    @property
    def place(self) -> tuple[str, int] | None:
        """Where it reads the stream, if it does."""
        return None if self.layer is None else (site_named(self.site).name, self.layer)

    def score(self, activations: Tensor) -> Tensor:
        """(...,) of activations (..., D), in the wider of float32 and their dtype."""
        if activations.shape[-1] != len(self.weight):
            raise InputError(
                f"probe {self.name!r} reads {len(self.weight)} numbers a token; got shape {tuple(activations.shape)}"
            )
        dtype = torch.promote_types(activations.dtype, torch.float32)
        return activations.to(dtype) @ self.weight.to(activations.device, dtype) + self.bias

    def fires(self, scores: Tensor) -> Tensor:
        """(...,) bool; compared in float64, as a single score is."""
        return scores.double() > self.threshold

    def target(self, position: int = -1) -> DirectionTarget:
        """What it reads of one token, as a target of a graph: its row sums to <weight, activation>, the score without the bias.

        Raises InputError for a probe on features, which reads as many directions as are active: `explain.probe_target`.
        """
        if self.place is None or self.features:
            raise InputError(
                f"probe {self.name!r} reads features, which are a direction only on a prompt, by those that are active there; "
                "ask circuit_tracer.probes.explain.probe_target for it"
            )
        site, layer = self.place
        return DirectionTarget(self.weight, site, layer, position, label=f"probe {self.name}")

    def check(self, parts: ModelParts, transcoders: Transcoders | None = None) -> None:
        """Raise CompatibilityError unless it was fitted on this model, and this dictionary if it reads features.

        Weights in another number format have other fingerprints; of these only sizes are compared.
        """
        found, config = self.card.get("model", {}), parts.config
        if self.place is not None and (self.d_stream != config.d_model or self.place[1] >= config.n_layers):
            raise CompatibilityError(
                f"probe {self.name!r} reads {self.d_stream} numbers at layer {self.place[1]}; {config.model_name} has "
                f"d_model {config.d_model} and {config.n_layers} layers. Use the model that it was fitted on"
                f"{_named(found)}."
            )
        if _comparable(found, config.dtype) and found.get("fingerprint") != model_fingerprint(parts):
            raise CompatibilityError(
                f"probe {self.name!r} was fitted on other weights than those of {config.model_name}. Use the model that it "
                f"was fitted on{_named(found)}."
            )
        if self.features:
            self._check_dictionary(transcoders)

    def _check_dictionary(self, transcoders: Transcoders | None) -> None:
        found = self.card.get("dictionary", {})
        if transcoders is None:
            raise CompatibilityError(f"probe {self.name!r} reads features of a dictionary{_named(found)}; name it (-t)")
        for layer, feature in self.features:
            if layer not in transcoders.layers or not 0 <= feature < transcoders.n_features(layer):
                raise CompatibilityError(
                    f"probe {self.name!r} reads feature {feature} of layer {layer}, which this dictionary has not. Use the "
                    f"dictionary that it was fitted on{_named(found)}."
                )
        dtype = str(transcoders.dtype).removeprefix("torch.")
        if _comparable(found, dtype) and found.get("fingerprint") != transcoder_fingerprint(transcoders):
            raise CompatibilityError(
                f"probe {self.name!r} was fitted on another dictionary. Use the one that it was fitted on{_named(found)}."
            )

    def save(self, path: str | Path) -> Path:
        """Write the file; returns its path."""
        path = require_writable_file(path)
        tensors = {"weight": self.weight.float()}
        if self.features:
            tensors["features"] = torch.tensor(self.features, dtype=torch.int64)
        described = {
            "name": self.name,
            "site": self.site,
            "layer": self.layer,
            "bias": self.bias,
            "threshold": self.threshold,
            "pool": self.pool,
            "card": self.card,
        }
        text = json.dumps(described, ensure_ascii=False, allow_nan=False)
        with atomic_write(path) as temporary:
            write_tensors(temporary, tensors, {"format": FORMAT, "probe": text}, path.name)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file. Raises InputError if there is none, FileFormatError for another or a damaged one."""
        file = open_tensor_file(path)
        metadata = plain_metadata(file.metadata)
        if metadata.get("format") != FORMAT or "probe" not in metadata:
            raise FileFormatError(
                f"{path} is no probe: its format is {shortened(metadata.get('format'))}, not {FORMAT!r}."
            )
        described = parse_json(metadata["probe"], f"{path}, its description")
        try:
            pairs = file.read(FEATURES).tolist() if FEATURES in file else []
            features = tuple((int(layer), int(feature)) for layer, feature in pairs)
            names = ("name", "site", "layer", "bias", "threshold", "pool", "card")
            given = {name: described[name] for name in names}
            if not isinstance(given["name"], str) or not isinstance(given["card"], dict):
                raise FileFormatError(f"{path}: name and card must be text and an object.")
            return cls(weight=file.read("weight").float(), features=features, **given)
        except (InputError, LookupError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} is no probe that can be read: {error}.") from error


def require_vectors(site: Site) -> None:
    """Refuse a place that does not hold one vector of d_model numbers a token."""
    if site.shape != SITES["hook_resid_post"].shape:
        raise InputError(f"a probe reads one vector of d_model numbers a token; {site.name} holds {site.shape}")


def _named(found: Any) -> str:
    name = found.get("name") if isinstance(found, dict) else None
    return f" ({name})" if isinstance(name, str) else ""


def _comparable(found: Any, dtype: str) -> bool:
    """Whether a fingerprint of the card holds for weights in this format."""
    return isinstance(found, dict) and (found.get("version"), found.get("dtype")) == (VERSION, dtype)


def finite(value: float) -> float | None:
    """For a card: JSON has no word for nan and infinity."""
    return value if math.isfinite(value) else None
