"""What `info --json` prints, by what there is at a path."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from circuit_tracer.cli.answers.lines import Line
from circuit_tracer.cli.answers.trace import Summary


class GraphFacts(Summary):
    """A graph file."""

    what: Literal["graph"]


class ViewerFacts(Line):
    """A graph as viewers read it. repairs: what would be mended."""

    what: Literal["graph file for viewers"]
    slug: str | None = None
    scan: str | None = None
    prompt: str | None = None
    interrupted: Any = None
    nodes: int
    links: int
    repairs: list[str]


class NeuronFacts(Line):
    """Neurons as a dictionary."""

    what: Literal["neurons of a model"]
    kind: str
    layers: int
    neurons_a_layer: int
    features_a_layer: int
    d_model: int
    reads: str
    writes: str
    fits: str
    note: str


class ModelFacts(Line):
    """A language model."""

    what: Literal["model"]
    n_layers: int
    d_model: int
    d_head: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    tokenizer_name: str
    model_name: str
    original_architecture: str
    n_key_value_heads: int
    dtype: str
    parameters: int
    supported: bool


class TranscoderFacts(Line):
    """Transcoders of a folder. fits: the model that was asked about."""

    what: Literal["transcoders"]
    kind: str
    layers: int
    layers_with_transcoders: list[int] | None = None
    features_a_layer: int
    d_model: int
    activation: str
    reads: str
    writes: str
    skip_connection: bool
    dtype: str
    scan: str | list[str] | None
    model_name: str | None
    l0_taken: Any = None
    fits: str | None = None


class AutoencoderFacts(Line):
    """Autoencoders of a folder. use: what commands do with them."""

    what: Literal["sparse autoencoders"]
    layers_with_autoencoders: list[int]
    features_a_layer: int
    d_model: int
    activation: str
    reads_and_writes: str
    dtype: str
    model_name: str | None
    use: str
    l0_taken: Any = None
    fits: str | None = None


class RunFacts(Line):
    """The folder of a run over many prompts. done, failed, waiting: of its rows."""

    what: Literal["run over many prompts"]
    rows: int
    done: int
    failed: int
    waiting: int
    transcoders: str
    model: str | None
    dtype: str


class HubFacts(BaseModel):
    """Transcoders of the hub, with all that their configuration says."""

    model_config = ConfigDict(extra="allow")

    what: Literal["transcoders on the Hugging Face hub"]
