"""The language model within a model that also sees: its own modules, as the causal LM that its text configuration describes."""

from __future__ import annotations

from typing import Any

import torch

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architectures import ARCHITECTURES


def auto_class(config: Any) -> Any:
    """The transformers class that loads a model of this configuration."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if sees and _text_config(config) is not None else AutoModelForCausalLM


def text_part(model: Any) -> Any:
    """A causal LM made of the language model in `model` and of its head, not copied; a causal LM is returned as it is.

    Raises UnsupportedModelError when the parts are not those of the causal LM that the text configuration names.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config: Any = model.config
    text: Any = _text_config(config)
    if text is None or config.model_type in ARCHITECTURES or text.model_type not in ARCHITECTURES:
        return model
    with torch.device("meta"):
        causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
        part: Any = causal._from_config(text)
    language, head, base = model.get_decoder(), model.get_output_embeddings(), part.base_model_prefix
    own: Any = getattr(part, base, None)
    if type(own) is not type(language) or type(head) is not type(part.get_output_embeddings()):
        raise UnsupportedModelError(
            f"the language model in {type(model).__name__} is a {type(language).__name__}; a {type(own).__name__} is expected "
            f"of its text configuration ({text.model_type})"
        )
    setattr(part, base, language)
    part.set_output_embeddings(head)
    part.config = language.config
    return part.train(model.training)


def _text_config(config: Any) -> Any:
    """The text configuration of a model that also sees, or None."""
    text = getattr(config, "text_config", None)
    return text if hasattr(text, "model_type") else None
