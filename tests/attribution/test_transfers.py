"""Copies that nobody waits for: what is asked of CUDA, and in which order. (The GPU is a list of what was asked.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from circuit_tracer.attribution import transfers
from circuit_tracer.attribution.transfers import Arriving, beside, one_ahead

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ITEMS = ("a", "b", "c", "d")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams and events are asked for."""
    said: list[str] = []

    class Event:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            said.append(f"host waits for {self.number}")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.events = name, 0

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

        def record_event(self) -> Event:
            self.events += 1
            said.append(f"{self.name} notes {self.events}")
            return Event(self.events)

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    theirs = Stream("theirs")
    transfers._own_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: theirs)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return said


class Lying:
    """A tensor on the GPU."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def record_stream(self, stream: Any) -> None:
        self.said.append(f"{stream.name} has {self.name}")


def made(said: list[str]) -> Iterator[str]:
    for item in ITEMS:
        said.append(f"make {item}")
        yield item


def test_an_item_is_made_while_the_one_before_is_used(asked: list[str]) -> None:
    for item in beside(made(asked), CUDA, lambda item: [Lying(item, asked)]):
        asked.append(f"use {item}")
    transfers._own_stream.cache_clear()
    place = {what: number for number, what in enumerate(asked)}
    for item in ITEMS:
        inside = asked[: place[f"make {item}"]]
        assert inside.count("on own") == inside.count("off own") + 1  # made on the stream of its own
        assert asked[place[f"make {item}"] + 1 : place[f"use {item}"]] == [
            "off own",
            "theirs waits for own",
            f"theirs has {item}",
        ]
    # the third is made when what was done with the first is done, not with the second
    assert asked[place["use b"] + 1 : place["make c"]] == ["theirs notes 2", "host waits for 1", "on own"]
    assert asked[place["use a"] + 1 : place["make b"]] == ["theirs notes 1", "on own"]


def test_a_cpu_has_items_as_they_are_made(asked: list[str]) -> None:
    for item in beside(made(asked), CPU, lambda item: [Lying(item, asked)]):
        asked.append(f"use {item}")
    assert asked == [f"{what} {item}" for item in ITEMS for what in ("make", "use")]


def test_one_ahead_hands_out_all_and_makes_the_next_before() -> None:
    said: list[str] = []
    for item in one_ahead(made(said)):
        said.append(f"use {item}")
    assert [what for what in said if what.startswith("use")] == [f"use {item}" for item in ITEMS]
    assert said[:3] == ["make a", "make b", "use a"]
    assert list(one_ahead([])) == []


def test_what_is_on_the_host_has_arrived() -> None:
    given = [torch.arange(3), torch.ones(2, 2)]
    assert all(torch.equal(found, tensor) for found, tensor in zip(Arriving(*given).get(), given, strict=True))
