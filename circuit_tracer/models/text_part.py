"""The language model within a model that also sees or hears: its own modules, as the causal LM that its text configuration
describes.
"""

from __future__ import annotations

from typing import Any

import torch

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.whose import Holder, held_by


def auto_class(config: Any) -> Any:
    """The transformers class that loads a model of this configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto as auto

    if type(config) not in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        if type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return AutoModelForImageTextToText
        if type(config) in auto.MODEL_FOR_MULTIMODAL_LM_MAPPING:
            return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def text_part(model: Any) -> Any:
    """A causal LM made of the language model in `model` and of its head, not copied; a causal LM is returned as it is.

    Raises UnsupportedModelError when the parts are not those of the causal LM that the text configuration names.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config: Any = model.config
    text: Any = _text_config(config)
    if text is None or config.model_type in ARCHITECTURES or text.model_type not in ARCHITECTURES:
        return model
    language, head = model.get_decoder(), model.get_output_embeddings()
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return _wrapped(model, language, head).train(model.training)
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    if type(language) is causal:
        return language.train(model.training)
    with torch.device("meta"):
        part: Any = causal._from_config(text)
    base = part.base_model_prefix
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


def _wrapped(model: Any, language: Any, head: Any) -> Any:
    """Language model and head, where the whole does nothing else with text; shown by logits of a few tokens."""
    from circuit_tracer.models.text_only import TextOnly

    row = ARCHITECTURES[language.config.model_type]
    part = TextOnly(language, head, row.logit_multiplier(language.config))
    if head.weight.is_meta:
        return part
    ids = torch.arange(1, 5, device=head.weight.device)[None] % len(head.weight)
    # grouped products of experts exist in float32 and below only
    with torch.no_grad(), held_by(Holder(model, {"_experts_implementation": "eager"})):
        whole, own = (each(input_ids=ids, use_cache=False).logits.float() for each in (model, part))
    if not (whole - own).abs().max() <= _SAME * whole.abs().max():
        raise UnsupportedModelError(
            f"{type(model).__name__} makes its logits of more than its language model ({type(language).__name__}) and its "
            "head, so that the two cannot be traced alone"
        )
    return part


_SAME = 1e-2  # relative to the largest logit: both make the same products, in the model's dtype


def _text_config(config: Any) -> Any:
    """The text configuration of a model that also sees or hears, or None."""
    text = getattr(config, "text_config", None)
    return text if hasattr(text, "model_type") else None
