"""A language model together with the transcoders that replace its MLPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from circuit_tracer.attribution.prompt import check_pair
from circuit_tracer.errors import InputError
from circuit_tracer.models import attention, tokenization
from circuit_tracer.models.config import ModelConfig
from circuit_tracer.models.frozen import check_hooks
from circuit_tracer.models.loading import load_language_model, resolve_device, resolve_dtype
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.verify import verify
from circuit_tracer.transcoders.base import Transcoders

Backend = Literal["transformerlens", "nnsight"]


class ReplacementModel:
    """Model, tokenizer and transcoders, checked to belong together. Build one with a `from_...` method.

    The signatures are circuit-tracer's. `backend` is accepted and has no effect: there is one way of reading a model here,
    transformers with our own hooks.
    """

    def __init__(
        self, parts: ModelParts, transcoders: Transcoders, tokenizer: Any, backend: str = "transformerlens"
    ) -> None:
        check_pair(parts, transcoders)
        check_hooks(parts, transcoders.feature_input_hook, transcoders.feature_output_hook)
        self.parts, self.transcoders, self.tokenizer, self.backend = parts, transcoders, tokenizer, backend

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
        from circuit_tracer.transcoders.loading import load_transcoder_from_hub

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
        """Wrap a transformers causal LM that is loaded already; its attention is routed through this package.

        Raises UnsupportedModelError if its architecture is unknown or does not behave as the table says.
        """
        if backend not in ("transformerlens", "nnsight"):
            raise InputError(
                f"backend {backend!r} is unknown; use 'transformerlens' or 'nnsight' (they are the same here)"
            )
        parts = bind(model, model_name)
        check_pair(parts, transcoders)
        attention.install(model)
        verify(parts)
        return cls(parts, transcoders, tokenizer, backend)

    def ensure_tokenized(self, prompt: tokenization.Prompt) -> Tensor:
        """Token ids (P,) int64, by the one rule used everywhere (models/tokenization.py)."""
        return tokenization.tokenize(prompt, self.tokenizer)

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
