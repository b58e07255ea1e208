"""Texts watched by the probes that the server was started with: who is asked, and how much at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from circuit_tracer.viewer.server.monitor_messages import MonitorRequest, Verdicts, Watched, WatchedProbe
from circuit_tracer.viewer.server.problems import Conflict, TooLarge
from circuit_tracer.viewer.server.routing import Served, router
from circuit_tracer.viewer.server.site import Site

if TYPE_CHECKING:
    from circuit_tracer.probes.incoming import Incoming
    from circuit_tracer.probes.monitor import Monitor

MOST_CHARACTERS = 100_000  # of all texts of a request
MOST_SECONDS = 30.0  # after which no further batch is begun
MONITOR = router("monitor")


@MONITOR.get("/api/monitor")
def watched(site: Served) -> Watched:
    """The probes that watch here, with their thresholds."""
    return Watched(
        probes=[
            WatchedProbe(name=probe.name, threshold=probe.threshold, pool=probe.pool, alarm=_alarm(probe.card))
            for probe in _monitor(site).probes
        ]
    )


@MONITOR.post("/api/monitor")
def monitor(site: Served, asked: MonitorRequest) -> Verdicts:
    """Where the probes fire in some texts: a verdict for each, in their order.

    The model reads them at once, so other requests for it are refused meanwhile. A text that is not reached in time has a
    problem, as one has that cannot be read.
    """
    found = _monitor(site)
    if (size := sum(map(len, asked.texts))) > MOST_CHARACTERS:
        raise TooLarge(f"these texts have {size:,} characters together; at most {MOST_CHARACTERS:,} are read at once")
    with site.jobs.alone("monitoring texts"):
        end = time.monotonic() + MOST_SECONDS
        labels: dict[Any, str] = dict((site.labels or {}).items())
        return Verdicts(verdicts=[each.to_json(labels) for each in found.watch(_in_time(asked.texts, end))])


def _in_time(texts: list[str], end: float) -> Iterator[Incoming]:
    from circuit_tracer.probes.incoming import Incoming

    for number, text in enumerate(texts, start=1):
        if time.monotonic() < end:
            yield Incoming.of(str(number), {"text": text}, where=f"text {number}")
        else:
            late = f"not read: the request took more than {MOST_SECONDS:g} s; send fewer texts at once"
            yield Incoming(str(number), problem=late)


def _monitor(site: Site) -> Monitor:
    if site.monitor is None:
        raise Conflict("this server watches for nothing; start it with --probe or --feature, and a model")
    return site.monitor


def _alarm(card: dict[str, Any]) -> dict[str, Any] | None:
    found = card.get("alarm")
    return found if isinstance(found, dict) else None
