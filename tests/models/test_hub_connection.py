"""A hub that does not answer costs one short try, and the message says so."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

from circuit_tracer import hub_connection
from circuit_tracer.errors import InputError
from circuit_tracer.models.outline import outline
from circuit_tracer.text.hub import HubDataset
from circuit_tracer.transcoders.hub import download_file
from circuit_tracer.transcoders.references import HubReference

TRIES_OF_THE_CLIENT = 20.0  # seconds of waiting between its tries of one file, at least


@contextmanager
def listening() -> Iterator[int]:
    """A port of this machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with listening() as port:
        return port


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(hub_connection, "_known", hub_connection._Known())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unreachable")
def test_a_hub_that_cannot_be_reached_is_said_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"some/model.*not been downloaded.*cannot be reached \(http://127") as caught:
        outline("some/model")
    assert "a folder with config.json" in str(caught.value)
    with pytest.raises(InputError, match=r"cannot be reached .*not in its cache"):
        download_file(HubReference("some/transcoders", None, None), "config.yaml")
    assert time.monotonic() - begun < TRIES_OF_THE_CLIENT / 2


@pytest.mark.usefixtures("unreachable")
def test_a_data_set_of_the_hub_says_what_to_do_instead() -> None:
    with pytest.raises(InputError, match=r"some/data.*cannot be reached.*data\.kind jsonl, text, parquet or tokens"):
        HubDataset("some/data", None, "train", "text")


@pytest.mark.usefixtures("unreachable")
def test_a_hub_that_answers_again_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub_connection.ask_hub()
    assert constants.HF_HUB_OFFLINE
    with listening() as port:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert not hub_connection.ask_hub(), "what was found is believed for a while"
        hub_connection._known.asked_at = -hub_connection.BELIEVED
        assert hub_connection.ask_hub()
    assert not constants.HF_HUB_OFFLINE
    assert hub_connection.why_offline() is None


def test_who_wants_no_connection_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_connection, "_known", hub_connection._Known())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("asked"))
    assert hub_connection.ask_hub()
    assert constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE is set" in str(hub_connection.why_offline())


def test_a_proxy_is_asked_in_the_hubs_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub_connection._address("https://huggingface.co") == ("proxy.example", 3128)
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert hub_connection._address("https://huggingface.co") == ("huggingface.co", 443)
