"""Connections that are not used are closed: requests that never become whole, and answers that nobody reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS, READING_SECONDS = 20.0, 60.0


class ImpatientProtocol(H11Protocol):
    """uvicorn's, which by itself waits for a request for ever.

    A request, headers and body, must be whole REQUEST_SECONDS after the connection was made or after its first byte; a
    reader that leaves the buffers full for READING_SECONDS is gone.
    """

    _waiting: asyncio.TimerHandle | None = None  # for a request to be whole
    _writing: asyncio.TimerHandle | None = None  # for room to write

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and not self.cycle.more_body:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which closes a connection that then stays idle
        self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(READING_SECONDS, self._give_up)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_writing()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None
