"""Prompts of the command line: one text, a file of them, conversations."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.files import parse_json, read_json

Messages = list[dict[str, Any]]
LARGEST_PROMPTS = 64 * 2**20  # bytes of a file of prompts


@dataclass(frozen=True)
class PromptJob:
    """A prompt to trace, text or a conversation, and the name of its files."""

    slug: str
    prompt: str | Messages
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def tokenized(self, model: Any) -> Any:
        """Token ids (P,), by the model's rule or its chat template."""
        if isinstance(self.prompt, str):
            return model.ensure_tokenized(self.prompt)
        return model.chat_tokens(self.prompt, **self.template_arguments)


def read_jobs(
    prompt: str | None,
    prompt_file: Path | None,
    chat: bool,
    slug: str | None,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[PromptJob]:
    """What is to be traced. Raises InputError for no prompt, two sources of prompts, or a file that cannot be read.

    template_arguments: of the chat template.
    One prompt is called `slug`; those of a file are numbered, `{slug}-001` or `001-the-first-words`.
    """
    if (prompt is None) == (prompt_file is None):
        raise InputError("give either --prompt TEXT or --prompt-file FILE ('-' reads standard input)")
    given = template_arguments or {}
    if given and not chat:
        raise InputError(f"--chat-option {', '.join(given)} is for the chat template: add --chat")
    if prompt is not None:
        return [PromptJob(slug or "", _conversation(prompt) if chat else prompt, given)]
    lines = [line for line in _lines(prompt_file) if line.strip()]
    if not lines:
        raise InputError(f"{prompt_file} holds no prompt; write one on each line")
    return [
        PromptJob(_numbered(slug, number, line), _conversation(line) if chat else line, given)
        for number, line in enumerate(lines, start=1)
    ]


def _lines(path: Path | None) -> list[str]:
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else open(str(path), "rb") as file:
            data = file.read(LARGEST_PROMPTS + 1)  # a pipe may be read too, such as <(command)
        if len(data) > LARGEST_PROMPTS:
            raise InputError(
                f"{path} holds more than {LARGEST_PROMPTS:,} bytes; split it into several files of prompts"
            )
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read prompts from {path}: {error}; it must be a file of UTF-8 text") from error
    return re.split("\r?\n", text)  # other separators are part of a prompt


def _numbered(slug: str | None, number: int, prompt: str) -> str:
    if slug:
        return f"{slug}-{number:03d}"
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    return "-".join([f"{number:03d}", *words[:6]])


def _conversation(prompt: str) -> Messages:
    """A user message; or the messages in a .json file, or in the prompt itself when it is a JSON list of objects with roles."""
    if prompt.endswith(".json") and Path(prompt).is_file():
        messages = read_json(Path(prompt))
    elif re.match(r"\s*\[\s*\{", prompt) and '"role"' in prompt:
        messages = parse_json(prompt, "the conversation given as prompt")
    else:
        return [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages
    ):
        raise InputError(f'the conversation {prompt[:200]!r} must be a list of {{"role": ..., "content": ...}}')
    return messages


def template_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of a chat template from NAME=VALUE; values are JSON, or else text."""
    found = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise InputError(f"--chat-option is {text!r}; write NAME=VALUE, such as enable_thinking=false")
        try:
            found[name] = parse_json(value, text)
        except FileFormatError:
            found[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return found
