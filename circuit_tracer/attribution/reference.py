"""The whole method, once, slowly: an attribution graph by autograd on the transformers model itself.

This file is the documentation of what the fast engine computes, and what it is tested against. It shares none of the
engine's derivations: no hand-written adjoint, no frozen network, no kernel. It reads from top to bottom:

1. `FrozenModel`: run the model once and keep its attention patterns, norm scales and MLP outputs. From then on these are
   constants, the MLP outputs are sums of named *sources*, and the model is an affine function of the sources.
2. `reference_graph`: the value that each target reads is affine in the sources, so autograd gives its exact split:
   value = sum over sources of <gradient, what the source writes> + bias. The terms of that sum are the edges.
3. `reference_dense.py`: what is done with the edges, on dense matrices: influence, selection, pruning, scores.

Cost: one backward pass a target and a dense matrix of nodes x nodes. Use it on tiny models.

Letters: L layers, P positions, D d_model, F features a layer, V vocabulary, N nodes, K targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from circuit_tracer.attribution.reference_dense import ReferenceGraph, keep_features, select_features
from circuit_tracer.attribution.targets import CustomTarget, DirectionTarget, FeatureTarget, LogitDifference
from circuit_tracer.models.attention import AttentionTape
from circuit_tracer.models.parts import ModelParts, Norm
from circuit_tracer.models.run import ModelRun, Place, Visit
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.lorsa import Lorsa
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

ReferenceTarget = int | CustomTarget | FeatureTarget | LogitDifference | DirectionTarget


class Run(NamedTuple):
    """What a run of the frozen model gives: transcoder inputs (L, P, D), the final norm's output (P, D), activations
    (P, D) at the places that are watched, and what a dictionary of attention reads (P, W), by layer.
    """

    inputs: Tensor
    final: Tensor
    watched: dict[Place, Tensor]
    attention: dict[int, Tensor]


Read = Callable[[Run], Tensor]  # a run -> the value that a node reads


# 1. The frozen model


class FrozenModel:
    """A transformers model on one prompt, with attention patterns, norm scales and MLPs frozen (README.md §2).

    What a layer's MLP adds to the residual stream is, at the transcoder's output hook,

        y_l = writes_l + constant_l + x_l S_l

    where writes_l (P, D) are the sources (features and errors), constant_l the decoder bias (at left-out positions: all of
    the true MLP output), x_l what the transcoder reads at layer l and S_l its skip connection, if it has one. `run` is an
    affine function of its arguments, the token vectors and the writes; everything between them is the model's own code.

    With a dictionary of attention outputs, attention of its layers is replaced in the same way: what is at the dictionary's
    output hook is writes (P, W) + constant, and nothing passes through the attention below. Its features read what attention
    made of the stream before it was replaced (README.md §10).
    """

    def __init__(
        self,
        parts: ModelParts,
        transcoders: Transcoders,
        ids: Tensor,
        left_out: Sequence[int],
        watch: Iterable[Place] = (),
        attention: TranscoderSet | None = None,
    ) -> None:
        self.parts, self.transcoders, self.ids, self.left_out = parts, transcoders, ids, list(left_out)
        self.n_layers, self.n_pos, self.dtype = len(parts.layers), len(ids), parts.compute_dtype
        self.input_hook, self.output_hook = transcoders.feature_input_hook, transcoders.feature_output_hook
        self.watch, self.watched = set(watch), dict[Place, Tensor]()  # in the run in progress
        self.patterns = AttentionTape()  # attention patterns by layer
        self.sigma: dict[nn.Module, Tensor] = {}  # (P, 1) of each norm
        self.x: list[Tensor] = [torch.empty(0)] * self.n_layers  # what the transcoder reads, in the run in progress
        self.y: list[Tensor] = [torch.empty(0)] * self.n_layers  # true activations at the output hook
        self.attention = attention
        self.attention_x: dict[int, Tensor] = {}  # what the dictionary of attention reads, in the run in progress
        self.attention_y: dict[int, Tensor] = {}  # true activations at its output hook

        # Run the model as it is. Afterwards patterns, sigma and y are known and never change again.
        self.frozen = False
        self.final = self._forward()
        self.frozen = self.patterns.replay = True

        self._name_sources(inputs=torch.stack(self.x), outputs=torch.stack(self.y))
        self._name_attention_sources()

    def _name_sources(self, inputs: Tensor, outputs: Tensor) -> None:
        """Split the true MLP outputs (L, P, D) into features, errors and constants, given the transcoder's inputs."""
        # Features: (L, P, F) activations of the true inputs, none at the left-out positions.
        self.activations = self.transcoders.encode(inputs)
        self.activations[:, self.left_out] = 0

        # Constants: decoder biases, and at left-out positions whatever the MLP did there.
        explained = outputs - torch.stack([self._skip(layer, x) for layer, x in enumerate(inputs)])
        self.constant = torch.empty_like(outputs)
        for layer in range(self.n_layers):
            self.constant[layer] = self.transcoders.decoder_bias(layer)
        self.constant[:, self.left_out] = explained[:, self.left_out]

        # The rest is written by sources: by features as far as they go, and what they leave is the error.
        self.writes = explained - self.constant
        self.error = self.writes.clone()
        for source in range(self.n_layers):
            every = torch.arange(self.transcoders.n_features(source))
            for layer in self.transcoders.target_layers(source):
                decoder = self.transcoders.decoder_rows(source, every, target_layer=layer)
                self.error[layer] -= self.activations[source][:, every] @ decoder.to(self.dtype)

    def _name_attention_sources(self) -> None:
        """The same for attention outputs (L, P, W); zeros in layers whose attention is not replaced."""
        dictionary = self.attention
        width, n_features = (dictionary.d_model, dictionary.d_transcoder) if dictionary is not None else (0, 0)
        self.attention_activations = torch.zeros(self.n_layers, self.n_pos, n_features, dtype=self.dtype)
        self.attention_writes = torch.zeros(self.n_layers, self.n_pos, width, dtype=self.dtype)
        self.attention_constant = torch.zeros_like(self.attention_writes)
        self.attention_error = torch.zeros_like(self.attention_writes)
        self.lorsa_patterns: dict[int, Tensor] = {}
        if dictionary is None:
            return
        for layer in dictionary.layers:
            x, y = self.attention_x[layer].detach(), self.attention_y[layer].detach()
            if isinstance(dictionary, Lorsa):
                self.lorsa_patterns[layer] = dictionary.queries_keys(layer).pattern(x)
            pre = self.attention_pre_activations(layer, x)
            activations = dictionary.apply_activation_function(layer, pre)
            activations[self.left_out] = 0
            self.attention_activations[layer, :, : activations.shape[1]] = activations
            self.attention_constant[layer] = dictionary.decoder_bias(layer)
            self.attention_constant[layer, self.left_out] = y[self.left_out]
            self.attention_writes[layer] = y - self.attention_constant[layer]
            decoder = dictionary.decoder_rows(layer, torch.arange(activations.shape[1]), target_layer=layer)
            self.attention_error[layer] = self.attention_writes[layer] - activations @ decoder.to(self.dtype)

    def attention_pre_activations(self, layer: int, x: Tensor) -> Tensor:
        """(P, F) of a layer's attention features, when their dictionary reads x (P, W); patterns are those of the true run."""
        assert self.attention is not None
        if isinstance(self.attention, Lorsa):
            return self.attention.pre_activations(layer, x, self.lorsa_patterns[layer])
        return self.attention.encode_layer(x, layer, apply_activation_function=False)

    def run(self, tokens: Tensor, writes: Tensor, attention_writes: Tensor | None = None) -> Run:
        """Frozen forward pass.

        tokens: (P, D) vectors of the prompt's tokens. writes: (L, P, D) what sources write at the output hooks;
        attention_writes: (L, P, W) at that of the dictionary of attention (None: those of the true run). With `self.tokens` and
        `self.writes` the result is that of the true run. Differentiable.
        """
        self._run_tokens, self._run_writes = tokens, writes
        self._run_attention_writes = self.attention_writes if attention_writes is None else attention_writes
        final = self._forward()  # fills self.x, self.watched and self.attention_x
        return Run(torch.stack(self.x), final, dict(self.watched), dict(self.attention_x))

    def _skip(self, layer: int, x: Tensor) -> Tensor:
        matrix = self.transcoders.skip_matrix(layer)
        return torch.zeros_like(x) if matrix is None else x @ matrix.to(self.dtype)

    # The model's own forward pass, seen and changed at five kinds of places.

    def _forward(self) -> Tensor:
        visits: dict[str, Visit] = {
            "hook_resid_pre": self._at_layer,
            "hook_resid_mid": self._at_transcoder_input,
            self.output_hook: self._at_transcoder_output,
        }
        if self.attention is not None:
            visits[self.attention.feature_input_hook] = self._at_attention_input
            visits[self.attention.feature_output_hook] = self._at_attention_output
        for site in {site for site, _ in self.watch}:
            visits[site] = self._watching(site, visits.get(site))
        run = ModelRun(self.parts, visits, norms=self._at_norm, tape=self.patterns)
        return run(self.ids, gradients=True).final[0]

    def _watching(self, site: str, visit: Visit | None) -> Visit:
        """The visit, if there is one; what goes on from there is kept."""

        def watch(layer: int, activation: Tensor) -> Tensor | None:
            new = None if visit is None else visit(layer, activation)
            if (site, layer) in self.watch:
                self.watched[site, layer] = (activation[0] if new is None else new.view_as(activation)[0]).to(
                    self.dtype
                )
            return new

        return watch

    def _at_layer(self, layer: int, resid: Tensor) -> Tensor | None:
        """What enters the first layer: token vectors, and position vectors where the architecture has them."""
        if layer > 0:
            return None
        if not self.frozen:
            positions = self.parts.position_vectors(self.n_pos)
            self.positions = torch.zeros_like(resid[0], dtype=self.dtype) if positions is None else positions
            self.tokens = resid[0].to(self.dtype) - self.positions
            return None
        return (self._run_tokens + self.positions)[None]

    def _at_norm(self, layer: int, name: str, norm: Norm, r: Tensor) -> _WrittenOut:
        """A norm, written out: only its scale sigma is frozen."""
        if not self.frozen:
            centred = r - r.mean(-1, keepdim=True) if norm.parameters.centred else r
            self.sigma[norm.module] = (centred.pow(2).mean(-1, keepdim=True) + norm.parameters.epsilon).sqrt()
        return _WrittenOut(norm, self.sigma[norm.module])

    def _at_transcoder_input(self, layer: int, resid: Tensor) -> None:
        """resid: what enters the MLP's norm, or the MLP itself where there is no norm."""
        norm, r = self.parts.layers[layer].mlp_norm, resid[0].to(self.dtype)
        if norm is not None and self.input_hook != "hook_resid_mid":
            written = self._at_norm(layer, "mlp_norm", norm, r)
            r = written.normalise(r)
            r = written.amplify(r) if self.input_hook == "mlp.hook_in" else r
        self.x[layer] = r

    def _at_transcoder_output(self, layer: int, output: Tensor) -> Tensor | None:
        if not self.frozen:
            self.y[layer] = output[0].to(self.dtype)
            return None
        return self._run_writes[layer] + self.constant[layer] + self._skip(layer, self.x[layer])

    def _at_attention_input(self, layer: int, activation: Tensor) -> None:
        self.attention_x[layer] = activation[0].to(self.dtype)

    def _at_attention_output(self, layer: int, activation: Tensor) -> Tensor | None:
        assert self.attention is not None
        if self.attention.feature_input_hook == self.attention.feature_output_hook:
            self._at_attention_input(layer, activation)
        if not self.frozen:
            self.attention_y[layer] = activation[0].to(self.dtype)
        if not self.frozen or layer not in self.attention.layers:
            return None
        return (self._run_attention_writes[layer] + self.attention_constant[layer]).view_as(activation)


@dataclass(frozen=True)
class _WrittenOut:
    """gain * (r - mean?) / sigma + shift, with sigma (P, 1) given."""

    norm: Norm
    sigma: Tensor

    def normalise(self, r: Tensor) -> Tensor:
        """Before the gain."""
        return (r - r.mean(-1, keepdim=True) if self.norm.parameters.centred else r) / self.sigma

    def amplify(self, normalised: Tensor) -> Tensor:
        """Gain and shift."""
        out = normalised * self.norm.parameters.gain
        return out if self.norm.parameters.shift is None else out + self.norm.parameters.shift


# 2. The graph


@plain_torch()
def reference_graph(
    model: Any,
    ids: Tensor,
    targets: Sequence[ReferenceTarget] | None = None,
    *,
    left_out: Iterable[int] = (0,),
    position: int = -1,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
    max_feature_nodes: int | None = None,
) -> ReferenceGraph:
    """The graph of a prompt, ids (P,), by autograd. model: a `ReplacementModel`; arguments as those of `attribute`.

    targets: None for the most probable tokens, else token ids, CustomTarget, FeatureTarget, LogitDifference, DirectionTarget.
    left_out: positions without features and errors (`zero_positions` of `attribute`).
    """
    watch = [(each.site, each.layer) for each in targets or () if isinstance(each, DirectionTarget)]
    frozen = FrozenModel(model.parts, model.transcoders, ids, sorted(left_out), watch, model.attention)
    active, activation, feature_writes, attention_writes_of = _features(frozen)
    if targets is None:
        targets = _salient_tokens(frozen, position, max_n_logits, desired_logit_prob)

    # Rows are the features and the targets: for each, the value that it reads as a function of a run.
    reads = [_read_feature(frozen, *feature) for feature in active.tolist()]
    reads += [_read_target(frozen, target, position) for target in targets]
    weight = torch.tensor([_weight(frozen, target, position) for target in targets], dtype=frozen.dtype)
    n_errors = (1 + (model.attention is not None)) * frozen.n_layers * frozen.n_pos
    n_sources = len(active) + n_errors + frozen.n_pos
    n_nodes = n_sources + len(targets)
    rows = [*range(len(active)), *range(n_sources, n_nodes)]

    true = (frozen.tokens, frozen.writes, frozen.attention_writes)
    tokens, writes, attention_writes = (each.clone().requires_grad_() for each in true)
    true_run = frozen.run(tokens, writes, attention_writes)
    empty_run = frozen.run(*(torch.zeros_like(each) for each in true))
    adjacency = torch.zeros(n_nodes, n_nodes, dtype=frozen.dtype)
    value, bias = torch.zeros(n_nodes, dtype=frozen.dtype), torch.zeros(n_nodes, dtype=frozen.dtype)
    for row, read in zip(rows, reads, strict=True):
        at_tokens, at_writes, at_attention = torch.autograd.grad(
            read(true_run), (tokens, writes, attention_writes), retain_graph=True, materialize_grads=True
        )
        from_features = (at_writes * feature_writes).sum((1, 2, 3))
        from_features += (at_attention * attention_writes_of).sum((1, 2, 3))
        from_errors = (at_writes * frozen.error).sum(-1).flatten()
        if model.attention is not None:
            from_errors = torch.cat([from_errors, (at_attention * frozen.attention_error).sum(-1).flatten()])
        from_tokens = (at_tokens * frozen.tokens).sum(-1)
        adjacency[row, :n_sources] = torch.cat([from_features, from_errors, from_tokens])
        value[row], bias[row] = read(true_run).detach(), read(empty_run).detach()

    everything, nothing = torch.arange(len(active)), torch.zeros_like(bias)
    sizes = frozen.n_layers, frozen.n_pos
    halves = model.attention is not None, model.transcoders.d_transcoder
    whole = ReferenceGraph(adjacency, bias, nothing, value, active, activation, everything, weight, *sizes, *halves)
    return keep_features(whole, select_features(whole, max_feature_nodes)) if max_feature_nodes else whole


def _features(frozen: FrozenModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Active features (N_f, 3) in the order of nodes, their activations (N_f,), and what each writes, (N_f, L, P, D) of MLPs
    and (N_f, L, P, W) of attention.
    """
    first = frozen.transcoders.d_transcoder  # features of attention come behind those of MLPs
    every = torch.cat([frozen.activations, frozen.attention_activations], dim=-1)
    active = every.nonzero()
    activation = every[tuple(active.T)]
    writes = torch.zeros(len(active), *frozen.writes.shape, dtype=frozen.dtype)
    attention_writes = torch.zeros(len(active), *frozen.attention_writes.shape, dtype=frozen.dtype)
    for number, (layer, position, index) in enumerate(active.tolist()):
        if index >= first and frozen.attention is not None:
            decoder = frozen.attention.decoder_rows(layer, torch.tensor([index - first]), target_layer=layer)
            attention_writes[number, layer, position] = activation[number] * decoder[0]
            continue
        for above in frozen.transcoders.target_layers(layer):
            decoder = frozen.transcoders.decoder_rows(layer, torch.tensor([index]), target_layer=above)
            writes[number, above, position] = activation[number] * decoder[0]
    return active, activation, writes, attention_writes


def _read_feature(frozen: FrozenModel, layer: int, position: int, index: int) -> Read:
    """Pre-activation of a feature: encoder row times transcoder input, plus its bias; of attention, what its dictionary
    reads.
    """
    first = frozen.transcoders.d_transcoder
    if index >= first:
        return lambda run: frozen.attention_pre_activations(layer, run.attention[layer])[position, index - first]
    encoder, bias = frozen.transcoders.encoder_rows(layer, torch.tensor([index]))
    return lambda run: run.inputs[layer, position] @ encoder[0].to(run.inputs) + bias[0]


def _read_target(frozen: FrozenModel, target: ReferenceTarget, position: int) -> Read:
    """Logits are read without softcap; a token's is compared to the mean over the vocabulary."""
    if isinstance(target, FeatureTarget):
        return _read_feature(frozen, target.layer, target.position, target.feature_idx)
    if isinstance(target, CustomTarget):
        return lambda run: run.final[position] @ target.vec.to(run.final)
    if isinstance(target, DirectionTarget):
        return lambda run: run.watched[target.site, target.layer][target.position] @ target.vector.to(run.final)
    unembed = frozen.parts.unembed
    if isinstance(target, LogitDifference):
        return lambda run: unembed(run.final[position])[target.token] - unembed(run.final[position])[target.other]
    return lambda run: unembed(run.final[position])[target] - unembed(run.final[position]).mean()


def _probability(frozen: FrozenModel, position: int) -> Tensor:
    logits, cap = frozen.parts.unembed(frozen.final[position]), frozen.parts.final_softcap
    return torch.softmax(torch.tanh(logits / cap) * cap if cap else logits, dim=-1)


def _weight(frozen: FrozenModel, target: ReferenceTarget, position: int) -> float:
    if isinstance(target, int):
        return float(_probability(frozen, position)[target])
    return target.prob if isinstance(target, CustomTarget) else target.weight


def _salient_tokens(frozen: FrozenModel, position: int, at_most: int, probability: float) -> list[int]:
    """The fewest most probable tokens that together reach `probability`, at most so many."""
    ordered = torch.sort(_probability(frozen, position), descending=True)
    count = int((ordered.values.cumsum(0) < probability).sum()) + 1
    return ordered.indices[: min(count, at_most)].tolist()
