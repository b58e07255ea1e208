"""A model's parts without its weights: what `info` needs to say what a model is and what fits it."""

from __future__ import annotations

from pathlib import Path

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.models.loading import first_line, pretrained_source
from circuit_tracer.models.parts import ModelParts, bind


def outline(model_name: str | Path, revision: str | None = None) -> ModelParts:
    """Parts of a model on the meta device: names and shapes, no numbers; only its configuration is read.

    revision: a branch, tag or commit on the hub; None for the newest.

    Raises InputError when there is no such model, UnsupportedModelError for an architecture outside the table.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source, extra = pretrained_source(model_name)
    try:
        config = AutoConfig.from_pretrained(source, **extra, **({"revision": revision} if revision else {}))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"no language model at {str(model_name)!r}: {first_line(error)}") from error
    return bind(model, str(model_name))
