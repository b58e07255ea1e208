"""Is the row of the table true of this model? Two forward passes of a few tokens answer it when a model is loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from circuit_tracer.errors import NumericalError, UnsupportedModelError, first_line
from circuit_tracer.models.architecture import part
from circuit_tracer.models.capture import PromptCapture, capture, logits_at
from circuit_tracer.models.frozen import FrozenNetwork
from circuit_tracer.models.mlps import check_mlp
from circuit_tracer.models.parts import ModelParts
from circuit_tracer.models.plain import float_dtypes
from circuit_tracer.models.run import implementation
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.progress import doing

# relative to the largest value: transformers rounds norms and softmax to float32 even in float64 models
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}


class DisagreementError(UnsupportedModelError):
    """A row that is not true of a model. what: which of its activations differs; error: how much, relative."""

    def __init__(self, parts: ModelParts, what: str, error: float, tolerance: float) -> None:
        self.what, self.error = what, error
        super().__init__(
            f"{parts.config.original_architecture} does not behave as its row in the table of architectures says: {what} "
            f"differs by {error:.2e} relative (at most {tolerance:.0e} expected). This variant of "
            f"{parts.architecture.model_type} is not supported; please report it with the model's config.json."
        )


@plain_torch()
@doing("checking the model")
def verify(parts: ModelParts, n_tokens: int = 6) -> None:
    """Prove on a short prompt that (1) our capture equals the model's own pass, (2) the tokens' vectors are rows of the
    embedding, and (3) the frozen network replays the pass.

    Raises UnsupportedModelError naming what disagrees, so that a wrong or outdated table row cannot give a wrong graph.
    """
    ids = _some_ids(parts, n_tokens)
    tolerance = max(_TOLERANCE[dtype] for dtype in float_dtypes(parts.model))
    expected = _own_logits(parts, ids)
    captured = capture(parts, ids)
    _compare(parts, "logits of the captured pass", logits_at(parts, captured.final), expected, tolerance)
    _compare(parts, "what enters the first layer", captured.embedding, _token_vectors(parts, ids, captured), tolerance)
    inputs, final = replay(parts, captured)
    for layer, (found, kept) in enumerate(zip(inputs, captured.layers, strict=True)):
        _compare(parts, f"residual stream before the MLP of layer {layer}", found, kept.resid_mid, tolerance)
    _compare(parts, "output of the final norm", final, captured.final, tolerance)


@plain_torch()
@doing("checking the neurons")
def verify_neurons(parts: ModelParts, n_tokens: int = 6) -> None:
    """Prove on a short prompt that the neurons of every layer (models/mlps.py) add up to its MLP's output.

    Raises UnsupportedModelError, which names the family and the layer, for an MLP that is of another kind.
    """
    tolerance = max(_TOLERANCE[dtype] for dtype in float_dtypes(parts.model))
    captured = capture(parts, _some_ids(parts, n_tokens))
    network = FrozenNetwork(parts, captured, "mlp.hook_in", "mlp.hook_out")
    for layer in range(len(parts.layers)):
        check_mlp(parts, layer, network.transcoder_input(layer), network.transcoder_output(layer), tolerance)


def _some_ids(parts: ModelParts, n_tokens: int) -> Tensor:
    length = max(1, min(n_tokens, parts.context_length or n_tokens))
    return torch.arange(1, 1 + length) * 7919 % parts.config.d_vocab


def _own_logits(parts: ModelParts, ids: Tensor) -> Tensor:
    """Logits (P, V) of the model's own pass. Raises UnsupportedModelError for a model that does not run."""
    if parts.device.type == "meta":
        raise UnsupportedModelError("the model's weights are not loaded (device 'meta'); load them before it is traced")
    dtypes = [str(dtype).removeprefix("torch.") for dtype in float_dtypes(parts.model)]
    try:
        with torch.no_grad(), implementation(parts, "eager"):
            output = parts.model(input_ids=ids[None].to(parts.device), use_cache=False)
    except RuntimeError as error:
        if len(dtypes) == 1:
            raise
        raise UnsupportedModelError(
            f"the model's weights are in {' and '.join(dtypes)}, and the model does not run so ({first_line(error)}). "
            f"Convert it as a whole: model.to(torch.{dtypes[0]}), or dtype={dtypes[0]!r} where it is loaded."
        ) from error
    logits: Tensor = output.logits[0]
    if not torch.isfinite(logits).all():
        raise NumericalError(
            "the model's logits are not finite on six tokens. Check its weights, or load it in float32."
        )
    return logits.to(parts.compute_dtype)


def replay(parts: ModelParts, captured: PromptCapture) -> tuple[list[Tensor], Tensor]:
    """The frozen network fed with the true MLP outputs: its L residual streams before the MLP, and the final norm's output."""
    network = FrozenNetwork(parts, captured, "hook_resid_mid", "mlp.hook_out")
    start = captured.embedding
    if captured.position_embedding is not None:
        start = start + captured.position_embedding
    return network.propagate(start, lambda layer, _: captured.layers[layer].mlp_out, constants=True)


def _token_vectors(parts: ModelParts, ids: Tensor, captured: PromptCapture) -> Tensor:
    """Rows (P, D) of the embedding, normed where the architecture does, times the one factor that fits best (Gemma scales them
    by sqrt(D)).
    """
    rows: Tensor = parts.model.get_input_embeddings().weight.detach()[ids.to(parts.device)]
    if parts.architecture.embedding_norm is not None:
        rows = part(parts.model, parts.architecture.embedding_norm)(rows)
    rows = rows.to(parts.compute_dtype)
    return rows * (captured.embedding * rows).sum() / rows.pow(2).sum()


def _compare(parts: ModelParts, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    found, expected = found.detach(), expected.detach()
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not error <= tolerance:
        raise DisagreementError(parts, what, error, tolerance)
