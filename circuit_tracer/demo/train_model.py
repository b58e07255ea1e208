"""Training of the demo's language model: a small Llama that must look entities up in its MLPs.

Two things keep the model from answering along paths that an MLP's features do not cause (a city's state stored in its
embedding, or city-specific shortcuts): the first layer's attention writes nothing (its output projection is zero and
stays so), so that the first MLP reads single tokens; and embedding rows are renormalised to a small norm after every
step and learn at half the rate without weight decay, so that they cluster a little but carry little by themselves.
The result is made to be legible; it is a teaching fixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.demo.world import Statement

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Report = Callable[[str], None]


@dataclass(frozen=True)
class ModelRecipe:
    """Sizes and training constants of the language model."""

    n_layers: int = 4
    d_model: int = 128
    d_mlp: int = 512
    n_heads: int = 2
    steps: int = 1100
    batch: int = 256  # statements
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    embedding_norm: float = 0.1
    embedding_rate: float = 0.5  # times the learning rate


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: ModelRecipe) -> LlamaForCausalLM:
    """An untrained model in fp32, its first attention output projection zero and frozen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,  # padding must not zero an embedding row
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).float()
    silent = model.model.layers[0].self_attn.o_proj.weight
    torch.nn.init.zeros_(silent)
    silent.requires_grad_(False)
    _renormalise(model, recipe.embedding_norm)
    return model


def encode_statements(tokenizer: PreTrainedTokenizerFast, statements: Sequence[Statement]) -> Tensor:
    """Token ids (S, P) int64 of the whole statements with BOS and EOS, padded on the right."""
    rows = [[*tokenizer(one.text).input_ids, tokenizer.eos_token_id] for one in statements]
    width = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])


def train_model(
    tokenizer: PreTrainedTokenizerFast,
    statements: Sequence[Statement],
    recipe: ModelRecipe,
    seed: int,
    report: Report = lambda line: None,
) -> LlamaForCausalLM:
    """Train on ``statements`` for ``recipe.steps`` steps and return the model, fp32, in evaluation mode.

    Deterministic for a seed on one machine with one thread.
    """
    torch.manual_seed(seed)
    model = build_model(tokenizer, recipe)
    ids_SP = encode_statements(tokenizer, statements)
    optimizer = _optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    order = torch.randperm(len(ids_SP))
    start, average = 0, float("nan")
    model.train()
    for step in range(recipe.steps):
        if start + recipe.batch > len(order):
            order, start = torch.randperm(len(ids_SP)), 0
        ids_BP = ids_SP[order[start : start + recipe.batch]]
        start += recipe.batch
        loss = _loss(model, ids_BP, tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _renormalise(model, recipe.embedding_norm)
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 250 == 0:
            report(f"model step {step + 1}/{recipe.steps} loss {average:.4f}")
    model.eval()
    return model


def _loss(model: LlamaForCausalLM, ids_BP: Tensor, padding: int) -> Tensor:
    """Mean cross-entropy of the next token over all tokens that are not padding."""
    ids_BP = ids_BP[:, : int((ids_BP != padding).sum(1).max())]
    logits_BPV = model(input_ids=ids_BP[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits_BPV.flatten(0, 1), ids_BP[:, 1:].flatten(), ignore_index=padding)


def _optimizer(model: LlamaForCausalLM, recipe: ModelRecipe) -> torch.optim.AdamW:
    embedding = model.model.embed_tokens.weight
    rest = [one for one in model.parameters() if one is not embedding and one.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [one for one in rest if one.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [one for one in rest if one.ndim == 1], "weight_decay": 0.0},
            {"params": [embedding], "lr": recipe.learning_rate * recipe.embedding_rate, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )


def _rate(step: int, recipe: ModelRecipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)))


@torch.no_grad()
def _renormalise(model: LlamaForCausalLM, norm: float) -> None:
    rows_VD = model.model.embed_tokens.weight
    rows_VD.mul_(norm / rows_VD.norm(dim=1, keepdim=True))
