"""All language models of transformers: each is in the table, or refused by name with what the table has no word for."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto as auto

from circuit_tracer.errors import CircuitTracerError
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.likeness import likenesses
from circuit_tracer.models.refused import REFUSED
from tests.support.tiny import SIZES

EXAMPLE = {"cosmos3_edge"}  # CONTRIBUTING.md adds the row of its text part
OFTEN = {"granite4_vision": "granite"}  # its configuration names no language model by itself
SHORT = {"minimax_m3_vl_text"}  # all keys of so few tokens are in one block, which its indexer chooses
CAUSAL = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
SHELLS = {**auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
TYPES = sorted({*CAUSAL, *SHELLS} - EXAMPLE)


def known(model_type: str) -> list[str]:
    """The names by which a model is read, or refused: its own, or its language model's."""
    names = [model_type, OFTEN.get(model_type, ""), transformers.CONFIG_MAPPING[model_type].model_type]
    with contextlib.suppress(Exception):  # not every configuration can be made of nothing
        text = transformers.CONFIG_MAPPING[model_type]().get_text_config()
        names += [text.model_type]
    with contextlib.suppress(AttributeError, KeyError):
        names += [transformers.CONFIG_MAPPING[model_type].sub_configs["text_config"].model_type]
    return [name for name in names if name in ARCHITECTURES or name in REFUSED]


@pytest.mark.slow("configurations of all models of transformers")
@pytest.mark.parametrize("model_type", TYPES)
def test_every_model_of_transformers_is_read_or_refused_by_name(model_type: str) -> None:
    assert known(model_type)


@pytest.mark.slow("configurations of all models of transformers")
def test_what_is_refused_is_there() -> None:
    assert set(REFUSED) <= set(TYPES) | {"inkling"}


def built(model_type: str) -> Any:
    """A tiny one, of what its configuration takes of the common sizes."""
    sizes, kind = {**SIZES, "head_dim": 4}, transformers.CONFIG_MAPPING[model_type]
    for _ in range(len(sizes)):
        try:
            config = kind(**sizes)
        except Exception as error:
            named = [name for name in sizes if name in str(error)]
            if not named:
                raise
            for name in named:
                del sizes[name]
        else:
            with torch.device("meta"):
                shapes = transformers.AutoModelForCausalLM.from_config(config)
            if sum(parameter.numel() for parameter in shapes.parameters()) > 10**6:
                raise ValueError("large by default")
            return transformers.AutoModelForCausalLM.from_config(config)
    raise ValueError(model_type)


@pytest.mark.slow("builds all refused models that can be built small, and tries rows on each")
@pytest.mark.parametrize("model_type", sorted(name for name in REFUSED if name in CAUSAL and name not in SHORT))
def test_no_row_describes_a_model_that_is_refused(model_type: str) -> None:
    try:
        model = built(model_type).double().eval().requires_grad_(False)
    except Exception as error:
        pytest.skip(f"cannot be built from the common sizes: {str(error)[:80]}")
    for parameter in model.parameters():  # what is one or zero at first, and does nothing
        parameter.uniform_(-0.5, 0.5)
    with contextlib.suppress(CircuitTracerError):
        assert not [each for each in likenesses(model) if each.error == 0]
