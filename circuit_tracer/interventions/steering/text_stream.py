"""From generated ids to text, piece by piece: no half characters, nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

UNFINISHED = "\ufffd"  # what a tokenizer makes of part of a character


class TextStream:
    """The text behind a prompt, as it grows. `on_text` gets each piece as soon as it is certain."""

    def __init__(
        self, tokenizer: Any, prompt: Tensor, stop: Sequence[str], on_text: Callable[[str], None] | None
    ) -> None:
        self.tokenizer, self.stop, self.on_text = tokenizer, tuple(stop), on_text
        self.skip = len(self._decode(prompt))
        self.text, self.sent = "", 0

    def add(self, ids: Tensor) -> bool:
        """Take prompt and continuation (P + G,); whether the text has come to a stop text, before which it then ends."""
        self.text = self._decode(ids)[self.skip :]  # whole, since tokenizers treat the first word of a text differently
        found = [place for place in map(self.text.find, self.stop) if place >= 0]
        if found:
            self.text = self.text[: min(found)]
        self._send(self.text if found else self._certain())
        return bool(found)

    def finish(self) -> str:
        """Send what was held back; the whole continuation."""
        self._send(self.text)
        return self.text

    def _certain(self) -> str:
        """The text without a half character, or what may be the beginning of a stop text."""
        held = len(self.text) - len(self.text.rstrip(UNFINISHED))
        for stop in self.stop:
            held = max([held, *(size for size in range(1, len(stop)) if self.text.endswith(stop[:size]))])
        return self.text[: len(self.text) - held]

    def _send(self, text: str) -> None:
        if len(text) > self.sent:
            if self.on_text is not None:
                self.on_text(text[self.sent :])
            self.sent = len(text)

    def _decode(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
