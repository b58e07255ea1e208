"""Any language model behind an endpoint that speaks OpenAI's chat protocol; every answer is kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files.digests import as_written, read_sealed, write_sealed
from circuit_tracer.http import RefusedRequest, post_json

ENDPOINT = "https://api.openai.com/v1"
KEY_VARIABLE, ENDPOINT_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
CHARACTERS_A_TOKEN = 4  # of English text, for estimates

Messages = Sequence[dict[str, str]]


@dataclass
class ChatModel:
    """``ask`` answers a conversation; the same one again is answered from ``cache``, a folder.

    key: sent as a bearer token; local servers need none. Servers that know only the newer name of the limit
    (max_completion_tokens) or no temperature are recognised by their refusal.
    """

    model: str
    endpoint: str
    cache: Path
    key: str | None = None
    _newer: bool = field(default=False, init=False)

    @classmethod
    def from_environment(cls, model: str, cache: Path, endpoint: str | None = None) -> ChatModel:
        """Endpoint and key as given, else from OPENAI_BASE_URL and OPENAI_API_KEY. Raises InputError for OpenAI without key."""
        chosen = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        if not chosen.startswith(("http://", "https://")):
            raise InputError(
                f"the endpoint is {chosen!r}; expected an address such as {ENDPOINT} or http://localhost:8000/v1"
            )
        key = os.environ.get(KEY_VARIABLE) or None
        if key is None and chosen == ENDPOINT:
            raise InputError(
                f"{ENDPOINT} needs a key: set {KEY_VARIABLE}, or name a server of your own with --endpoint"
            )
        return cls(model, chosen, cache, key)

    def known(self, messages: Messages, tokens: int) -> bool:
        """Whether the answer is on disk already."""
        return self._path(messages, tokens).is_file()

    def ask(self, messages: Messages, tokens: int) -> str:
        """The answer, of at most so many tokens, at temperature 0. Raises InputError for what the server refuses."""
        path = self._path(messages, tokens)
        if path.is_file():
            kept = read_sealed(path, "Remove it, and it is asked again.")
            question = (kept.get("model"), kept.get("messages"))
            if question != (self.model, as_written(messages)) or not isinstance(kept.get("answer"), str):
                raise FileFormatError(f"{path} answers another question. Remove it, and it is asked again.")
            return str(kept["answer"])
        answer = self._ask(messages, tokens)
        kept = {"model": self.model, "messages": list(messages), "answer": answer}
        write_sealed(path, kept, indent=1)
        return answer

    def _path(self, messages: Messages, tokens: int) -> Path:
        asked = json.dumps([self.model, list(messages), tokens], ensure_ascii=False)
        name = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    def _ask(self, messages: Messages, tokens: int) -> str:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        url, newer = f"{self.endpoint}/chat/completions", self._newer
        try:
            try:
                answer = post_json(url, self._body(messages, tokens, newer), headers)
            except RefusedRequest as error:
                unknown = error.status == 400 and ("max_tokens" in error.said or "temperature" in error.said)
                if newer or not unknown:
                    raise
                self._newer = True
                answer = post_json(url, self._body(messages, tokens, newer=True), headers)
        except RefusedRequest as error:
            advice = {401: f"Set {KEY_VARIABLE} to a valid key.", 404: "Check --endpoint (it ends in /v1) and --model."}
            raise InputError(
                f"the interpreting model's server refused: {error}. {advice.get(error.status, '')}"
            ) from error
        try:
            return str(answer["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"{url} does not speak OpenAI's protocol: no choices[0].message.content in its answer"
            ) from error

    def _body(self, messages: Messages, tokens: int, newer: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        return body | ({"max_completion_tokens": tokens} if newer else {"max_tokens": tokens, "temperature": 0})


def tokens_in(messages: Messages) -> int:
    """About how many tokens a conversation has."""
    return sum(len(message["content"]) for message in messages) // CHARACTERS_A_TOKEN + 4 * len(messages)
