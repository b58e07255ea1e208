"""A prompt ready to be attributed, under circuit-tracer's names: to look at its parts or compute more rows.

Letters: L layers, P positions, F features a layer, D d_model, V vocabulary, N active features, M places they write to, T rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuit_tracer.attribution.prompt import LinearPrompt, encode_prompt, linearise
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.tokenization import Prompt

BLOCK_ROWS = 256  # rows in flight


@dataclass(frozen=True)
class AttributionContext:
    """What `attribute` computes from.

    activation_matrix: sparse (L, P, F). error_vectors: (L, P, D), at the output hook. token_vectors: (P, D), as they enter
    the first layer. encoder_vecs: (N, D). decoder_vecs: (M, D), scaled by activation; a feature has one for each layer it
    writes to. encoder_to_decoder_map: (M,) the feature of each. decoder_locations: (2, M) its layer and position.
    logits: (1, P, V).
    """

    activation_matrix: Tensor
    error_vectors: Tensor
    token_vectors: Tensor
    decoder_vecs: Tensor
    encoder_vecs: Tensor
    encoder_to_decoder_map: Tensor
    decoder_locations: Tensor
    logits: Tensor
    prompt: LinearPrompt

    @classmethod
    @torch.no_grad()
    def of(cls, model: Traceable, inputs: Prompt) -> AttributionContext:
        """Run the model once on a prompt. Raises what `attribute` raises."""
        ids, parts, transcoders = model.ensure_tokenized(inputs), model.parts, model.transcoders
        encoded = encode_prompt(parts, transcoders, ids, model.left_out(ids))
        prompt = linearise(encoded, transcoders, keep_rows=True)
        active = encoded.active
        activations = active.to_sparse((transcoders.n_layers, len(ids), transcoders.d_transcoder))
        position, layer, _, decoders, feature = transcoders.select_decoder_vectors(activations)
        everything = torch.arange(len(active))
        return cls(
            activation_matrix=activations,
            error_vectors=prompt.error,
            token_vectors=prompt.captured.embedding,
            decoder_vecs=decoders,
            encoder_vecs=ReadOut.of_features(transcoders, encoded.network, active, everything).vector,
            encoder_to_decoder_map=feature,
            decoder_locations=torch.stack((layer, position)),
            logits=logits_at(parts, prompt.captured.final)[None],
            prompt=prompt,
        )

    @torch.no_grad()
    def compute_batch(
        self, layers: Tensor, positions: Tensor, inject_values: Tensor, retain_graph: bool = True
    ) -> Tensor:
        """Rows (T, N + L * P + P): effects of features, errors and tokens on what vectors (T, D) read at the input hook of
        `layers` (T,) (L: behind the final norm) and at `positions` (T,). `retain_graph` has no effect: there is no graph.
        """
        n_layers, n_pos, _ = self.activation_matrix.shape
        if not len(layers) == len(positions) == len(inject_values):
            raise InputError(
                f"{len(layers)} layers, {len(positions)} positions, {len(inject_values)} vectors; give one each"
            )
        targets = ReadOut(layers.cpu(), positions.cpu(), inject_values, torch.zeros(len(layers)))
        n_features = len(self.prompt.sources)
        rows = self.error_vectors.new_zeros(len(layers), n_features + (n_layers + 1) * n_pos)
        for block in Sweep(self.prompt).blocks(targets, BLOCK_ROWS):
            feature = self.prompt.sources.feature_of_column[: block.n_columns]
            wide = rows.new_zeros(len(block.row), n_layers + 1, n_pos)
            wide[:, :n_layers, : block.n_pos], wide[:, n_layers, : block.n_pos] = block.error, block.token
            found = rows.new_zeros(len(block.row), n_features)
            found[:, feature.to(rows.device)] = block.feature
            rows[block.row.to(rows.device)] = torch.cat([found, wide.flatten(1)], dim=1)
        return rows
