"""A prompt made linear: captured, frozen, encoded; its errors and constants known (README.md §1, 2, 5).

Letters: L layers, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.attention_nodes import LinearAttention, linear_attention
from circuit_tracer.attribution.decoder_rows import CHUNK_BYTES, DecoderRows, read_decoder_rows
from circuit_tracer.attribution.frozen_attention import FrozenAttention
from circuit_tracer.attribution.held import Held
from circuit_tracer.attribution.normalised_error import nmse_of
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.sources import SourceTable
from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.graph.balance import Reconstruction
from circuit_tracer.kernels.device import sent
from circuit_tracer.models.capture import PromptCapture, capture
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.sites import width_at
from circuit_tracer.transcoders.active import ActiveFeatures
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.building import NO_TRANSCODER
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

# of the positions (P,) that are kept: features, and what is to be said of how they were found (JSON values)
Finder = Callable[[FrozenNetwork, Tensor], tuple[ActiveFeatures, dict[str, Any]]]


@dataclass(frozen=True)
class LinearPrompt:
    """Everything the sweep needs of one prompt."""

    network: FrozenNetwork
    decoder: DecoderRows  # the one part that may change: it can let go of what it keeps
    skips: list[Tensor | None]  # L x (D, D) skip connections of the transcoder, y += x @ S
    error: Tensor  # (L, P, D) what the features leave of the MLP output, at the output hook; zero at left-out positions
    constant_inputs: list[Tensor]  # L x (P, D) transcoder inputs of the network fed with constants only
    constant_final: Tensor  # (P, D) final-norm output of the same
    reconstruction: Reconstruction
    keep: Tensor  # (P,) positions that have features and errors
    found: dict[str, Any] = field(default_factory=dict)  # what is said of how its features were found
    attention: LinearAttention | None = None  # where a dictionary of attention outputs replaces it
    reads: ReadOut | None = None  # of all active features, where they were read before

    def read_outs(self, transcoders: Transcoders, which: Tensor) -> ReadOut:
        """What some active features, given by canonical index (T,), read; vectors where the model is, in the compute dtype."""
        if self.reads is not None:
            return self.reads.take(which)
        attention = None if self.attention is None else self.attention.frozen.dictionary
        return ReadOut.of_features(transcoders, self.network, self.sources.active, which, attention)

    @property
    def sources(self) -> SourceTable:
        """The columns of its edge rows."""
        return self.decoder.sources

    def release(self) -> bool:
        """Keep neither decoder rows nor weights of attention from now on; False if none were kept."""
        decoders = [self.decoder] if self.attention is None else [self.decoder, self.attention.decoder]
        kept = [self.network.release_projections(), *(decoder.release() for decoder in decoders)]
        return any(kept)

    @property
    def captured(self) -> PromptCapture:
        """The model's forward pass."""
        return self.network.captured

    @property
    def n_pos(self) -> int:
        """P."""
        return self.captured.n_pos


def paired(parts: ModelParts, transcoders: Transcoders) -> Transcoders:
    """The transcoders, or autoencoders, as those of this model: a set of some layers gets the others, without features.

    Refuses one that cannot belong to the model: width, layers.
    """
    config, width = parts.config, width_at(parts, transcoders.feature_output_hook)
    if transcoders.d_model != width:
        has = "has" if width == config.d_model else f"has at {transcoders.feature_output_hook}"
        raise CompatibilityError(
            f"transcoder expects d_model {transcoders.d_model}, model {config.model_name} {has} {width}; "
            "use the transcoder that was trained on this model"
        )
    if max(transcoders.layers) >= config.n_layers:
        raise CompatibilityError(
            f"transcoder has a layer {max(transcoders.layers)}, model {config.model_name} has {config.n_layers} layers; "
            "use the transcoder that was trained on this model"
        )
    whole = transcoders.covering(config.n_layers)
    if whole.n_layers != config.n_layers:
        raise CompatibilityError(
            f"cross-layer transcoder has {transcoders.n_layers} layers, model {config.model_name} has {config.n_layers}; "
            "it must have every one"
        )
    return whole


def replacing(parts: ModelParts, transcoders: Transcoders) -> Transcoders:
    """As `paired`, of what replaces MLPs in a trace; CompatibilityError for autoencoders."""
    if transcoders.is_autoencoder:
        raise CompatibilityError(
            f"the dictionary is a sparse autoencoder at {transcoders.feature_input_hook}: {NO_TRANSCODER}"
        )
    return paired(parts, transcoders)


@dataclass(frozen=True)
class EncodedPrompt:
    """A captured prompt and its active features; nothing of the decoder has been read yet."""

    network: FrozenNetwork
    active: ActiveFeatures
    keep: Tensor  # (P,) positions that have features and errors
    found: dict[str, Any] = field(default_factory=dict)  # what is said of how they were found
    attention: FrozenAttention | None = None

    @property
    def counts_LP(self) -> Tensor:
        """How many features are active at each layer and position."""
        shape = self.network.n_layers, len(self.keep)
        return torch.bincount(self.active.layer * shape[1] + self.active.position, minlength=shape[0] * shape[1]).view(
            shape
        )


def encode_prompt(
    parts: ModelParts,
    transcoders: Transcoders,
    ids: Tensor,
    left_out: Iterable[int],
    keep_patterns: bool = True,
    held: Held | None = None,
    find: Finder | None = None,
    attention: TranscoderSet | None = None,
) -> EncodedPrompt:
    """Run the model once on ids (P,), freeze it, and find the active features outside the `left_out` positions.

    keep_patterns: keep attention patterns; otherwise they are made anew wherever they are needed, which long prompts need.
    held: features that an intervention sets. find: which features are to be sources; None: all that are active. attention: a
    dictionary of attention outputs, whose features are numbered behind the others. Raises InputError when no position or no
    active feature remains, CompatibilityError for a transcoder of another model.
    """
    transcoders = replacing(parts, transcoders)
    dropped, n_pos = sorted(left_out), len(ids)
    if n_pos == 0 or len([p for p in dropped if p < n_pos]) == n_pos:
        raise InputError(
            f"prompt has {n_pos} token(s); at least {len(dropped) + 1} are needed, because position(s) {dropped} are not "
            "attributed. Give a longer prompt, or choose the positions to leave out (zero_positions=[])"
        )
    visits = None if held is None else held.visits()
    tape = None if held is None or held.tape is None else held.tape()
    captured = capture(parts, ids, keep_patterns, visits, tape)
    network = FrozenNetwork(parts, captured, transcoders.feature_input_hook, transcoders.feature_output_hook)
    keep = torch.ones(n_pos, dtype=torch.bool)
    keep[dropped] = False
    active, found = (encode(network, transcoders, keep), {}) if find is None else find(network, keep)
    frozen = None if attention is None else FrozenAttention(network, attention)
    if frozen is not None:
        active = with_attention(active, frozen, keep, transcoders.d_transcoder)
    return EncodedPrompt(network, active if held is None else held.applied(active, keep), keep, found, frozen)


def linearise(
    encoded: EncodedPrompt,
    transcoders: Transcoders,
    keep_rows: bool,
    chunk_bytes: int = CHUNK_BYTES,
    workers: int = 1,
) -> LinearPrompt:
    """Read the decoder rows of the active features, and know the errors and constants.

    At left-out positions the MLP output is a constant. chunk_bytes: of decoder rows read at once, if they are not kept.
    workers: how many read them, if they are kept.
    """
    network = encoded.network
    transcoders = replacing(network.parts, transcoders)
    frozen = encoded.attention
    sources = SourceTable.of(encoded.active, transcoders, network.captured.n_pos, frozen is not None)
    decoder, features = read_decoder_rows(sources, transcoders, network, keep_rows, chunk_bytes, workers=workers)
    attention = None if frozen is None else linear_attention(frozen, sources, encoded.keep, keep_rows, chunk_bytes)
    balanced = _balance(network, transcoders, decoder, features, encoded.keep, attention)
    return replace(balanced, found=encoded.found)


def encode(network: FrozenNetwork, transcoders: Transcoders, keep_P: Tensor) -> ActiveFeatures:
    """Active features of the prompt at the kept positions; never a dense (L, P, F) array."""
    parts = [transcoders.encode_positions(layer, network.transcoder_input(layer)) for layer in range(network.n_layers)]
    found = ActiveFeatures.from_layers(parts).to("cpu")
    kept = keep_P[found.position]
    active = ActiveFeatures(found.layer[kept], found.position[kept], found.index[kept], found.value[kept])
    if len(active) == 0:
        raise InputError(
            f"no transcoder feature is active on any of the {int(keep_P.sum())} attributed positions; "
            "check that the transcoder was trained on this model and hook (circuit-tracer info), or give a longer prompt"
        )
    return active


def beside(features: ActiveFeatures, others: ActiveFeatures, first: int) -> ActiveFeatures:
    """Features of some layers and those of other layers, whose indices begin at `first`."""
    layer = torch.cat([features.layer, others.layer])
    order = torch.argsort(layer, stable=True)  # no layer has both, and those of a layer are in order
    position = torch.cat([features.position, others.position])
    index = torch.cat([features.index, others.index + first])
    value = torch.cat([features.value, others.value.to(features.value)])
    return ActiveFeatures(layer[order], position[order], index[order], value[order])


def with_attention(active: ActiveFeatures, frozen: FrozenAttention, keep_P: Tensor, first: int) -> ActiveFeatures:
    """The active features of MLPs, and those of attention, whose indices begin at `first` in every layer."""
    parts = []
    for layer in range(frozen.network.n_layers):
        own = active.of_layer(layer)
        columns = [active.position[own], active.index[own], active.value[own]]
        if layer in frozen.layers:
            position, index, value = (column.cpu() for column in frozen.encode(layer))
            kept = keep_P[position]
            behind = position[kept], index[kept] + first, value[kept]
            columns = [torch.cat(both) for both in zip(columns, behind, strict=True)]
        order = torch.argsort(columns[0], stable=True)  # features of a position stay in order
        parts.append((columns[0][order], columns[1][order], columns[2][order]))
    return ActiveFeatures.from_layers(parts)


def _balance(
    network: FrozenNetwork,
    transcoders: Transcoders,
    decoder: DecoderRows,
    features_LPD: Tensor,
    keep_P: Tensor,
    attention: LinearAttention | None,
) -> LinearPrompt:
    """Errors, reconstruction quality and constants, given what the features reconstruct."""
    skips, error = errors(network, transcoders, features_LPD, keep_P)
    inputs, final = constants(network, transcoders, skips, keep_P, attention=attention)
    quality = reconstruction(network, transcoders, decoder.sources.active, error, keep_P)
    return LinearPrompt(network, decoder, skips, error, inputs, final, quality, keep_P, attention=attention)


def errors(
    network: FrozenNetwork, transcoders: Transcoders, features_LPD: Tensor, keep_P: Tensor
) -> tuple[list[Tensor | None], Tensor]:
    """Skip connections L x (D, D), and what features, biases and these leave of the outputs, (L, P, D)."""
    dtype, device = features_LPD.dtype, features_LPD.device
    error = torch.zeros_like(features_LPD)
    skips: list[Tensor | None] = []
    kept = keep_P.to(device)
    for layer in range(network.n_layers):
        x, y = network.transcoder_input(layer), network.transcoder_output(layer)
        stored = transcoders.skip_matrix(layer)
        skip = None if stored is None else stored.to(device=device, dtype=dtype)
        skips.append(skip)
        bias = transcoders.output_bias(layer, partial(network.transcoder_input, layer)).to(device=device, dtype=dtype)
        by_skip = torch.zeros_like(y) if skip is None else x @ skip
        error[layer] = left_over(y, features_LPD[layer], bias, by_skip) * kept[:, None]
    if not torch.isfinite(error).all():
        raise NumericalError(
            "the transcoder's reconstruction is not finite on this prompt; check its weights for NaN or infinity"
        )
    return skips, error


def reconstruction(
    network: FrozenNetwork, transcoders: Transcoders, active: ActiveFeatures, error_LPD: Tensor, keep_P: Tensor
) -> Reconstruction:
    """How well the features rebuild a prompt's MLP outputs; of a layer without a transcoder everything is left."""
    kept = sent(torch.nonzero(keep_P).flatten(), error_LPD.device)
    of_layers = [
        nmse_of(network.transcoder_output(layer).index_select(0, kept), error_LPD[layer].index_select(0, kept))
        for layer in transcoders.layers
    ]
    nmse = torch.ones(network.n_layers, dtype=torch.float64)
    nmse[list(transcoders.layers)] = torch.stack(of_layers).cpu()
    counts = torch.bincount(active.layer[active.index < transcoders.d_transcoder], minlength=network.n_layers)
    return Reconstruction(nmse=nmse, l0=counts.double() / int(keep_P.sum()))


CONSTANTS = ("position", "decoder", "left_out", "attention")  # kinds; README.md §5


def left_over(y_nD: Tensor, features_nD: Tensor, bias_D: Tensor, by_skip_nD: Tensor) -> Tensor:
    """What features, decoder bias and skip connection leave of an output: an error node."""
    return y_nD - features_nD - bias_D - by_skip_nD


def constants(
    network: FrozenNetwork,
    transcoders: Transcoders,
    skips: list[Tensor | None],
    keep_P: Tensor,
    seen: Callable[[int, bool, Tensor], None] = lambda layer, entering, resid: None,
    kinds: Collection[str] = CONSTANTS,
    attention: LinearAttention | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The frozen network fed only with its constants, or some `kinds` of them: position embeddings; decoder biases; MLP outputs
    of left-out positions (where attention is replaced, its outputs too); biases of attention and shifts of norms.

    Transcoder inputs L x (P, D) and the final norm's output (P, D); `seen` as in `FrozenNetwork.propagate`.
    """
    positions, kept = network.captured.position_embedding, keep_P.to(network.captured.embedding.device)[:, None]
    nothing = torch.zeros_like(network.captured.embedding)
    start = nothing if positions is None or "position" not in kinds else positions

    def writes(layer: int, x_PD: Tensor) -> Tensor:
        skip, constant = skips[layer], nothing
        if "decoder" in kinds:
            bias = transcoders.output_bias(layer, partial(network.transcoder_input, layer))
            constant = torch.where(kept, bias.to(nothing), constant)
        if "left_out" in kinds:
            by_skip = 0 if skip is None else network.transcoder_input(layer) @ skip
            constant = torch.where(kept, constant, network.transcoder_output(layer) - by_skip)
        return constant if skip is None else constant + x_PD @ skip

    attends = {} if attention is None else attention.constants(keep_P, kinds)
    return network.propagate(start, writes, constants="attention" in kinds, seen=seen, attends=attends)


def constant_streams(
    prompt: LinearPrompt, transcoders: Transcoders, layers: Collection[int]
) -> dict[int, dict[str, Tensor]]:
    """What each kind of constants makes of the stream (P, D) that enters each of some layers."""
    found: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for kind in CONSTANTS:

        def seen(at: int, entering: bool, resid_PD: Tensor, kind: str = kind) -> None:
            if entering and at in found:
                found[at][kind] = resid_PD

        constants(prompt.network, transcoders, prompt.skips, prompt.keep, seen, (kind,), prompt.attention)
    return found
