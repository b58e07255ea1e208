"""Steer a model while it generates: features, supernodes and directions, beside the text without them.

    result = steer(model, "Fact: the capital of Texas is", [scale(supernode, 10.0, at="all")], max_new_tokens=20)
    print(result.side_by_side())

Everything is live (direct semantics): attention, norms and MLPs react. With the key-value cache and without it logits agree
to rounding, and so the text is the same unless two tokens are as close; without interventions, or where they change nothing,
it is the model's own, bitwise. Letters: G generated tokens, V vocabulary.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from circuit_tracer.arguments import require_seed, typed
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import Edit
from circuit_tracer.interventions.features.passes import Pass, require_finite
from circuit_tracer.interventions.steering.sampling import require_cuts, warp
from circuit_tracer.interventions.steering.schedule import Direction, SteeringPlan
from circuit_tracer.interventions.steering.text_stream import TextStream
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.run import Output, Visit, in_turn
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt
from circuit_tracer.progress import each_of
from circuit_tracer.transcoders.lorsa import Lorsa

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@typed
@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: the most probable one; else drawn with `seed`, which the global random state
    does not touch.

    Attributes:
        max_new_tokens: Most tokens.
        temperature: 0: the most probable token.
        top_k: Draw from so many; None: all.
        top_p: Draw from those that hold this probability together; None: all.
        seed: Of the draws.
        stop: Texts that end it.
        stop_at_eos: Whether the model's end tokens end it.
    """

    max_new_tokens: int = 40
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: Sequence[str] = ()
    stop_at_eos: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        if self.temperature < 0:
            raise InputError(
                f"temperature is {self.temperature}; give 0 for the most probable token, or a positive number"
            )
        require_seed(self.seed)
        require_cuts(self.top_k, self.top_p)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {self.stop!r}; give a sequence of texts that are not empty")

    def choose(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """The next token."""
        if self.temperature == 0:
            return int(logits_V.argmax())
        scores = warp(logits_V.cpu(), self.temperature, self.top_k, self.top_p)
        return int(torch.multinomial(torch.softmax(scores.double(), dim=-1), 1, generator=generator))


@runtime_checkable
class Watcher(Protocol):
    """Looks on while a text grows, and says from when on the interventions hold."""

    @property
    def since(self) -> int | None:
        """The first position at which they hold; None: not yet. Asked before each pass."""

    def visits(self, start: int, left_out: Sequence[int]) -> Mapping[str, Visit]:
        """What looks at a pass over the tokens from position `start` on, by site; behind what the interventions do there.
        left_out: rows of the pass that have no features.
        """

    def passed(self, stop: int) -> None:
        """That pass has been made, over the tokens up to position stop - 1."""


@dataclass(frozen=True)
class Continuation:
    """Generated text.

    Attributes:
        ids: (G,).
        finish: Why it ended.
        logits: (G, V) they were chosen from, if kept.
    """

    text: str
    ids: Tensor
    finish: Literal["length", "end", "stop"]
    logits: Tensor | None = None


@dataclass(frozen=True)
class Steering:
    """A steered generation and, unless it was left out, the one without interventions.

    Attributes:
        prompt: The text.
        interventions: What was changed.
        steered: The text with them.
        unsteered: The text without; None if it was left out.
    """

    prompt: str
    interventions: tuple[Edit | Direction, ...]
    steered: Continuation
    unsteered: Continuation | None

    def side_by_side(self, width: int = 100) -> str:
        """Both texts in columns, or the steered one alone."""
        if self.unsteered is None:
            return textwrap.fill(self.prompt + self.steered.text, width)
        half = (width - 3) // 2
        columns = [
            _wrapped(f"[{name}]\n{self.prompt}{each.text}", half)
            for name, each in (("unsteered", self.unsteered), ("steered", self.steered))
        ]
        rows = max(map(len, columns))
        left, right = (column + [""] * (rows - len(column)) for column in columns)
        return "\n".join(f"{a:<{half}} | {b}".rstrip() for a, b in zip(left, right, strict=True))


@typed
@plain_torch()
@torch.no_grad()
def steer(
    model: Traceable,
    prompt: Prompt,
    interventions: Edit | Direction | Sequence[Edit | Direction],
    sampling: Sampling | None = None,
    *,
    compare: bool = True,
    cache: bool = True,
    on_text: Callable[[str], None] | None = None,
    keep_logits: bool = False,
    watcher: Watcher | None = None,
) -> Steering:
    """Generate with features or directions changed, on the prompt and on the tokens to come as each edit says (`at`).

    Args:
        model: The replacement model.
        prompt: Text or token ids (P,).
        interventions: Edits of features, or directions to add.
        sampling: How tokens are chosen; None: `Sampling()`, the most probable ones.
        compare: Also generate without them.
        cache: Keep keys and values between tokens.
        on_text: Called with each new piece of the steered text, which never holds a stop text, not even its beginning.
        keep_logits: Keep the logits (G, V) of both texts.
        watcher: Looks at every token of the steered text, the last one too if the context has room (probes/generation.py).

    Returns:
        Both texts, and what ended them.

    Raises:
        InputError: As `apply_edits` does, and for a model without a tokenizer.

    Examples:
        >>> from circuit_tracer.interventions import FeatureAt, Sampling, scale, steer
        >>> steered = steer(model, PROMPT, scale(FeatureAt(0, 7, 78), -1), Sampling(max_new_tokens=1))
        >>> steered.unsteered.text.strip()
        'Austin'
    """
    sampling = sampling or Sampling()
    given = (interventions,) if isinstance(interventions, Edit | Direction) else tuple(interventions)
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, so it cannot turn what it generates into text; load it with one")
    ids = model.ensure_tokenized(prompt)
    check_length(model.parts, ids, sampling.max_new_tokens)
    _require_known_to_tokens(model, given)
    clean = CleanRun(model, ids, patterns=False)
    plan = SteeringPlan(model, clean, given)
    steered = _generate(model, ids, plan, sampling, cache, on_text, keep_logits, watcher)
    unsteered = None
    if compare:
        unsteered = _generate(model, ids, SteeringPlan(model, clean, ()), sampling, cache, None, keep_logits)
    text = model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return Steering(text, given, steered, unsteered)


def _require_known_to_tokens(model: Traceable, edits: Sequence[Edit | Direction]) -> None:
    """Lorsa makes its patterns of all tokens, of which a step sees the new one."""
    if not isinstance(model.attention, Lorsa):
        return
    first = model.transcoders.d_transcoder
    for edit in edits:
        if isinstance(edit, Edit) and any(feature.feature_idx >= first for feature in edit.features):
            raise InputError(
                f"{edit}: features of Lorsa can be set on a prompt (apply_edits), and not while generating"
            )


def _generate(
    model: Traceable,
    prompt: Tensor,
    plan: SteeringPlan,
    sampling: Sampling,
    cache: bool,
    on_text: Callable[[str], None] | None,
    keep_logits: bool,
    watcher: Watcher | None = None,
) -> Continuation:
    generator = torch.Generator().manual_seed(sampling.seed)
    stream = TextStream(model.tokenizer, prompt, sampling.stop, on_text)
    ends, ids, past, kept = _end_ids(model), prompt, None, []
    finish: Literal["length", "end", "stop"] = "length"
    for _ in each_of("writing tokens", range(sampling.max_new_tokens)):
        (final,), past = _step(model, ids, plan, past, cache, watcher)
        logits = logits_at(model.parts, require_finite(final)[-1:])[0]
        kept += [logits.cpu()] if keep_logits else []
        chosen = sampling.choose(logits, generator)
        ids = torch.cat([ids, ids.new_tensor([chosen])])
        if sampling.stop_at_eos and chosen in ends:
            finish = "end"
            break
        if stream.add(ids):
            finish = "stop"
            break
    has_room = len(ids) <= (model.parts.context_length or len(ids))
    if watcher is not None and has_room:  # the last token was chosen, and not read
        _step(model, ids, plan, past, cache, watcher)
    return Continuation(stream.finish(), ids[len(prompt) :], finish, torch.stack(kept) if kept else None)


def _step(model: Traceable, ids: Tensor, plan: SteeringPlan, past: Any, cache: bool, watcher: Watcher | None) -> Output:
    """A pass over the tokens that the model has not read."""
    start = 0 if past is None else len(ids) - 1
    if watcher is not None:
        plan.since = watcher.since
    left_out = plan.left_out if start == 0 else []
    visits = dict(plan.directions(start))
    for site, visit in (watcher.visits(start, left_out) if watcher is not None else {}).items():
        visits[site] = in_turn(visits.get(site), visit)
    run = Pass(model, plan.settings(start, len(ids)), zero_positions=left_out).run(visits)
    output = run(ids[start:], past=past, keep_past=cache)
    if watcher is not None:
        watcher.passed(len(ids))
    return output


def _end_ids(model: Traceable) -> set[int]:
    """Ids that end a text: the tokenizer's, and those of the model's own generation settings (chat models have several)."""
    config: Any = getattr(model.parts.model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    found = {model.tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])}
    return {int(each) for each in found if each is not None}


def _wrapped(text: str, width: int) -> list[str]:
    return [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, width) or [""]]
