"""The toys compute what they say, their own units give graphs of the known circuit, and trained dictionaries do not."""

from __future__ import annotations

import itertools

import pytest
import torch

from circuit_tracer import attribute
from circuit_tracer.demo.probes import predictions
from circuit_tracer.demo.toys import (
    absolute_values,
    boolean_circuit,
    exact,
    language_model,
    replacement_model,
    table,
    trained,
)
from circuit_tracer.demo.toys.absolute import REPEATED, SHARE
from circuit_tracer.demo.toys.claims import Flow, quality, response
from circuit_tracer.demo.toys.report import BOOLEAN_SIZE, absolute_claims, boolean_claims, claims_of


@pytest.mark.parametrize("depth", [2, 3])
def test_the_boolean_circuit_is_right_on_every_input(depth: int) -> None:
    toy = boolean_circuit(depth)
    level = [list(bits) for bits in itertools.product((0, 1), repeat=2**depth)]
    for number in range(depth):
        gate = (lambda a, b: a & b) if number % 2 else (lambda a, b: a ^ b)
        level = [[gate(*row[i : i + 2]) for i in range(0, len(row), 2)] for row in level]
    said = predictions(language_model(toy), toy.prompts_NP).argmax(1) == toy.words.index("true")
    assert said.tolist() == [bool(row[0]) for row in level]


def test_the_largest_absolute_difference_is_answered() -> None:
    toy = absolute_values()
    assert toy.weight_N.sum() == pytest.approx(1)
    assert toy.weight_N[0] == SHARE
    assert torch.equal(toy.prompts_NP[0], toy.ids(REPEATED))
    model = language_model(toy)
    for prompt, answer in (("x0=+1 x1=-1 x6=-2", "pair3"), ("x0=+2 x4=+1 x5=-1", "pair0"), (REPEATED, "pair1")):
        assert toy.words[int(predictions(model, toy.ids(prompt)[None]).argmax())] == answer


@pytest.mark.parametrize("depth", [2, 3])
def test_graphs_of_the_circuit_itself_are_as_deep_as_it_is(depth: int) -> None:
    toy = boolean_circuit(depth)
    transcoders = exact(toy)
    bits = [f"{letter}{value}" for letter, value in zip("abcdefgh", "10100000", strict=True)][: 2**depth]
    graph = attribute(" ".join([*bits, "="]), replacement_model(toy, transcoders))
    assert graph.targets.label[0] == "true"
    assert Flow.of(graph).depth == pytest.approx(depth, abs=1e-4)
    assert graph.residual is not None
    assert graph.residual < 1e-5
    assert quality(toy, transcoders)["NMSE"] < 1e-9


@pytest.mark.slow("takes 3.4 s")
def test_claims_of_the_circuits_themselves_are_true() -> None:
    toy = boolean_circuit()
    claims = boolean_claims(toy, exact(toy))
    assert claims["units found"] == 1
    assert claims["response to a unit switched off"] == pytest.approx(1, abs=1e-3)
    toy = absolute_values()
    claims = absolute_claims(toy, exact(toy))
    assert claims == pytest.approx(dict.fromkeys(claims, 1.0), abs=1e-3)


def test_taking_a_unit_away_changes_the_answer() -> None:
    toy = boolean_circuit()
    prompts_BP = toy.ids("a1 b0 c1 d0")[None]
    own, dictionary = response(toy, exact(toy), prompts_BP, 0, 0)
    assert own < -1
    assert dictionary == pytest.approx(own, rel=1e-3)


@pytest.mark.slow("two dictionaries trained: 5 s")
def test_a_cross_layer_transcoder_reconstructs_well_and_claims_a_shorter_way() -> None:
    """Loose: seeds and machines differ. The direction is the published one."""
    toy = boolean_circuit()
    claims = claims_of(toy, BOOLEAN_SIZE, 500, (0,), boolean_claims)
    assert claims["known circuit"]["depth"] == pytest.approx(2, abs=1e-3)
    for found in (claims["per-layer"], claims["cross-layer"]):
        assert found["NMSE"] < 0.2
    assert claims["cross-layer"]["depth"] < claims["per-layer"]["depth"] - 0.1
    assert len(table(claims)) == 1 + len(claims["per-layer"])


@pytest.mark.slow("takes 3 s")
def test_trained_dictionaries_are_of_the_kind_asked_for() -> None:
    toy = boolean_circuit()
    for kind, name in (("plt", "transcoder_set"), ("clt", "cross_layer_transcoder")):
        found = trained(toy, kind, 6, 0.7, steps=100)  # type: ignore[arg-type]
        assert found.kind == name
        assert found.n_layers == 2
