"""What given activations are of: the manifest of a folder of shards, and the first thing that a server says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files import validated

FORMAT, VERSION = "circuit-tracer activations", 1
INPUT, OUTPUT = "x", "y"  # tensors (n, S, D); y is left out where it is x
DOCUMENT, TOKEN_IDS = "document", "token_ids"  # optional, whole numbers (n,): which document and token a row is of

Whole = Annotated[int, Field(strict=True, ge=0)]


class Shard(BaseModel):
    """A file of rows. held_out: they are for evaluation; no shard with it: they are chosen by data.held_out."""

    model_config = ConfigDict(frozen=True)

    file: str
    rows: Whole | None = None
    held_out: bool = False


class Description(BaseModel):
    """Other keys may stand beside these; they are not read."""

    model_config = ConfigDict(frozen=True)

    format: Literal["circuit-tracer activations"]
    version: Literal[1]
    model: str = Field(min_length=1)
    layers: list[Whole] = Field(min_length=1)  # of the model, one for each of the S places of a row
    input_hook: str = Field(min_length=1)
    output_hook: str = Field(min_length=1)
    width: Annotated[int, Field(strict=True, ge=1)]
    n_layers: Whole | None = None  # of the whole model, if it is known
    shards: list[Shard] | None = None  # in order; None: all files of the folder, by name

    @property
    def same(self) -> bool:
        """Whether what is reconstructed is what is read, as for an autoencoder."""
        return self.input_hook == self.output_hook

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that every row has."""
        return (INPUT,) if self.same else (INPUT, OUTPUT)

    def facts(self) -> dict[str, Any]:
        """What rows of several folders must have in common, JSON-able."""
        return self.model_dump(include={"model", "layers", "input_hook", "output_hook", "width", "n_layers"})


def described(
    model: str, layers: list[int], input_hook: str, output_hook: str, width: int, n_layers: int | None
) -> dict[str, Any]:
    """The manifest of what is about to be written or sent. Raises FileFormatError for values that cannot be."""
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "layers": list(layers),
        "input_hook": input_hook,
        "output_hook": output_hook,
        "width": width,
        **({} if n_layers is None else {"n_layers": n_layers}),
    }
    read_description(raw, "what was said of the activations")
    return raw


def read_description(raw: Any, source: str) -> Description:
    """Plain values as a description. Raises FileFormatError, naming `source` and what does not fit."""
    found = validated(Description, raw, source)
    if found.layers != sorted(set(found.layers)):
        raise FileFormatError(
            f"{source}: layers are {shortened(found.layers)}; each is named once, in ascending order."
        )
    if found.n_layers is not None and found.layers[-1] >= found.n_layers:
        raise FileFormatError(
            f"{source}: layer {found.layers[-1]} is named, of a model that has {found.n_layers} (n_layers)."
        )
    return found


def check_rows(part: Mapping[str, Tensor], description: Description, source: str) -> int:
    """The number of rows of some tensors. Raises FileFormatError, naming `source`, for others than the description says."""
    n_rows: set[int] = set()
    for name in description.names:
        if name not in part:
            hooks = f"{description.input_hook} to {description.output_hook}"
            raise FileFormatError(
                f"{source} has no tensor {name!r} (found {', '.join(map(repr, sorted(part))) or 'none'}); activations of "
                f"{hooks} need {' and '.join(description.names)}."
            )
        tensor = part[name]
        expected = (len(description.layers), description.width)
        if tensor.ndim != 3 or tuple(tensor.shape[1:]) != expected:
            raise FileFormatError(
                f"{source}: {name!r} has the shape {tuple(tensor.shape)}; expected (rows, {expected[0]} layers, width "
                f"{expected[1]}), as layers and width of the manifest say."
            )
        if not tensor.dtype.is_floating_point:
            raise FileFormatError(f"{source}: {name!r} is {tensor.dtype}; expected a float format.")
        n_rows.add(len(tensor))
    for name in (DOCUMENT, TOKEN_IDS):
        if name in part:
            tensor = part[name]
            if tensor.ndim != 1 or tensor.dtype.is_floating_point or tensor.dtype in (torch.bool, torch.uint64):
                raise FileFormatError(
                    f"{source}: {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected whole numbers (rows,)."
                )
            n_rows.add(len(tensor))
    if len(n_rows) > 1:
        raise FileFormatError(
            f"{source}: its tensors have {', '.join(map(str, sorted(n_rows)))} rows; expected one number."
        )
    return n_rows.pop()
