"""A language model whose circuit is given: layers of ReLU units that read and write named coordinates of the residual stream.

It is a Llama like any other, so that everything in this package works on it, with weights that are set by hand. The
attention of layer 0 adds up all embeddings at the last token, evenly; later layers have none. Norms divide by a constant: their
epsilon is larger than any activation squared by orders of magnitude, and their gain makes up for it.

Letters: L layers, M units of a layer, D width (one coordinate a variable), V words, N prompts, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuit_tracer.replacement_model import ReplacementModel
from circuit_tracer.transcoders.base import Transcoders

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, ASK = "<s>", "="  # the first and the last word of every prompt
NORM = 1e3


@dataclass(frozen=True)
class Units:
    """The units of one layer: relu(x @ read.T + bias) @ write is the MLP's output. read, write: (M, D); bias: (M,)."""

    read_MD: Tensor
    bias_M: Tensor
    write_MD: Tensor

    @classmethod
    def of(cls, width: int, units: Sequence[tuple[Mapping[int, float], float, int]], gain: float = 1.0) -> Units:
        """From (weights by coordinate read, bias, coordinate written) of each; all write with weight `gain`."""
        read_MD, write_MD = torch.zeros(2, len(units), width)
        for row, (weights, _, written) in enumerate(units):
            for coordinate, weight in weights.items():
                read_MD[row, coordinate] = weight
            write_MD[row, written] = gain
        return cls(read_MD, torch.tensor([float(bias) for _, bias, _ in units]), write_MD)


@dataclass(frozen=True)
class Toy:
    """A circuit with its prompts.

    Attributes:
        words: The vocabulary in the order of ids.
        embedding_VD: What a word adds to the coordinates.
        unembedding_VD: What the coordinates add to a word's logit; its mean over words is zero, so that demeaned logits are
            logits.
        prompts_NP: Ids of all prompts.
        weight_N: How often each is drawn in training, as shares.
    """

    name: str
    words: tuple[str, ...]
    embedding_VD: Tensor
    layers: tuple[Units, ...]
    unembedding_VD: Tensor
    prompts_NP: Tensor
    weight_N: Tensor

    @property
    def width(self) -> int:
        """D."""
        return self.embedding_VD.shape[1]

    def ids(self, words: str) -> Tensor:
        """Ids of a prompt given as words apart, BEGIN and ASK left out."""
        return torch.tensor([self.words.index(word) for word in (BEGIN, *words.split(), ASK)])


def even(width: int) -> int:
    """A width that rotary embeddings accept."""
    return width + width % 2


@torch.no_grad()
def language_model(toy: Toy) -> LlamaForCausalLM:
    """The circuit as a Llama in float32.

    Args:
        toy: The toy.

    Returns:
        A transformers model whose weights are the circuit.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    n_pos = toy.prompts_NP.shape[1]
    config = LlamaConfig(
        vocab_size=len(toy.words),
        hidden_size=toy.width,
        intermediate_size=max(len(units.bias_M) for units in toy.layers),
        num_hidden_layers=len(toy.layers),
        num_attention_heads=1,
        head_dim=toy.width,
        rms_norm_eps=NORM**2,
        hidden_act="relu",
        mlp_bias=True,
        tie_word_embeddings=False,
        max_position_embeddings=n_pos + 1,
        bos_token_id=toy.words.index(BEGIN),
        eos_token_id=None,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.zero_()
    model.model.embed_tokens.weight.copy_(toy.embedding_VD)
    model.model.norm.weight.fill_(NORM)
    model.lm_head.weight.copy_(toy.unembedding_VD)
    for block, units in zip(model.model.layers, toy.layers, strict=True):
        count = len(units.bias_M)
        block.input_layernorm.weight.fill_(NORM)
        block.post_attention_layernorm.weight.fill_(NORM)
        block.mlp.gate_proj.weight[:count] = units.read_MD
        block.mlp.gate_proj.bias[:count] = units.bias_M
        block.mlp.up_proj.bias.fill_(1.0)
        block.mlp.down_proj.weight[:, :count] = units.write_MD.T
    # Without queries and keys the last of n_pos tokens attends to each with 1 / n_pos.
    first = model.model.layers[0].self_attn
    first.v_proj.weight.copy_(torch.eye(toy.width))
    first.o_proj.weight.copy_(n_pos * torch.eye(toy.width))
    return model


def tokenizer(toy: Toy) -> PreTrainedTokenizerFast:
    """Words apart are tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(toy.words)}, unk_token=BEGIN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BEGIN, unk_token=BEGIN)


def replacement_model(toy: Toy, transcoders: Transcoders) -> ReplacementModel:
    """The model with a dictionary, ready to be traced.

    Args:
        toy: The toy.
        transcoders: The dictionary.

    Returns:
        The model, ready for `attribute`.
    """
    return ReplacementModel.from_model(language_model(toy), transcoders, tokenizer(toy), toy.name)
