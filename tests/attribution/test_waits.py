"""A trace waits for its GPU no more often than is held here (counted without one: tests/support/waits.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from circuit_tracer.attribution.finished_block import FinishedBlock
from circuit_tracer.kernels.attend_back import projections
from circuit_tracer.models import frozen
from circuit_tracer.models.capture import capture
from circuit_tracer.models.frozen import FrozenNetwork
from tests.support.waiting_cases import CASES, count, embedded, small, trace
from tests.support.waits import DEVICE, Counted, counting, on_device

# What was counted when this was written. Fewer are welcome: lower the number then.
KINDS = ("reads", "uploads", "launches", "passing")
AT_MOST = {
    "trace": (37, 0, 2166, 130),
    "trace, several rounds": (47, 0, 2252, 76),
    "long trace": (51, 0, 2394, 76),
    "steered token": (2, 0, 293, 11),
    "generated token": (2, 1, 291, 8),
}
ALWAYS = ("trace", "steered token")


def require_at_most(name: str, counted: Counted) -> None:
    found = tuple(getattr(counted, kind).total() for kind in KINDS)
    more = [kind for kind, now, most in zip(KINDS, found, AT_MOST[name], strict=True) if now > most]
    assert not more, f"{name}: {found}, at most {AT_MOST[name]} ({', '.join(KINDS)})\n{counted.table(*more)}"


def test_every_case_is_held() -> None:
    assert AT_MOST.keys() == CASES.keys()


def test_a_short_trace_and_a_token() -> None:
    for name, counted in count(*ALWAYS).items():
        require_at_most(name, counted)


@pytest.mark.slow("traces of several rounds and of 560 tokens, each operation through Python")
@pytest.mark.filterwarnings("ignore:on this prompt the transcoders rebuild")
def test_the_other_cases() -> None:
    for name, counted in count(*(CASES.keys() - set(ALWAYS))).items():
        require_at_most(name, counted)


@pytest.mark.slow("two traces, one of them with each operation through Python")
def test_what_is_counted_gives_the_graph_of_a_cpu() -> None:
    model = embedded()
    here = trace(model)
    with counting():
        there = trace(on_device(model))
    assert torch.equal(here.selected_features, there.selected_features)
    assert torch.equal(here.edges.source, there.edges.source)
    torch.testing.assert_close(here.edges.weight, there.edges.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow("a trace with each operation through Python")
def test_one_more_read_a_block_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    of = FinishedBlock.of

    def curious(block: Any, *rest: Any) -> FinishedBlock:
        assert float(block.edges.sum()) == float(block.edges.sum())
        return of(block, *rest)

    monkeypatch.setattr(FinishedBlock, "of", curious)
    with pytest.raises(AssertionError, match=r"_local_scalar_dense +circuit_tracer/attribution/finished_rows\.py"):
        require_at_most("trace", count("trace")["trace"])


READ: dict[str, Callable[[torch.Tensor], Any]] = {
    "_local_scalar_dense": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "_unique2": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x.long()),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "index by a mask": lambda x: x[x > 1],
    "_to_copy": lambda x: x.tolist(),
    "copy_": lambda x: torch.empty(3).copy_(x),
}


@pytest.mark.parametrize("name", READ)
def test_a_read_is_counted(name: str) -> None:
    with counting() as counted:
        there = torch.tensor([0.0, 1.0, 2.0]).to(DEVICE)
        counted.clear()
        READ[name](there)
    assert [operation for operation, _ in counted.reads.elements()] == [name]


def test_copies_and_numbers() -> None:
    with counting() as counted:
        here = torch.tensor([0.0, 1.0, 2.0])
        there = here.to(DEVICE)
        there[:2].add_(here[1])  # a number goes with the launch
        there.to("cpu", non_blocking=True)
        made = there.new_tensor([1, 2]) + torch.tensor([3, 4], device=DEVICE)
        back = (made.tolist(), there.tolist())
        with pytest.raises(RuntimeError, match="expected all tensors to be on one device"):
            there + here
    assert back == ([4.0, 6.0], [1.0, 2.0, 2.0])
    assert (counted.reads.total(), counted.uploads.total(), counted.passing.total()) == (2, 3, 1)
    assert counted.launches.total() == 2


@pytest.mark.parametrize("keep", [False, True])
def test_weights_of_attention_are_made_ready_once(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not small are kept where the plan says so; they are digits then, and give what the CPU gives."""
    made, digits_of = [], projections.digits_of
    monkeypatch.setattr(projections, "digits_of", lambda weight: made.append(weight.shape) or digits_of(weight))
    monkeypatch.setattr(frozen, "KEPT_PROJECTIONS", 0)
    model = small()
    ids, hooks = torch.arange(5) + 3, (model.transcoders.feature_input_hook, model.transcoders.feature_output_hook)
    rows = torch.randn(2, 5, model.parts.config.d_model, generator=torch.Generator().manual_seed(0))
    expected, position = rows.clone(), torch.tensor([2, 4])
    here = FrozenNetwork(model.parts, capture(model.parts, ids), *hooks)
    here.layers[0].attend_back_(expected)
    at = here.layers[0].attend_back_at(rows[:, 0], position, 5)
    with counting():
        there = on_device(model).parts
        network = FrozenNetwork(there, capture(there, ids), *hooks)
        if keep:
            network.keep_projections()
        for _ in range(3):
            found = rows.to(DEVICE)
            network.layers[0].attend_back_(found)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        found = network.layers[0].attend_back_at(rows[:, 0].to(DEVICE), position.to(DEVICE), 5)
        torch.testing.assert_close(found.cpu(), at, rtol=1e-5, atol=1e-5)
        plain = network.layers[0].projections(torch.float32)
        torch.testing.assert_close(plain.value.cpu(), here.layers[0].projections(torch.float32).value)
        assert len(made) == 2 * (network.n_layers if keep else 6)
        assert network.release_projections() == keep
        assert not network.release_projections()
