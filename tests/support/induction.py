"""A two-layer model written by hand whose story is known: it continues a text that repeats itself, and does nothing else.

It is a GPT-2. The residual stream is five blocks of one-hot vectors: TOKEN and POSITION come from the embeddings, and
1. `PREVIOUS_TOKEN` (layer 0) looks one token back and writes which token that is to the block PREVIOUS;
2. the MLP of layer 0 writes the token once more, to IDENTITY; its neuron v is on at token v and nowhere else;
3. `INDUCTION` (layer 1) looks for the keys whose PREVIOUS is the query's TOKEN, and writes the token that it finds there, half
   from TOKEN and half from IDENTITY, to OUT, which the unembedding reads. Where there is no such key it rests at position 0,
   whose token, `FIRST`, it does not copy.
Of the other heads two look at all keys alike (`UNIFORM`), one at its own token (`SELF`), one at position 0 (`RESTING`); none of
them writes anything. The MLP of layer 1 writes nothing. Every norm gives its input back exactly, but for the final one, so that
`induction_transcoders` is the MLPs without error: feature (0, v) is "the token is v".

Letters: V vocabulary, P positions, D d_model.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from circuit_tracer.transcoders.activations import ReLU
from circuit_tracer.transcoders.single_layer import SingleLayerTranscoder
from circuit_tracer.transcoders.transcoder_set import TranscoderSet

VOCABULARY, POSITIONS, WIDTH, HEADS = 16, 32, 96, 3
D_HEAD = WIDTH // HEADS
FIRST = 0  # the token with which texts begin
TOKEN, PREVIOUS, IDENTITY, OUT = (slice(start, start + VOCABULARY) for start in range(0, 4 * VOCABULARY, VOCABULARY))
POSITION = slice(4 * VOCABULARY, 4 * VOCABULARY + POSITIONS)
UNIFORM, SELF, RESTING = ((0, 0), (1, 0)), (0, 2), (1, 1)
PREVIOUS_TOKEN, INDUCTION = (0, 1), (1, 2)  # (layer, head)
SHARPNESS = 40.0  # by how much a key that is looked for scores above one that is not
LOGIT = 3.0


def induction_model(dtype: torch.dtype = torch.float64) -> Any:
    """The model, in evaluation mode, without a tokenizer: token ids are 0 to 15, and texts begin with `FIRST`."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=VOCABULARY,
        activation_function="relu", tie_word_embeddings=False, bos_token_id=FIRST, eos_token_id=FIRST,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).to(torch.float64).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    base, epsilon = model.transformer, config.layer_norm_epsilon
    base.wte.weight[:, TOKEN] = torch.eye(VOCABULARY, dtype=torch.float64)
    base.wpe.weight[:, POSITION] = torch.eye(POSITIONS, dtype=torch.float64)
    first, second = base.h
    for norm, ones in ((first.ln_1, 2), (first.ln_2, 3), (second.ln_1, 4), (second.ln_2, 4)):
        mean = ones / WIDTH  # of a stream of so many ones; gain and shift undo what the norm does to it
        norm.weight.fill_((mean - mean**2 + epsilon) ** 0.5)
        norm.bias.fill_(mean)
    base.ln_f.weight.fill_(1.0)
    model.lm_head.weight[:, OUT] = LOGIT * torch.eye(VOCABULARY, dtype=torch.float64)
    _write_heads(first.attn, second.attn)
    first.mlp.c_fc.weight[TOKEN] = 2 * torch.eye(VOCABULARY, dtype=torch.float64)
    first.mlp.c_fc.bias.fill_(-1.0)
    first.mlp.c_proj.weight[:, IDENTITY] = torch.eye(VOCABULARY, dtype=torch.float64)
    return model.to(dtype)


def induction_transcoders(dtype: torch.dtype = torch.float64) -> TranscoderSet:
    """Per-layer transcoders that are the model's MLPs; in layer 1 none is ever active."""
    layers = {}
    for layer in range(2):
        one = SingleLayerTranscoder(WIDTH, VOCABULARY, ReLU(), layer, False, dtype=dtype)
        one.W_enc, one.b_enc = torch.zeros(VOCABULARY, WIDTH, dtype=dtype), torch.full((VOCABULARY,), -1.0, dtype=dtype)
        one.W_dec, one.b_dec = torch.zeros(VOCABULARY, WIDTH, dtype=dtype), torch.zeros(WIDTH, dtype=dtype)
        if layer == 0:
            one.W_enc[:, TOKEN] = 2 * torch.eye(VOCABULARY, dtype=dtype)
            one.W_dec[:, IDENTITY] = torch.eye(VOCABULARY, dtype=dtype)
        layers[layer] = one
    return TranscoderSet(layers, "mlp.hook_in", "hook_mlp_out")


def _write_heads(first: Any, second: Any) -> None:
    score = SHARPNESS * D_HEAD**0.5  # queries and keys are divided by it
    token = torch.eye(VOCABULARY, dtype=torch.float64)
    place = torch.eye(POSITIONS, dtype=torch.float64)
    query, key, value = (_columns(first, PREVIOUS_TOKEN[1], part) for part in range(3))
    query[POSITION, :POSITIONS] = score * place.roll(-1, 1)  # position p asks for p - 1; position 0 sees itself alone
    query[POSITION.start, :POSITIONS] = 0
    key[POSITION, :POSITIONS] = place
    value[TOKEN, :VOCABULARY] = token
    _rows(first, PREVIOUS_TOKEN[1])[:VOCABULARY, PREVIOUS] = token
    query, key, _ = (_columns(first, SELF[1], part) for part in range(3))
    query[POSITION, :POSITIONS] = score * place
    key[POSITION, :POSITIONS] = place
    query, key, value = (_columns(second, INDUCTION[1], part) for part in range(3))
    query[TOKEN, :VOCABULARY] = score * token
    key[PREVIOUS, :VOCABULARY] = token
    _bias(second, INDUCTION[1])[VOCABULARY] = score / 2  # of every query: a place to rest
    key[POSITION.start, VOCABULARY] = 1.0
    value[TOKEN, :VOCABULARY] = value[IDENTITY, :VOCABULARY] = token / 2
    value[:, FIRST] = 0
    _rows(second, INDUCTION[1])[:VOCABULARY, OUT] = token
    _bias(second, RESTING[1])[0] = score
    _columns(second, RESTING[1], 1)[POSITION.start, 0] = 1.0


def _columns(attention: Any, head: int, part: int) -> Tensor:
    """Of a head's query, key or value projection (D, d), a view."""
    start = part * WIDTH + head * D_HEAD
    columns: Tensor = attention.c_attn.weight[:, start : start + D_HEAD]
    return columns


def _bias(attention: Any, head: int) -> Tensor:
    """Of a head's query (d,), a view."""
    bias: Tensor = attention.c_attn.bias[head * D_HEAD : (head + 1) * D_HEAD]
    return bias


def _rows(attention: Any, head: int) -> Tensor:
    """Of a head's output projection (d, D), a view."""
    rows: Tensor = attention.c_proj.weight[head * D_HEAD : (head + 1) * D_HEAD]
    return rows
