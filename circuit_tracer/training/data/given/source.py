"""From a configuration to the rows of given activations, and what is known of the model that made them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import CompatibilityError, InputError, shortened, warn
from circuit_tracer.models.architecture import Architecture, NormKind
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.loading import resolve_dtype
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sources import public_name
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.block import Block, RowLayout
from circuit_tracer.training.data.given.client import SocketRows
from circuit_tracer.training.data.given.description import Description
from circuit_tracer.training.data.given.rows import GivenRows
from circuit_tracer.training.data.given.shards import RowSource, Shards
from circuit_tracer.training.data.given.wire import is_server


@dataclass(frozen=True)
class UnseenModel(ModelParts):
    """A model of which only the rows that it made are here: it has a name, sizes and a device, and cannot be run."""

    rows: RowSource

    def alone(self) -> UnseenModel:
        """The same for a process that reads rows without the other ones of its run."""
        return replace(self, rows=self.rows.alone())


def open_rows(path: str, ranks: Ranks) -> RowSource:
    """What is at a path: shards, or a server. Raises what they raise."""
    return SocketRows(path, ranks) if is_server(path) else Shards(path)


def unseen_model(config: TrainingConfig, device: torch.device, ranks: Ranks) -> UnseenModel:
    """What `data.path` says of the model; all ``ranks`` of the run call this.

    Raises what `open_rows` does, CompatibilityError for rows of other hooks or layers than the dictionary's, and InputError
    when none are held out.
    """
    rows = open_rows(config.data.path or "", ranks)
    description = rows.description
    _require_match(config, description, rows.where)
    held_out, layout, _ = given_rows(config, rows, evaluation=True)
    if not held_out.read(Block(layout, 1, torch.device("cpu")), 0):  # found missing now rather than at the end
        raise InputError(
            f"there is nothing to evaluate on ({held_out.summary()}). Give more rows, raise data.held_out, or hold rows out "
            "where they are made."
        )
    holder = nn.Module()
    holder.nothing = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
    nowhere: Any = None
    return UnseenModel(
        model=holder,
        architecture=Architecture("activations that were given", NormKind.RMS),
        config=ModelConfig(
            n_layers=model_layers(description),
            d_model=description.width,
            d_head=0,
            n_heads=0,
            d_mlp=0,
            d_vocab=0,
            tokenizer_name=description.model,
            model_name=description.model,
            original_architecture="unknown",
            n_key_value_heads=0,
            dtype="unknown",
        ),
        layers=[],
        final_norm=nowhere,
        unembed=nowhere,
        parallel=False,
        final_softcap=None,
        context_length=None,
        compute_dtype=torch.float32,
        rows=rows,
    )


def model_layers(description: Description) -> int:
    """Layers of the whole model: as it is said, or as many as the rows show."""
    return description.n_layers or description.layers[-1] + 1


def given_rows(
    config: TrainingConfig, source: RowSource, evaluation: bool
) -> tuple[GivenRows, RowLayout, dict[str, Any]]:
    """(rows to train on or held out, what they look like, what they follow from)."""
    data, description = config.data, source.description
    layers = config.dictionary.layers or description.layers
    layout = RowLayout(description.names, len(layers), description.width, resolve_dtype(data.buffer_dtype))
    settings = {
        "activations": source.fingerprint(),
        "layers": layers,
        **{f"data.{name}": getattr(data, name) for name in ("held_out", "max_norm_ratio", "buffer_dtype")},
    }
    return GivenRows(source, layers, data.held_out, data.max_norm_ratio, evaluation), layout, settings


def _require_match(config: TrainingConfig, description: Description, source: str) -> None:
    """Raise CompatibilityError for hooks or layers that the rows are not of; warn when they are of another model by name."""
    wanted, layers = config.dictionary, description.layers
    keys = ("point", "point") if wanted.kind == "sae" else ("input_hook", "output_hook")
    for name, key in zip(("input_hook", "output_hook"), keys, strict=True):
        found, hook = getattr(description, name), getattr(wanted, key)
        if found != hook:
            raise CompatibilityError(
                f"the activations of {source} have the {name} {found!r}, but dictionary.{key} is {hook!r}: give activations of "
                f"that hook, or set dictionary.{key} to {found}"
            )
    if missing := sorted(set(wanted.layers or range(model_layers(description))) - set(layers)):
        advice = "a clt covers all layers: give activations of all, or train another dictionary.kind"
        if wanted.kind != "clt":
            advice = f"set dictionary.layers to [{', '.join(map(str, layers))}], or to some of them"
        raise CompatibilityError(
            f"the activations of {source} are of layers {shortened(layers)}, without layer {missing[0]}: {advice}"
        )
    if _last(description.model) != _last(config.model.name):
        warn(
            f"the activations of {source} were made by {description.model!r}, while model.name is {config.model.name!r}: the "
            "dictionary will be said to belong to the latter"
        )


def _last(name: str) -> str:
    return public_name(name).partition("@")[0].rpartition("/")[2].lower()
