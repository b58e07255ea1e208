"""From a conversation to token ids, by the tokenizer's chat template.

A template is a program of somebody else's: what it raises becomes an InputError with its own words. Its arguments
(`enable_thinking=False`) are passed on, with a warning if neither the template nor transformers knows them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from circuit_tracer.errors import InputError, shortened, warn
from circuit_tracer.models.tokenization import tokenize

Message = Mapping[str, Any]
# arguments of apply_chat_template that are chosen here, or are about what becomes of its text
_OURS = {
    "self", "conversation", "tokenize", "add_generation_prompt", "kwargs", "padding", "truncation", "max_length",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenizer_kwargs",
}  # fmt: skip
_COMMENT = re.compile(r"{#.*?#}", re.DOTALL)


def chat_ids(
    messages: Sequence[Message],
    tokenizer: Any,
    add_generation_prompt: bool = True,
    prepend_bos: bool = True,
    **template_arguments: Any,
) -> Tensor:
    """Ids (P,) of a conversation under the tokenizer's chat template; see `chat_text`."""
    text = chat_text(messages, tokenizer, add_generation_prompt, **template_arguments)
    return tokenize(text, tokenizer, prepend_bos)


def chat_text(
    messages: Sequence[Message], tokenizer: Any, add_generation_prompt: bool = True, **template_arguments: Any
) -> str:
    """What the tokenizer's chat template makes of a conversation, [{"role": ..., "content": ...}, ...].

    content: text, or a list of parts {"type": "text", "text": ...}, which are joined. Raises InputError for a tokenizer
    without template, messages of another form, and what the template refuses.
    """
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        raise InputError("this tokenizer has no chat template; pass the prompt as plain text or as token ids")
    plain = [_plain(message) for message in _listed(messages)]
    _hear_of_unknown(template_arguments, template, tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=add_generation_prompt, **template_arguments
            )
        )
    except Exception as error:  # whatever the template does
        raise InputError(
            f"the chat template refuses this conversation of roles {[message['role'] for message in plain]}: "
            f"{type(error).__name__}: {shortened(str(error))}. Change the messages, or pass the prompt as plain text."
        ) from error


def _listed(messages: Any) -> list[Any]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError(f'a conversation is a list of {{"role": ..., "content": ...}}, got {shortened(messages)}')
    return list(messages)


def _plain(message: Any) -> dict[str, Any]:
    """A message whose content is text, or one of tool calls alone."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f'a message is {{"role": ..., "content": ...}} with a role, got {shortened(message)}')
    if message.get("content") is None and message.get("tool_calls"):
        return dict(message)  # an assistant that only calls
    if "content" not in message:
        raise InputError(f"the message of {message['role']!r} has no content: {shortened(message)}")
    content = message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(map(_text_of_part, content))
    if not isinstance(content, str):
        raise InputError(
            f"the content of the message of {message['role']!r} must be text or a list of text parts, got {shortened(content)}"
        )
    return {**message, "content": content}


def _text_of_part(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InputError(
            f'content has the part {shortened(part)}; only text can be traced: {{"type": "text", "text": ...}}'
        )
    return str(part["text"])


def _hear_of_unknown(arguments: Mapping[str, Any], template: Any, tokenizer: Any) -> None:
    texts = [*(template.values() if isinstance(template, Mapping) else [template]), arguments.get("chat_template")]
    general = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _OURS
    used = _COMMENT.sub("", "\n".join(map(str, texts)))
    for name in arguments:
        if name not in general and not re.search(rf"\b{re.escape(name)}\b", used):
            warn(f"the chat template knows no argument {name!r}: it changes nothing")
