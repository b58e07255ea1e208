"""A language model together with the transcoders that replace its MLPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from circuit_tracer.attribution.prompt import check_pair
from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.models import tokenization
from circuit_tracer.models.chat import Message, chat_ids
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.loading import load_language_model, resolve_device, resolve_dtype
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.verify import verify
from circuit_tracer.transcoders.base import Transcoders
from circuit_tracer.transcoders.loading import load_transcoder_from_hub

if TYPE_CHECKING:
    from circuit_tracer.interventions import Freeze, Intervention

Backend = Literal["transformerlens", "nnsight"]


class ReplacementModel(Traceable):
    """Model, tokenizer and transcoders, checked to belong together. Build one with a `from_...` method.

    The signatures are circuit-tracer's. `backend` is accepted and has no effect: there is one way of reading a model here,
    transformers with our own hooks.
    """

    def __init__(
        self, parts: ModelParts, transcoders: Transcoders, tokenizer: Any, backend: str = "transformerlens"
    ) -> None:
        super().__init__(parts, transcoders, tokenizer)
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | Path,
        transcoder_set: str | Path,
        backend: Backend = "transformerlens",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        lazy_encoder: bool = False,
        lazy_decoder: bool = True,
        **kwargs: Any,
    ) -> ReplacementModel:
        """Load model and transcoders: Hugging Face ids, folders, or a GGUF file for the model.

        Lazy weights stay on disk; only rows of active features are read. Keyword arguments go to transformers.
        """
        target, kind = resolve_device(device), resolve_dtype(dtype)
        transcoders, _ = load_transcoder_from_hub(
            str(transcoder_set), device=target, dtype=kind, lazy_encoder=lazy_encoder, lazy_decoder=lazy_decoder
        )
        return cls.from_pretrained_and_transcoders(model_name, transcoders, backend, target, kind, **kwargs)

    @classmethod
    def from_pretrained_and_transcoders(
        cls,
        model_name: str | Path,
        transcoders: Transcoders,
        backend: Backend = "transformerlens",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = torch.float32,
        **kwargs: Any,
    ) -> ReplacementModel:
        """Load a model for transcoders that are there already."""
        model, tokenizer = load_language_model(model_name, resolve_device(device), resolve_dtype(dtype), **kwargs)
        return cls.from_model(model, transcoders, tokenizer, str(model_name), backend)

    @classmethod
    def from_config(
        cls,
        config: Any,
        transcoders: Transcoders,
        backend: Backend = "transformerlens",
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> ReplacementModel:
        """A randomly initialised model of a transformers configuration. Keyword arguments: device, dtype."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
        model = model.to(
            device=resolve_device(kwargs.pop("device", "cpu")), dtype=resolve_dtype(kwargs.pop("dtype", torch.float32))
        )
        if kwargs:
            raise InputError(f"unknown arguments {sorted(kwargs)}; from_config takes device, dtype and tokenizer")
        return cls.from_model(model.eval().requires_grad_(False), transcoders, tokenizer, config.model_type, backend)

    @classmethod
    def from_model(
        cls, model: Any, transcoders: Transcoders, tokenizer: Any, model_name: str, backend: Backend = "transformerlens"
    ) -> ReplacementModel:
        """Wrap a transformers causal LM that is loaded already; every run leaves it as it was found.

        Raises UnsupportedModelError if its architecture is unknown or does not behave as the table says.
        """
        if backend not in ("transformerlens", "nnsight"):
            raise InputError(
                f"backend {backend!r} is unknown; use 'transformerlens' or 'nnsight' (they are the same here)"
            )
        parts = bind(model, model_name)
        check_pair(parts, transcoders)
        verify(parts)
        return cls(parts, transcoders, tokenizer, backend)

    def chat_tokens(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **template_arguments: Any
    ) -> Tensor:
        """Token ids (P,) of a conversation, [{"role": ..., "content": ...}, ...], under the tokenizer's chat template.

        template_arguments: what the template knows, such as `enable_thinking=False`. Raises InputError when there is no
        template, or it refuses the conversation.
        """
        return chat_ids(messages, self.tokenizer, add_generation_prompt, self.prepend_bos, **template_arguments)

    def get_activations(
        self, inputs: tokenization.Prompt, sparse: bool = False, apply_activation_function: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(logits (1, P, V), feature activations (L, P, F), dense or sparse) of a prompt.

        Activations are zero at the positions that circuit-tracer leaves out (0; the chat prefix for Gemma 3 instruction-tuned
        models). Without the activation function they are pre-activations. Logits are in float32, float64 for such models.
        """
        from circuit_tracer.interventions.features.intervene import get_activations

        return get_activations(self, inputs, sparse, apply_activation_function)

    def feature_intervention(
        self,
        inputs: tokenization.Prompt,
        interventions: Sequence[Intervention],
        constrained_layers: Iterable[int] | None = None,
        freeze_attention: bool = True,
        apply_activation_function: bool = True,
        sparse: bool = False,
        return_activations: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Set features to values; (logits (1, P, V), activations (L, P, F) or None) of the changed pass.

        interventions: (layer, position, feature, value), value absolute; position may be a slice. By default effects go on
        through all later layers and their real MLPs, with attention patterns as on the clean prompt (`freeze_attention`).
        constrained_layers: MLP outputs of these layers stay as they were, apart from what the features that are set write
        to them directly; features write nowhere else. With all layers, norm scales are frozen too, and changes of
        pre-activations (`apply_activation_function=False`) and of logits before a softcap (`zero_softcap`) are the edges of
        the attribution graph, in units of the source's relative change. Raises InputError for what does not exist.
        """
        from circuit_tracer.interventions.features.intervene import feature_intervention

        return feature_intervention(
            self,
            inputs,
            interventions,
            constrained_layers,
            freeze_attention,
            apply_activation_function,
            sparse,
            return_activations,
        )

    def feature_intervention_generate(
        self,
        inputs: tokenization.Prompt,
        interventions: Sequence[Intervention],
        constrained_layers: Iterable[int] | None = None,
        freeze_attention: bool = True,
        apply_activation_function: bool = True,
        sparse: bool = False,
        return_activations: bool = True,
        **generate_kwargs: Any,
    ) -> tuple[str, Tensor, Tensor | None]:
        """Generate with features set: (prompt and continuation, logits (G, V), activations (L, P + G - 1, F) or None).

        The first pass is that of `feature_intervention`. From then on, nothing is frozen, and interventions whose position
        is an open slice (`slice(p, None)`) hold for each new token. generate_kwargs: max_new_tokens (10), do_sample (True),
        temperature, top_k, top_p, freq_penalty, stop_at_eos, eos_token_id.
        """
        from circuit_tracer.interventions.steering.generate import feature_intervention_generate

        return feature_intervention_generate(
            self,
            inputs,
            interventions,
            constrained_layers,
            freeze_attention,
            apply_activation_function,
            sparse,
            return_activations,
            **generate_kwargs,
        )

    def setup_intervention_with_freeze(
        self, inputs: tokenization.Prompt, constrained_layers: Iterable[int] | None = None
    ) -> tuple[Tensor, Freeze]:
        """(activations (L, P, F) of the clean prompt, what to hold still).

        In `with freeze.applied(): ...`, passes of `hf_model` over the same tokens have the clean attention patterns, and in the
        constrained layers the clean MLP outputs.
        """
        from circuit_tracer.interventions.features.intervene import setup_intervention_with_freeze

        return setup_intervention_with_freeze(self, inputs, constrained_layers)

    def zero_softcap(self) -> AbstractContextManager[None]:
        """Inside `with model.zero_softcap(): ...`, logits are those before the final softcap (Gemma 2)."""
        from circuit_tracer.interventions.features.intervene import zero_softcap

        return zero_softcap(self)

    @property
    def hf_model(self) -> Any:
        """The transformers model."""
        return self.parts.model

    @property
    def cfg(self) -> ModelConfig:
        """Sizes and names."""
        return self.parts.config

    @property
    def feature_input_hook(self) -> str:
        """Where the transcoders read."""
        return self.transcoders.feature_input_hook

    @property
    def feature_output_hook(self) -> str:
        """Where the transcoders write."""
        return self.transcoders.feature_output_hook

    @property
    def skip_transcoder(self) -> bool:
        """Whether the transcoders have a skip connection."""
        return self.transcoders.skip_connection

    @property
    def scan(self) -> str | list[str] | None:
        """Name of the transcoder set."""
        return self.transcoders.scan

    @property
    def device(self) -> torch.device:
        """Where the model's weights live."""
        return self.parts.device

    def __repr__(self) -> str:
        cfg = self.cfg
        kind = f"{self.transcoders.kind} of {self.transcoders.d_transcoder} features a layer"
        return f"ReplacementModel({cfg.model_name}, {cfg.n_layers} layers, {kind}, {self.device}, {cfg.dtype})"
