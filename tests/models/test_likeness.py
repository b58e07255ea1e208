"""A model whose architecture is not in the table: what the error says of it, and that what it says is true."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.loading import bind_loaded
from circuit_tracer.models.refused import REFUSED
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import SIZES, tiny_model, tiny_transcoder

IDS = torch.tensor([3, 17, 5, 17, 40, 8])


class ElsewhereConfig(transformers.LlamaConfig):
    """Of a model whose class is not transformers' own."""

    model_type = "elsewhere"


class ElsewhereForCausalLM(transformers.LlamaForCausalLM):
    """A Llama by another name."""

    config_class = ElsewhereConfig


def said_of(model: object) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        bind_loaded(model, None, "x")
    return str(caught.value)


def elsewhere() -> ElsewhereForCausalLM:
    sizes = {**SIZES, "num_key_value_heads": 2}
    model = ElsewhereForCausalLM(ElsewhereConfig(**sizes)).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.5, 0.5)
    return model


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """What a test registers, or takes away, is undone."""
    rows = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(rows)


def without(*names: str) -> None:
    for name in names:
        del ARCHITECTURES[name]


@pytest.mark.parametrize(("name", "like"), [("kolibri1", "glm4"), ("granite", "granite_docling_text")])
def test_the_line_for_a_model_that_a_row_describes_is_said_and_is_enough(name: str, like: str) -> None:
    model = tiny_model(name)
    without(name)
    said = said_of(model)
    assert f"agrees with the row of {like!r}" in said
    exec(said.partition("run this first: ")[2])
    graph = attribute(IDS, ReplacementModel.from_model(model, tiny_transcoder(n_features=10), None, name))
    assert graph.residual is not None
    assert graph.residual <= 1e-10


def test_a_model_with_classes_of_its_own_is_told_where_they_are() -> None:
    said = said_of(elsewhere())
    assert "agrees with the row of 'llama'" in said
    assert f"package={__name__.partition('.')[0]!r}" in said
    exec(said.partition("run this first: ")[2])
    assert bind_loaded(elsewhere(), None, "x").architecture.model_type == "elsewhere"


def test_how_near_rows_come_is_said() -> None:
    model = tiny_model("granite")
    without("granite", "granite_docling_text", "granite_swa", "hyperclovax")
    said = said_of(model)
    assert "No row describes it as it is. Nearest: " in said
    assert "as 'llama', logits of the captured pass differs by 7.0e+00" in said


def test_modules_that_are_missing_are_named() -> None:
    model = tiny_model("gptj")
    without("gptj")
    assert "as 'codegen', it has no attn.qkv_proj" in said_of(model)


def test_an_architecture_that_cannot_be_traced_says_what_it_has() -> None:
    config = transformers.MambaConfig(vocab_size=47, hidden_size=16, num_hidden_layers=1, state_size=4)
    said = said_of(transformers.MambaForCausalLM(config).eval())
    assert said == f"architecture 'mamba' (?) cannot be traced: {REFUSED['mamba']}."


def test_none_is_both_read_and_refused() -> None:
    assert not set(ARCHITECTURES) & set(REFUSED)
