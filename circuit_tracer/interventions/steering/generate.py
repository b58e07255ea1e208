"""Generation with features held at values: circuit-tracer's `feature_intervention_generate`.

Letters: L layers, P positions, F features a layer, V vocabulary, G generated tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.arguments import typed, whole
from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.activations import Recorder
from circuit_tracer.interventions.features.intervene import freeze_for
from circuit_tracer.interventions.features.passes import Freeze, Pass, require_finite
from circuit_tracer.interventions.features.settings import Intervention, LayerSettings, open_ended, resolve
from circuit_tracer.interventions.steering.sampling import require_cuts, warp
from circuit_tracer.models.capture import check_length, logits_at
from circuit_tracer.models.tokenization import Prompt, zero_positions

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


@typed
@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen; names and defaults of TransformerLens' `generate`, which circuit-tracer's scripts use.

    eos_token_id: one id or several, each of which ends the text. freq_penalty: subtracted from a logit for each time its
    token was seen. return_type: the text, which is what circuit-tracer returns. Without `use_past_kv_cache` circuit-tracer
    does not generate, and neither do we. Without effect: `verbose`; `padding_side`, since one prompt is not padded; and
    `prepend_bos`, since ids are taken as they are and text is tokenized by the model's own rule (`ensure_tokenized`).
    """

    max_new_tokens: int = 10
    stop_at_eos: bool = True
    eos_token_id: int | Sequence[int] | Tensor | None = None
    do_sample: bool = True
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    freq_penalty: float = 0.0
    use_past_kv_cache: bool = True
    prepend_bos: bool | None = None
    padding_side: str | None = None
    return_type: str | None = "input"
    verbose: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        if not self.use_past_kv_cache:
            raise InputError("interventions generate with the key-value cache only; leave use_past_kv_cache out")
        if self.do_sample and not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; give a positive one, or do_sample=False")
        if abs(self.freq_penalty) > torch.finfo(torch.float32).max:
            raise InputError(f"freq_penalty is {self.freq_penalty:g}, which is not finite in float32")
        require_cuts(self.top_k, self.top_p)
        if self.return_type not in ("input", "str"):
            raise InputError(
                f"return_type is {self.return_type!r}; interventions return the text as 'str' (or 'input'). For ids, use "
                "circuit_tracer.interventions.steering.generate.generate_held"
            )

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> GenerationOptions:
        """From keyword arguments; InputError lists what is known when one is not."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise InputError(f"unknown generation arguments {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**arguments)

    def end_ids(self, tokenizer: Any) -> frozenset[int]:
        """Ids that end the text; the tokenizer's (which may be None), unless others were given."""
        given = getattr(tokenizer, "eos_token_id", None) if self.eos_token_id is None else self.eos_token_id
        if given is None or not self.stop_at_eos:
            return frozenset()
        given = given.flatten().tolist() if isinstance(given, Tensor) else given
        several = given if isinstance(given, Sequence) else [given]
        return frozenset(whole(each, "eos_token_id") for each in several)

    def choose(self, logits_V: Tensor, seen: Tensor) -> int:
        """The next token, given the ids (P,) so far; sampling uses torch's global random state."""
        if not self.do_sample:
            return int(logits_V.argmax())
        logits = logits_V - self.freq_penalty * torch.bincount(seen, minlength=len(logits_V)).to(logits_V)
        scores = warp(logits, self.temperature, self.top_k, self.top_p)
        return int(torch.multinomial(torch.softmax(scores.float(), dim=-1), 1))


def feature_intervention_generate(
    model: Traceable, inputs: Prompt, interventions: Sequence[Intervention], *settings: Any, **generation: Any
) -> tuple[str, Tensor, Tensor | None]:
    """(text, logits (G, V), activations (L, P + G - 1, F) or None); see `ReplacementModel.feature_intervention_generate`."""
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, so it cannot turn what it generates into text; load it with one")
    ids, logits, activations = generate_held(model, inputs, interventions, *settings, **generation)
    return model.tokenizer.decode(ids.tolist(), skip_special_tokens=True), logits, activations


@typed
@torch.no_grad()
def generate_held(
    model: Traceable,
    inputs: Prompt,
    interventions: Sequence[Intervention],
    constrained_layers: Iterable[int] | None = None,
    freeze_attention: bool = True,
    apply_activation_function: bool = True,
    sparse: bool = False,
    return_activations: bool = True,
    **generation: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `feature_intervention_generate`, with token ids (P + G,) in place of their text."""
    options = GenerationOptions.read(generation)
    ids, parts = model.ensure_tokenized(inputs), model.parts
    check_length(parts, ids, options.max_new_tokens)
    left_out = zero_positions(ids, model.parts.config.model_name)
    loop = _Generation(model, ids, return_activations, sparse, apply_activation_function)
    place = (model.transcoders, len(ids), model.parts.device, parts.compute_dtype)
    freeze = freeze_for(model, ids, interventions, constrained_layers, freeze_attention)
    loop.step(ids, resolve(interventions, *place), freeze, left_out, options)
    goes_on = resolve(open_ended(interventions), model.transcoders, 1, model.parts.device, parts.compute_dtype)
    ends = options.end_ids(model.tokenizer)
    while len(loop.logits) < options.max_new_tokens and int(loop.ids[-1]) not in ends:
        loop.step(loop.ids[-1:], goes_on, None, [], options)
    return loop.ids, torch.stack(loop.logits), loop.all_activations()


class _Generation:
    """The tokens, logits, activations and cache of a generation so far."""

    def __init__(self, model: Traceable, ids: Tensor, record: bool, sparse: bool, apply: bool) -> None:
        self.model, self.ids, self.record, self.sparse, self.apply = model, ids, record, sparse, apply
        self.past: Any = None
        self.logits: list[Tensor] = []
        self.activations: list[Tensor] = []

    def step(
        self,
        fed: Tensor,
        settings: dict[int, LayerSettings],
        freeze: Freeze | None,
        left_out: list[int],
        options: GenerationOptions,
    ) -> None:
        """Run the model on the tokens that it has not seen, and choose the next one."""
        recorder = Recorder(self.model.transcoders, self.sparse, self.apply, left_out) if self.record else None
        run = Pass(self.model, settings, freeze, recorder, left_out).run()
        (final,), self.past = run(fed, past=self.past, keep_past=True)
        if recorder is not None:
            self.activations.append(recorder.result())
        self.logits.append(logits_at(self.model.parts, require_finite(final)[-1:])[0])
        chosen = options.choose(self.logits[-1], self.ids.to(self.model.parts.device))
        self.ids = torch.cat([self.ids, self.ids.new_tensor([chosen])])

    def all_activations(self) -> Tensor | None:
        """(L, P + G - 1, F): the last token was never fed to the model."""
        if not self.record:
            return None
        joined = torch.cat(self.activations, dim=1)
        return joined.coalesce() if self.sparse else joined
