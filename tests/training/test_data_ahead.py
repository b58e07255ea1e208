"""Batches made ahead by threads: bitwise those made without, at every position; errors, ends and interruptions as without."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import NumericalError
from circuit_tracer.models.parts import bind
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data import BatchStream, open_stream
from circuit_tracer.training.data.ahead import Ahead
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support import data_cases
from tests.support.data_cases import batches, config, same, stream, texts, write_jsonl
from tests.support.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data.jsonl", texts(10))
    return tmp_path


def threads() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == "ahead"}


def soon(condition: Any) -> bool:
    """Whether it holds within two seconds."""
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return bool(condition())


def threaded(settings: TrainingConfig) -> BatchStream:
    """A stream whose batches are made by a thread too, as on a GPU."""
    made = stream(settings)
    return BatchStream(settings, replace(made.source, ahead=True))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order_and_no_more_of_them_than_asked_for(depth: int) -> None:
    made: list[int] = []

    def make() -> int | None:
        if len(made) == 6:
            return None
        made.append(len(made))
        return made[-1]

    ahead = Ahead(make, depth, CPU)
    assert soon(lambda: len(made) == depth)
    time.sleep(0.01)
    assert len(made) == depth
    assert [ahead.next() for _ in range(6)] == list(range(6))
    assert ahead.next() is None
    assert ahead.next() is None
    ahead.close()


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("error", [ValueError("bad"), NumericalError("bad"), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_where_its_item_would_have_come(depth: int, error: BaseException) -> None:
    items = iter([1, 2])

    def make() -> int:
        if (item := next(items, None)) is None:
            raise error
        return item

    ahead = Ahead(make, depth, CPU)
    assert [ahead.next(), ahead.next()] == [1, 2]
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            ahead.next()
        assert caught.value is error


def test_a_thread_ends_when_it_is_closed_and_when_it_is_forgotten() -> None:
    before = threads()
    closed, forgotten = (Ahead(lambda: 1, 1, CPU) for _ in range(2))
    assert len(threads() - before) == 2
    closed.close()
    assert len(threads() - before) == 1
    del forgotten
    gc.collect()
    assert soon(lambda: not threads() - before)


def test_control_c_reaches_who_waits_for_an_item() -> None:
    going = threading.Event()
    ahead = Ahead(lambda: going.wait(20), 1, CPU)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ahead.next()
    going.set()
    ahead.close()


@pytest.mark.few
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__epochs": 2, "data__sequences_per_pass": 1},
        {"data__buffer_tokens": 200},
        {"data__cache": "cache", "data__buffer_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_threads_change_no_batch_and_no_position(changes: dict[str, Any], folder: Path) -> None:
    if "data__cache" in changes:
        changes = {**changes, "data__cache": folder / "cache"}
    settings = config(folder, **changes)
    expected, states = [], []
    inline = stream(settings)
    states.append(inline.state())
    for batch in batches(inline):
        expected.append(batch)
        states.append(inline.state())
    assert len(expected) > 5
    found = threaded(settings)
    for batch, state in zip(expected, states[1:], strict=True):
        assert same(found.next(), batch)  # type: ignore[arg-type]
        assert found.state() == state
    assert found.next() is None
    further = threaded(config(folder, **{**changes, "data__epochs": 2 * changes.get("data__epochs", 1)}))
    further.restore(json.loads(json.dumps(found.state())))
    assert len(list(batches(further))) == len(expected)
    for step in (1, 4):
        resumed = threaded(settings)
        resumed.restore(json.loads(json.dumps(states[step])))
        assert all(same(*pair) for pair in zip(batches(resumed), expected[step:], strict=True))
        resumed.restore(states[0])  # back again, in the midst of reading ahead
        assert same(resumed.next(), expected[0])  # type: ignore[arg-type]
        resumed.close()


def test_statistics_of_a_stream_that_a_thread_is_ahead_of(folder: Path) -> None:
    settings = config(folder)
    expected, found = list(batches(stream(settings))), threaded(settings)
    moments = found.statistics(200)
    for _ in range(2):
        found.next()
    torch.testing.assert_close(found.statistics(200).mean_x_SD, moments.mean_x_SD)
    assert all(same(*pair) for pair in zip(batches(found), expected[2:], strict=True))


def test_no_row_is_read_that_the_run_will_not_need(folder: Path) -> None:
    """A block at a time as without reading ahead: 48 rows for three batches, 96 for four."""
    write_jsonl(folder / "data.jsonl", texts(60))
    for steps, blocks in ((3, 1), (4, 2)):
        source = stream(config(folder, run__tokens=16 * steps, data__sequences_per_pass=1))
        for _ in range(steps):
            source.next()
        rows = source.source.rows
        assert rows._pass <= 1 + 48 * blocks // 10  # type: ignore[attr-defined]
        assert (rows._pass > 48 // 10 + 1) == (blocks == 2)  # type: ignore[attr-defined]


def test_the_models_work_is_spread_over_the_steps(folder: Path) -> None:
    """The next block's rows are read as this one's leave it, not all at its end."""
    write_jsonl(folder / "data.jsonl", texts(60))
    source = stream(config(folder, data__sequences_per_pass=1, data__buffer_tokens=160))
    passes = []
    for _ in range(20):
        source.next()
        passes.append(source.source.rows._pass)  # type: ignore[attr-defined]
    most = max(later - earlier for earlier, later in itertools.pairwise(passes))
    assert most <= 6  # of about 14 a block


def test_what_stops_the_model_stops_the_stream(folder: Path) -> None:
    parts = bind(tiny_model("gpt2", torch.float32), "gpt2")
    parts.layers[2].module.get_parameter("attn.c_proj.bias").data[0] = float("inf")
    settings = config(folder)
    made = open_stream(settings, parts, data_cases.tokenizer(), FeatureRanks())
    found = BatchStream(settings, replace(made.source, ahead=True))
    with pytest.raises(NumericalError, match="hook_resid_mid of layer 2"):
        found.next()


def test_streams_leave_no_thread_behind(folder: Path) -> None:
    gc.collect()
    closed, forgotten = threaded(config(folder)), threaded(config(folder))
    before = threads()  # of tests before, perhaps still ending
    for one in (closed, forgotten):
        one.next()
    assert len(threads() - before) == 4  # one for texts, one for batches
    closed.close()
    del closed, forgotten, one
    gc.collect()
    assert soon(lambda: not threads() - before)
