"""What scripts for circuit-tracer ask of a replacement model as a torch module, and as a HookedTransformer.

Letters: B sequences, P positions, G generated tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from circuit_tracer.attribution.context import AttributionContext
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError, first_line, shortened
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import ModelRun, read
from circuit_tracer.models.tokenization import Prompt, gemma3_chat_prefix, single_token, token_strings, tokenize


@dataclass(frozen=True)
class PlacedConfig(ModelConfig):
    """The configuration of a model that was loaded: where it is, and how long a prompt may be (None: any)."""

    device: torch.device
    n_ctx: int | None

    def to_dict(self) -> dict[str, Any]:
        placed = super().to_dict()
        return {name: value for name, value in placed.items() if name not in ("device", "n_ctx")}


@dataclass(frozen=True)
class Unembed:
    """The unembedding: W_U (D, V), b_U (V,)."""

    W_U: Tensor
    b_U: Tensor


@dataclass(frozen=True)
class Embed:
    """The embedding: W_E (V, D)."""

    W_E: Tensor


class ModelMembers(Traceable):
    """A model as scripts know it. What is asked of the transformers model is passed on to it."""

    backend: str

    # A torch module

    def eval(self) -> Self:
        """The model in evaluation mode, which it is loaded in."""
        return self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Switch training mode; a trace is of a model in evaluation mode."""
        self.parts.model.train(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move model and dictionaries, or change their dtype; the arguments of `torch.nn.Module.to`."""
        model: nn.Module = self.parts.model
        try:
            self.transcoders.to(*args, **kwargs)
            if self.attention is not None:
                self.attention.to(*args, **kwargs)
            model.to(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise InputError(f"to({', '.join(map(shortened, args))}) cannot be done: {first_line(error)}") from error
        self.parts = bind(model, self.cfg.model_name)
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the model, then of its dictionaries."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the model under its own names, then of the transcoders under `transcoders.`, and of attention under
        `attention.`
        """
        model: nn.Module = self.parts.model
        yield from model.named_parameters(prefix, recurse)
        yield from self.transcoders.named_parameters(f"{prefix}.transcoders".lstrip("."), recurse)
        if self.attention is not None:
            yield from self.attention.named_parameters(f"{prefix}.attention".lstrip("."), recurse)

    @torch.no_grad()
    def __call__(self, input: Prompt, return_type: str | None = "logits", **kwargs: Any) -> Tensor:
        """Logits (B, P, V) of text, which gets its special token, or of ids (P,) or (B, P), which are taken as they are."""
        if return_type not in ("logits", None) or kwargs:
            raise InputError(
                f"calling the model gives logits; return_type {return_type!r} and {sorted(kwargs)} are arguments of "
                "transformers' or TransformerLens' models: call model.hf_model for what the former gives"
            )
        ids = input if isinstance(input, Tensor) else self.ensure_tokenized(input)
        for sequence in (rows := torch.atleast_2d(ids)):
            check_length(self.parts, sequence)
        final = ModelRun(self.parts)(rows).final
        logits = logits_at(self.parts, final.flatten(0, 1))
        return logits.view(*final.shape[:2], -1)

    forward = __call__

    @property
    def config(self) -> Any:
        """transformers' configuration of the model."""
        return self.parts.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        dtype: torch.dtype = next(self.parts.model.parameters()).dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the model's weights live."""
        return self.parts.device

    # A HookedTransformer

    @property
    def cfg(self) -> PlacedConfig:
        """Sizes and names, and where the model is."""
        parts = self.parts
        return PlacedConfig(**parts.config.to_dict(), device=parts.device, n_ctx=parts.context_length)

    @property
    def model_config(self) -> PlacedConfig:
        """Another name of `cfg`."""
        return self.cfg

    @property
    def zero_positions(self) -> slice:
        """Positions without features: the first; of Gemma 3 with a chat template, its prefix (`left_out` asks the prompt)."""
        talks = self.parts.architecture.model_type == "gemma3_text" and getattr(self.tokenizer, "chat_template", None)
        return slice(0, len(gemma3_chat_prefix(self.tokenizer)) or 1 if talks else 1)

    def to_tokens(self, input: Prompt, prepend_bos: bool = True) -> Tensor:
        """Ids (1, P) of a text, with its special token unless told otherwise."""
        if not prepend_bos and isinstance(input, str):
            return tokenize(input, self.tokenizer, prepend_bos=False)[None].to(self.device)
        return self.ensure_tokenized(input)[None].to(self.device)

    def to_string(self, tokens: Any) -> str:
        """The text of ids (P,) or (1, P)."""
        try:
            return str(self.tokenizer.decode(torch.as_tensor(tokens).flatten().tolist()))
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{shortened(tokens)} are no token ids: {first_line(error)}") from error

    def to_str_tokens(self, input: Prompt, prepend_bos: bool = True) -> list[str]:
        """One text a token."""
        return token_strings(self.to_tokens(input, prepend_bos)[0], self.tokenizer)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token."""
        return single_token(string, self.tokenizer)

    @property
    def W_E(self) -> Tensor:
        """(V, D): what each token's vector is as it enters the first layer, without positions; made at each call."""
        parts = self.parts
        if parts.architecture.position_embedding is not None:  # these architectures do not scale what they look up
            weight: Tensor = parts.model.get_input_embeddings().weight
            return weight.detach()
        place = ("hook_resid_pre", 0)
        ids = torch.arange(parts.config.d_vocab).split(parts.context_length or 4096)
        return torch.cat([read(parts, some, [place], norms=None, own_attention=False)[place][0] for some in ids])

    @property
    def embed(self) -> Embed:
        """The embedding, for `embed.W_E`."""
        return Embed(self.W_E)

    @property
    def unembed(self) -> Unembed:
        """The unembedding, for `unembed.W_U` and `unembed.b_U`."""
        weight, bias = self.unembed_weight, getattr(self.parts.unembed, "bias", None)
        return Unembed(weight.T, weight.new_zeros(len(weight)) if bias is None else bias.detach())

    @property
    def W_U(self) -> Tensor:
        """(D, V)"""
        return self.unembed_weight.T

    @property
    def unembed_proj(self) -> Tensor:
        """(D, V), another name of `W_U`."""
        return self.W_U

    @property
    def unembed_weight(self) -> Tensor:
        """(V, D): the rows that read out each token's logit."""
        return self.parts.unembed.weight.detach()

    def setup_attribution(self, inputs: Prompt) -> AttributionContext:
        """The parts of a prompt's frozen network, and rows of it for vectors of your own."""
        return AttributionContext.of(self, inputs)

    def generate(self, input: Prompt, max_new_tokens: int = 10, **generate_kwargs: Any) -> str | Tensor:
        """The model's own continuation: text for text and ids (1, P + G) for ids, unless return_type is "str" or "tokens".

        generate_kwargs: those of `feature_intervention_generate`.
        """
        from circuit_tracer.interventions.steering.generate import generate_held

        wanted = generate_kwargs.pop("return_type", "input")
        if wanted not in ("input", "str", "tokens"):
            raise InputError(f"return_type is {wanted!r}; use 'input', 'str' or 'tokens'")
        generate_kwargs["max_new_tokens"] = max_new_tokens
        ids, _, _ = generate_held(self, input, [], return_activations=False, **generate_kwargs)
        if wanted == "tokens" or (wanted == "input" and not isinstance(input, str)):
            return ids[None].to(self.device)
        if self.tokenizer is None:
            raise InputError(
                "this model has no tokenizer, so it cannot turn what it generates into text; ask for tokens"
            )
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
