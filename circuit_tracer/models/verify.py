"""Is the row of the table true of this model? Two forward passes of a few tokens answer it when a model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.capture import PromptCapture, capture, logits_at
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.run import implementation
from circuit_tracer.models.surroundings import plain_torch

# relative to the largest value: transformers rounds norms and softmax to float32 even in float64 models
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


@plain_torch()
def verify(parts: ModelParts, n_tokens: int = 6) -> None:
    """Prove on a short prompt that (1) our capture equals the model's own pass, (2) the tokens' vectors are rows of the
    embedding, and (3) the frozen network replays the pass.

    Raises UnsupportedModelError naming what disagrees, so that a wrong or outdated table row cannot give a wrong graph.
    """
    length = min(n_tokens, parts.context_length or n_tokens)
    ids = torch.arange(1, 1 + length) * 7919 % parts.config.d_vocab
    tolerance = _TOLERANCE[next(parts.model.parameters()).dtype]
    with torch.no_grad(), implementation(parts, "eager"):
        expected = parts.model(input_ids=ids[None].to(parts.device), use_cache=False).logits[0].to(parts.compute_dtype)
    captured = capture(parts, ids)
    _compare(parts, "logits of the captured pass", logits_at(parts, captured.final), expected, tolerance)
    _compare(parts, "what enters the first layer", captured.embedding, _token_vectors(parts, ids, captured), tolerance)
    inputs, final = replay(parts, captured)
    for layer, (found, kept) in enumerate(zip(inputs, captured.layers, strict=True)):
        _compare(parts, f"residual stream before the MLP of layer {layer}", found, kept.resid_mid, tolerance)
    _compare(parts, "output of the final norm", final, captured.final, tolerance)


def replay(parts: ModelParts, captured: PromptCapture) -> tuple[list[Tensor], Tensor]:
    """The frozen network fed with the true MLP outputs: its L residual streams before the MLP, and the final norm's output."""
    network = FrozenNetwork(parts, captured, "hook_resid_mid", "mlp.hook_out")
    start = captured.embedding
    if captured.position_embedding is not None:
        start = start + captured.position_embedding
    return network.propagate(start, lambda layer, _: captured.layers[layer].mlp_out, constants=True)


def _token_vectors(parts: ModelParts, ids: Tensor, captured: PromptCapture) -> Tensor:
    """Rows (P, D) of the embedding, times the one factor that fits best (Gemma scales them by sqrt(D))."""
    rows: Tensor = parts.model.get_input_embeddings().weight.detach()[ids.to(parts.device)].to(parts.compute_dtype)
    return rows * (captured.embedding * rows).sum() / rows.pow(2).sum()


def _compare(parts: ModelParts, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= tolerance:
        raise UnsupportedModelError(
            f"{parts.config.original_architecture} does not behave as its row in the table of architectures says: {what} "
            f"differs by {error:.2e} relative (at most {tolerance:.0e} expected). This variant of "
            f"{parts.architecture.model_type} is not supported; please report it with the model's config.json."
        )
