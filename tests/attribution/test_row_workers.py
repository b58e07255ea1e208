"""Rows computed by several workers: to the bit those of one, and all that can happen on the way ends as it does with one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from circuit_tracer import attribute_together, workers
from circuit_tracer.attribution import decoder_rows, plan, sweep, trace
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.plan import MemoryPlan, plan_memory
from circuit_tracer.attribution.sweep import Sweep
from circuit_tracer.errors import NumericalError, ResourceError
from circuit_tracer.graph.graph import Graph
from circuit_tracer.kernels.attend_back import recomputed
from circuit_tracer.kernels.contract import addressed
from tests.support.tracing_cases import IDS, Case, assert_equal, build

CASE = Case("gemma3", "clt", True, "mlp.hook_in")
OPTIONS: dict[str, Any] = {"max_n_logits": 3, "batch_size": 3}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker ")]
    torch.set_num_threads(before)


def same_bits(found: Graph, expected: Graph) -> bool:
    pairs = [(getattr(found.edges, name), getattr(expected.edges, name)) for name in ("weight", "source", "row_ptr")]
    return all(torch.equal(*pair) for pair in [*pairs, (found.selected_features, expected.selected_features)])


@pytest.mark.few
@pytest.mark.parametrize("shared", [False, True], ids=["blocks alone", "sources shared"])
@pytest.mark.parametrize("options", [{}, {"max_feature_nodes": 40}, {"keep_edge_mass": 0.8}], ids=str)
def test_the_number_of_workers_changes_no_bit(
    options: dict[str, Any], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, offered = build(CASE, torch.float32), []
    if shared:
        offer = sweep.share
        monkeypatch.setattr(decoder_rows, "SOURCES_A_ROW", 1000)  # a row kept for each source
        monkeypatch.setattr(sweep, "WORTH_SHARING", 0)
        monkeypatch.setattr(sweep, "BYTES_WAITING", 1000)
        monkeypatch.setattr(sweep, "share", lambda work, parts: offered.append(1) or offer(work, parts))
        monkeypatch.setattr(
            sweep, "others_are_idle", lambda: threading.current_thread().name.startswith("worker ")
        )  # whoever asks first
    graphs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        graphs.append(attribute(IDS, model, **OPTIONS, **options))
    assert all(same_bits(graph, graphs[0]) for graph in graphs[1:])
    assert bool(offered) is shared


def test_help_within_the_blocks_of_a_long_prompt_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, offered, share = build(CASE, torch.float32), [], workers.share
    monkeypatch.setattr(plan, "LONG", 2)  # patterns are made anew, rows thinned
    monkeypatch.setattr(decoder_rows, "SOURCES_A_ROW", 0)  # rows are kept once each
    monkeypatch.setattr(recomputed, "KEYS_A_TILE", 3)
    monkeypatch.setattr(addressed, "GATHERED_BYTES", 1000)
    monkeypatch.setattr(addressed, "GATHERS_A_PART", 1)
    monkeypatch.setattr(workers, "share", lambda work, parts: offered.append(work.__name__) or share(work, parts))
    graphs = []
    for count in (1, 2):
        torch.set_num_threads(count)
        graphs.append(attribute(IDS, model, max_n_logits=3, batch_size=40, max_feature_nodes=40))
    assert same_bits(*graphs)
    assert set(offered) == {"onto_heads", "mix", "back", "read"}


def test_prompts_together_are_the_same_with_more_workers() -> None:
    model, prompts = build(CASE, torch.float32), [IDS, IDS[:-1], IDS.flip(0)]
    graphs = []
    for count in (1, 3):
        torch.set_num_threads(count)
        graphs.append(attribute_together(prompts, model, max_feature_nodes=30, **OPTIONS))
    for found, expected in zip(*graphs, strict=True):
        assert isinstance(found, Graph)
        assert isinstance(expected, Graph)
        assert same_bits(found, expected)


def interrupting(rows: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "features" and done >= rows:
            raise KeyboardInterrupt

    return progress


@pytest.mark.filterwarnings("ignore:interrupted")
def test_an_interrupted_trace_of_several_workers_goes_on_to_the_same_bits() -> None:
    model, left = build(CASE, torch.float32), None
    torch.set_num_threads(3)
    whole = attribute(IDS, model, **OPTIONS)
    for rows in (1, 9, 31):
        left = attribute(IDS, model, progress=interrupting(rows), resume=left, **OPTIONS)
        assert left.provenance["interrupted"] is True
        assert len(left.selected_features) >= rows
    assert same_bits(attribute(IDS, model, resume=left, **OPTIONS), whole)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")], ids=["host", "torch"])
def test_after_a_failed_allocation_one_worker_goes_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model, block, failed = build(CASE), Sweep.block, []
    expected = attribute(IDS, model, **OPTIONS)

    def failing(*given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not failed:
            failed.append(1)
            raise error
        return block(*given)

    monkeypatch.setattr(Sweep, "block", failing)
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="an allocation failed; going on with 3 rows in flight"):
        found = attribute(IDS, model, **OPTIONS)
    assert_equal(found.adjacency_matrix, expected.adjacency_matrix, 1e-12)


def test_other_errors_of_workers_are_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise NumericalError("a worker's")

    monkeypatch.setattr(Sweep, "block", failing)
    torch.set_num_threads(2)
    with pytest.raises(NumericalError, match="a worker's"):
        attribute(IDS, build(CASE), **OPTIONS)


def test_short_memory_takes_workers_before_it_takes_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[MemoryPlan] = []
    monkeypatch.setattr(trace, "plan_memory", lambda *given: made.append(plan_memory(*given)) or made[-1])
    monkeypatch.setattr(trace, "held_bytes", lambda _: 0)
    torch.set_num_threads(4)
    attribute(IDS, build(CASE), batch_size=8)
    plan = made[0]
    assert (plan.workers, plan.block_rows) == (4, 8)
    assert "8 rows in flight in each of 4 workers" in str(plan)
    seen, memory = [], plan.peak
    while memory > plan.peak // 2:
        memory = memory * 99 // 100
        try:
            less = plan_memory(plan.work, 0, memory, 8, keep_patterns=plan.keep_patterns, workers=4)
        except ResourceError:
            break
        seen.append((less.keep_decoder_rows, less.block_rows, less.workers))
    assert any(workers < 4 for _, _, workers in seen)
    assert all(workers == 1 or rows == 8 for _, rows, workers in seen)
