"""Prompts of the command line: one text, a file of them, conversations."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError

Messages = list[dict[str, str]]
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class PromptJob:
    """A prompt to trace, text or a conversation, and the name of its files."""

    slug: str
    prompt: str | Messages

    def tokenized(self, model: Any) -> Any:
        """Token ids (P,), by the model's rule or its chat template."""
        if isinstance(self.prompt, str):
            return model.ensure_tokenized(self.prompt)
        return model.chat_tokens(self.prompt)


def read_jobs(prompt: str | None, prompt_file: Path | None, chat: bool, slug: str | None) -> list[PromptJob]:
    """What is to be traced. Raises InputError for no prompt, two sources of prompts, or a file that cannot be read.

    One prompt is called `slug`; those of a file are numbered, `{slug}-001` or `001-the-first-words`.
    """
    if (prompt is None) == (prompt_file is None):
        raise InputError("give either --prompt TEXT or --prompt-file FILE ('-' reads standard input)")
    if prompt is not None:
        return [PromptJob(slug or "", _conversation(prompt) if chat else prompt)]
    lines = [line for line in _lines(prompt_file) if line.strip()]
    if not lines:
        raise InputError(f"{prompt_file} holds no prompt; write one on each line")
    return [
        PromptJob(_numbered(slug, number, line), _conversation(line) if chat else line)
        for number, line in enumerate(lines, start=1)
    ]


def _lines(path: Path | None) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else Path(str(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {path}: {error}") from error
    return text.removeprefix(BYTE_ORDER_MARK).split("\n")  # other separators are part of a prompt


def _numbered(slug: str | None, number: int, prompt: str) -> str:
    if slug:
        return f"{slug}-{number:03d}"
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    return "-".join([f"{number:03d}", *words[:6]])


def _conversation(prompt: str) -> Messages:
    """A user message; or the messages in a .json file, or in the prompt itself when it begins as a JSON list of objects."""
    from circuit_tracer.files import LARGEST_JSON, parse_json, read_text

    text = read_text(prompt, LARGEST_JSON) if prompt.endswith(".json") and Path(prompt).is_file() else prompt
    if text is prompt and not re.match(r"\s*\[\s*\{", text):
        return [{"role": "user", "content": prompt}]
    try:
        messages = parse_json(text, "it")
    except FileFormatError as error:
        raise InputError(f"the conversation {prompt[:200]!r} is no JSON: {error}") from error
    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages
    ):
        raise InputError(f'the conversation {prompt!r} must be a list of {{"role": ..., "content": ...}}')
    return messages
