"""Neuronpedia's HTTP interface, as far as labels and uploads need it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from circuit_tracer.errors import InputError
from circuit_tracer.http import RefusedRequest, get_json, post_json

HOST = "https://neuronpedia.org"
KEY_VARIABLE, HOST_VARIABLE = "NEURONPEDIA_API_KEY", "NEURONPEDIA_HOST"


@dataclass(frozen=True)
class Neuronpedia:
    """A Neuronpedia: the public one, or one of your own (http://localhost:3000)."""

    host: str = HOST
    key: str | None = None

    @classmethod
    def from_environment(cls, host: str | None = None) -> Neuronpedia:
        """The host given, else that in NEURONPEDIA_HOST, else the public one; with the key in NEURONPEDIA_API_KEY."""
        chosen = host or os.environ.get(HOST_VARIABLE) or HOST
        if not chosen.startswith(("http://", "https://")):
            raise InputError(f"Neuronpedia's host is {chosen!r}; expected an address such as {HOST}")
        return cls(chosen.rstrip("/"), os.environ.get(KEY_VARIABLE) or None)

    def require_key(self) -> str:
        """The key. Raises InputError when there is none."""
        if self.key is None:
            raise InputError(
                f"uploading needs an API key of Neuronpedia, and {KEY_VARIABLE} is not set: make one at "
                f"{self.host}/account and set the variable. --dry-run needs none."
            )
        return self.key

    def post(self, path: str, body: Any) -> Any:
        """POST to /api/``path``. Raises InputError for what it refuses for a reason that the user can mend."""
        return self._asking(lambda: post_json(f"{self.host}/api/{path}", body, self._headers()))

    def get(self, path: str) -> Any:
        """GET of /api/``path``; see ``post``."""
        return self._asking(lambda: get_json(f"{self.host}/api/{path}", self._headers()))

    def graph_page(self, model_id: str, slug: str) -> str:
        """The address at which an uploaded graph is seen."""
        return f"{self.host}/{quote(model_id)}/graph?slug={quote(slug)}"

    def _headers(self) -> dict[str, str]:
        return {} if self.key is None else {"x-api-key": self.key}

    def _asking(self, ask: Any) -> Any:
        try:
            return ask()
        except RefusedRequest as error:
            raise refused(error) from error


def refused(error: RefusedRequest) -> InputError:
    """What to do about a refusal."""
    advice = {
        400: "Correct what it names.",
        401: f"Set {KEY_VARIABLE} to a valid key.",
        403: f"The key in {KEY_VARIABLE} may not do this.",
        404: "Check model, source set and host.",
        413: "Lower the thresholds, so that the graph is smaller.",
        429: "Its limit for this hour is reached; try again later.",
    }.get(error.status, "Try again later.")
    if "ERR_MODEL_DOES_NOT_EXIST" in error.said:
        advice = (
            "It does not know this model: give one of its ids with --model-id (such as gemma-2-2b), or add it there."
        )
    return InputError(f"Neuronpedia refused ({error}). {advice}")
