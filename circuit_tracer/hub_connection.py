"""Whether the Hugging Face hub answers: asked briefly, before its client is, which tries each file again for half a minute."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 3.0  # seconds that an answer may take
BELIEVED = 60.0  # seconds after which it is asked again


@dataclass
class _Known:
    """asked_at: when, on the monotonic clock; unreachable: the client was told to use its cache alone, by us."""

    asked_at: float = -BELIEVED
    unreachable: bool = False


_known = _Known()


def ask_hub() -> bool:
    """Whether the hub answers. Where it does not, its client uses only what it has downloaded, as with HF_HUB_OFFLINE, until
    the hub answers again; where that is set, nothing is asked.
    """
    from huggingface_hub import constants

    if (constants.HF_HUB_OFFLINE and not _known.unreachable) or time.monotonic() - _known.asked_at < BELIEVED:
        return not _known.unreachable
    _known.unreachable = not _answers(*_address(constants.ENDPOINT))
    _known.asked_at = time.monotonic()
    constants.HF_HUB_OFFLINE = _known.unreachable
    return not _known.unreachable


def why_offline() -> str | None:
    """Why only what was downloaded can be used, in words; None if the hub may be asked."""
    from huggingface_hub import constants

    if _known.unreachable:
        return f"the Hugging Face hub cannot be reached ({constants.ENDPOINT})"
    return "the hub may not be asked (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else None


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port that the client connects to: the hub's, or a proxy's."""
    hub = urlsplit(endpoint)
    proxy = getproxies().get(hub.scheme)
    asked = hub if proxy is None or proxy_bypass(hub.hostname or "") else urlsplit(proxy)
    return asked.hostname or "", asked.port or (443 if asked.scheme == "https" else 80)


def _answers(host: str, port: int) -> bool:
    """Whether a connection is made in time; looking up the name may take longer than a connection's own limit."""
    made: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), PATIENCE).close()
            made.append(True)
        except OSError:
            return

    asking = threading.Thread(target=connect, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(made)
