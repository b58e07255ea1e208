"""A model's parts without its weights: what `info` needs to say what a model is and what fits it."""

from __future__ import annotations

from pathlib import Path

import torch

from circuit_tracer.models.adapted import base_of
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.sources import adapter_of, library_errors, pretrained_source, read_configuration
from circuit_tracer.models.text_part import auto_class, text_part


def outline(model_name: str | Path, revision: str | None = None) -> ModelParts:
    """Parts of a model on the meta device: names and shapes, no numbers; only its configuration is read.

    revision: a branch, tag or commit on the hub; None for the newest, or the one that `org/name@revision` names.

    Raises InputError when there is no such model, FileFormatError for a configuration that cannot be read, and
    UnsupportedModelError for an architecture outside the table.
    """
    source = pretrained_source(model_name, revision)
    with library_errors(model_name):
        if (adapter := adapter_of(source, {})) is not None:
            return outline(base_of(source, adapter))
        config = read_configuration(source, {})
        with torch.device("meta"):
            model = text_part(auto_class(config).from_config(config, trust_remote_code=False))
    return bind(model, str(model_name))
