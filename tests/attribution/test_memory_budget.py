"""A budget changes how a trace is done, never what comes out; a failed allocation costs time, not rows."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_invariance import CASES, assert_same
from torch import Tensor

from circuit_tracer.attribution import expansion, memory, plan, trace
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.decoder_rows import DecoderRows
from circuit_tracer.attribution.memory import free_bytes, is_out_of_memory
from circuit_tracer.attribution.plan import MemoryPlan
from circuit_tracer.attribution.read_out import ReadOut
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.attribution.sweep import EdgeBlock, Sweep
from circuit_tracer.attribution.trace_sizes import TraceSizes
from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.sizes import parse_bytes
from tests.support.tracing_cases import IDS, Case, assert_same_graph, build

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[MemoryPlan]:
    """Every plan made; the process holds nothing before a trace, so that budgets are about the trace alone."""
    made: list[MemoryPlan] = []
    keep = trace.plan_memory
    monkeypatch.setattr(trace, "held_bytes", lambda device: 0)
    monkeypatch.setattr(trace, "plan_memory", lambda *sizes: made.append(keep(*sizes)) or made[-1])
    return made


@pytest.mark.few
@pytest.mark.parametrize(("case", "budget"), list(itertools.product(CASES, (None, 13, 40))), ids=str)
def test_half_of_what_is_needed_gives_the_same_graph(case: Case, budget: int | None, plans: list[MemoryPlan]) -> None:
    model = build(case)
    expected = attribute(IDS, model, max_feature_nodes=budget)
    need = plans[0].peak
    assert_same(attribute(IDS, model, max_feature_nodes=budget, memory=need // 2), expected)
    assert plans[1].peak <= need // 2
    assert plans[1].block_rows < plans[0].block_rows or not plans[1].keep_decoder_rows


@pytest.mark.slow("takes 2 s")
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_budget_that_is_accepted_gives_the_reference_graph(data: st.DataObject, plans: list[MemoryPlan]) -> None:
    case = data.draw(st.sampled_from(CASES))
    model, plans[:] = build(case), []
    attribute(IDS, model, max_n_logits=3)
    memory = data.draw(st.integers(plans[0].peak // 8, 2 * plans[0].peak))
    try:
        found = attribute(IDS, model, max_n_logits=3, memory=memory)
    except ResourceError:
        assert memory < plans[0].peak
        return
    assert plans[-1].peak <= memory
    assert_same_graph(found, reference_graph(model, IDS, max_n_logits=3))


@each_case
def test_patterns_are_made_again_where_they_do_not_fit(
    case: Case, plans: list[MemoryPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(case)
    expected = attribute(IDS, model)
    monkeypatch.setattr(plan, "SHARE_FOR_PATTERNS", 0.0)
    assert_same(attribute(IDS, model), expected, 1e-9)
    assert [made.keep_patterns for made in plans] == [True, False]
    assert_same_graph(attribute(IDS, model), reference_graph(model, IDS))


def test_weights_of_attention_are_kept_on_a_gpu_where_they_are_small(plans: list[MemoryPlan]) -> None:
    attribute(IDS, build(CASES[0]))
    assert not plans[0].keep_projections  # a CPU multiplies by what the model has
    work = replace(plans[0].work, on_gpu=True)
    config, size = work.config, work.projections
    heads = config.n_heads + config.n_key_value_heads
    assert size == config.n_layers * config.d_model * heads * config.d_head * {4: 6, 8: 8}[work.item]
    most = int(size / plan.SHARE_FOR_PROJECTIONS)
    assert [plan.keeps_projections(work, 100, 100 + budget) for budget in (most - 1, most)] == [False, True]
    kept = plan.plan_memory(work, 0, 100 * plans[0].peak, 512)
    assert kept.phases["compute edges"]["weights of attention"] == size
    assert not kept.reading_again().keep_projections


@each_case
def test_too_little_memory_is_an_error_whose_advice_works(case: Case, plans: list[MemoryPlan]) -> None:
    model = build(case)
    attribute(IDS, model)
    work = plans[0].work
    memory = enough = plans[0].peak
    while fits(replace(work, n_rows=5), memory):  # as little as five features need
        enough, memory = memory, memory * 99 // 100
    assert not fits(work, enough)
    with pytest.raises(ResourceError, match=r"max_feature_nodes=\d+ fits") as caught:
        attribute(IDS, model, memory=enough)
    number = int(re.findall(r"max_feature_nodes=(\d+)", str(caught.value))[0])
    assert number >= 5
    assert len(attribute(IDS, model, memory=enough, max_feature_nodes=number).selected_features) == number
    given = re.findall("memory='(.*)'", str(caught.value))[0]
    assert len(attribute(IDS, model, memory=given).selected_features) == work.n_active
    with pytest.raises(ResourceError, match="give it more memory"):
        attribute(IDS, model, memory=100)


def fits(work: TraceSizes, memory: int) -> bool:
    try:
        return plan.plan_memory(work, 0, memory, 512).fits()
    except ResourceError:
        return False


def failing(times: int, error: BaseException) -> Any:
    """A `Sweep.block` of which every second call fails, as an allocation does, so many times."""
    whole, calls = Sweep.block, itertools.count(1)

    def block(sweep: Sweep, targets: ReadOut, rows: Tensor) -> EdgeBlock:
        number = next(calls)
        if number % 2 == 0 and number <= 2 * times:
            raise error
        return whole(sweep, targets, rows)

    return block


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.few
@pytest.mark.parametrize(
    ("case", "error"),
    list(itertools.product(CASES, ERRORS)),
    ids=lambda each: str(each) if isinstance(each, Case) else type(each).__name__,
)
def test_a_failed_allocation_halves_the_rows_and_loses_none(
    case: Case, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, added, tried = build(case), [], []
    expected = attribute(IDS, model, max_feature_nodes=30)
    monkeypatch.setattr(Sweep, "block", failing(3, error))
    add, split = expansion.FinishedRows.add, Sweep.split
    monkeypatch.setattr(
        expansion.FinishedRows, "add", lambda store, block: added.extend(block.row.tolist()) or add(store, block)
    )
    monkeypatch.setattr(
        Sweep, "split", lambda sweep, targets, rows, *more: tried.append(rows) or split(sweep, targets, rows, *more)
    )
    with pytest.warns(UserWarning, match=r"an allocation failed; going on with \d rows in flight"):
        found = attribute(IDS, model, max_feature_nodes=30, batch_size=8)
    assert_same(found, expected)
    assert len(set(added)) == len(added)
    assert tried[0] == 8
    assert min(tried) == 1


def test_when_nothing_is_left_to_give_up_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise MemoryError

    model = build(CASES[0])
    monkeypatch.setattr(Sweep, "_block", nothing)
    released = []
    release = DecoderRows.release
    monkeypatch.setattr(DecoderRows, "release", lambda rows: released.append(release(rows)) or released[-1])
    with pytest.raises(ResourceError, match="with one row in flight"), pytest.warns(UserWarning, match="going on with"):
        attribute(IDS, model, batch_size=4)
    assert released == [True, False]


@each_case
def test_decoder_rows_that_do_not_fit_after_all_are_read_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    expected = attribute(IDS, model)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(DecoderRows, "read_all", full)
    assert_same(attribute(IDS, model), expected)


@pytest.mark.parametrize(("keep", "modes"), [(True, [True]), (False, [False])])
def test_the_model_runs_once(keep: bool, modes: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[bool] = []
    encode = trace.encode_prompt

    def encode_prompt(*inputs: Any, keep_patterns: bool, **others: Any) -> Any:
        run.append(keep_patterns)
        return encode(*inputs, keep_patterns=keep_patterns, **others)

    monkeypatch.setattr(trace, "encode_prompt", encode_prompt)
    monkeypatch.setattr(plan, "LONG", 512 if keep else 2)
    attribute(IDS, build(CASES[0]), keep_edge_mass=1.0)
    assert run == modes


@each_case
def test_patterns_that_do_not_fit_after_all_are_made_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(case)
    expected = attribute(IDS, model)
    encode = trace.encode_prompt

    def encode_prompt(*inputs: Any, keep_patterns: bool, **others: Any) -> Any:
        if keep_patterns:
            raise MemoryError
        return encode(*inputs, keep_patterns=keep_patterns, **others)

    monkeypatch.setattr(trace, "encode_prompt", encode_prompt)
    assert_same(attribute(IDS, model), expected, 1e-9)


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {
        "16GB": 16 * 10**9,
        "1.5 gb": 15 * 10**8,
        "2GiB": 2**31,
        "800MB": 8 * 10**8,
        "4096": 4096,
        "1e9": 10**9,
        7: 7,
    }
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for wrong in (
        "",
        "GB",
        "-1GB",
        "16 bananas",
        0,
        -5,
        float("nan"),
        float("inf"),
        True,
        "0",
        "16,5GB",
        "16 GB of it",
    ):
        with pytest.raises(InputError, match="16GB"):
            parse_bytes(wrong)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))
    for said in (
        "[enforce fail] not enough memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling",
        "MPS backend out of memory",
    ):
        assert is_out_of_memory(RuntimeError(said))


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    other, own = memory._CGROUPS
    monkeypatch.setattr(memory, "_CGROUPS", (("/nothing", "/nothing", own[2]), (str(limit), str(used), other[2])))
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 15000000\ninactive_file 5000000\nfile_dirty 3\n")
    machine = free_bytes(torch.device("cpu"))
    used.write_text("40000000\n")
    for text, free in (("100000000\n", 80_000_000), ("15000000\n", 0)):
        limit.write_text(text)
        assert free_bytes(torch.device("cpu")) == free
    limit.write_text("max\n")
    assert free_bytes(torch.device("cpu")) == pytest.approx(machine, rel=0.2)
