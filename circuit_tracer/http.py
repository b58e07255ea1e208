"""Asking servers for JSON: with time limits, retries where they help, and errors that say what to do."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from typing import Any

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, ResourceError, shortened
from circuit_tracer.files import parse_json

TIMEOUT = 60.0  # seconds that a server may be silent
ATTEMPTS = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before another attempt; doubled each time
_BUSY = (408, 429, 500, 502, 503, 504)
LARGEST_ANSWER = 2**28  # bytes
_LARGEST_REFUSAL = 2**20
_SHOWN = 300  # characters of an answer in a message


@dataclass(eq=False)
class RefusedRequest(CircuitTracerError):
    """A server's answer that is an error. ``status`` is HTTP's; ``said`` the server's own words."""

    url: str
    status: int
    said: str

    def __str__(self) -> str:
        return f"{self.url} answered {self.status}: {self.said or 'nothing more'}"


def post_json(url: str, body: Any, headers: Mapping[str, str] | None = None, attempts: int = ATTEMPTS) -> Any:
    """POST a JSON body and return the JSON answer; see ``request``."""
    data = json.dumps(body, allow_nan=False).encode()
    return _parsed(url, request("POST", url, data, {"Content-Type": "application/json", **(headers or {})}, attempts))


def get_json(url: str, headers: Mapping[str, str] | None = None, attempts: int = ATTEMPTS) -> Any:
    """GET a JSON answer; see ``request``."""
    return _parsed(url, request("GET", url, None, headers, attempts))


def request(
    method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None = None, attempts: int = ATTEMPTS
) -> bytes:
    """The body of the answer. A server that is busy or cannot be reached is asked again, after what Retry-After says or a
    growing pause.

    Raises RefusedRequest for an answer that is an error, ResourceError when there is none, InputError for what is no address.
    """
    asked = urllib.request.Request(url, data, {"User-Agent": "circuit-tracing", **(headers or {})}, method=method)
    for attempt in range(1, attempts + 1):
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
                return _all_of(url, answer)
        except urllib.error.HTTPError as error:
            said = _said(error.read(_LARGEST_REFUSAL))
            if error.code not in _BUSY or attempt == attempts:
                raise RefusedRequest(url, error.code, said) from error
            after = error.headers.get("Retry-After", "")
            pause = min(LONGEST_PAUSE, float(after)) if after.isdecimal() else pause
        except (InvalidURL, UnicodeError) as error:
            raise InputError(
                f"{shortened(url)} is no address ({error}). Copy it from the browser's address bar, or escape its letters."
            ) from error
        except (OSError, HTTPException) as error:
            if attempt == attempts:
                reason = getattr(error, "reason", None) or error
                raise ResourceError(
                    f"{url} cannot be reached ({reason}). Check the address and the network."
                ) from error
        time.sleep(pause)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _all_of(url: str, answer: Any) -> bytes:
    data = bytes(answer.read(LARGEST_ANSWER + 1))
    if len(data) > LARGEST_ANSWER:
        raise ResourceError(f"{url} answered with more than {LARGEST_ANSWER:,} bytes. Check the address.")
    return data


def _parsed(url: str, answer: bytes) -> Any:
    try:
        return parse_json(answer, url)
    except FileFormatError as error:
        raise ResourceError(
            f"{url} did not answer with JSON but with {answer[:_SHOWN]!r}. Check the address."
        ) from error


def _said(answer: bytes) -> str:
    """The message in a JSON error of the usual forms, or the beginning of the answer."""
    text = answer.decode("utf-8", "replace")
    try:
        value = parse_json(text, "the answer")
    except FileFormatError:
        return text[:_SHOWN].strip()
    if isinstance(value, dict):
        error = value.get("error", value.get("message", value))
        error = error.get("message", error) if isinstance(error, dict) else error
        details = value.get("details")
        return f"{error}{f' ({details})' if details else ''}"[:_SHOWN]
    return text[:_SHOWN]
