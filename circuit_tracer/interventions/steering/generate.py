"""Generation with features held at values: circuit-tracer's `feature_intervention_generate`.

Letters: L layers, P positions, F features a layer, V vocabulary, G generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from circuit_tracer.models.surroundings import plain_torch
from circuit_tracer.models.tokenization import Prompt

if TYPE_CHECKING:
    from circuit_tracer.attribution.traceable import Traceable


# What narrows down the choice after temperature, top_k and top_p: option -> (transformers' warper, the value that means none).
_WARPERS = {"min_p": ("MinPLogitsWarper", 0.0), "typical_p": ("TypicalLogitsWarper", 1.0)}


@typed
@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen; names of TransformerLens' `generate`, with its defaults, and of transformers': circuit-tracer's
    scripts use both.

    Attributes:
        eos_token_id: One id or several, each of which ends the text.
        temperature: 0: the most probable token.
        freq_penalty: Subtracted from a logit, after temperature, for each time its token was seen.
        logits_processor: Functions of (ids (1, P), logits (1, V)).
        streamer: Told the prompt's ids, then each new one, as transformers' `generate` does.
        use_past_kv_cache: Must be true: without it circuit-tracer does not generate with interventions, and neither do we.
        prepend_bos: Without effect, since ids are taken as they are and text is tokenized by the model's own rule
            (`ensure_tokenized`).
        padding_side: Without effect, since one prompt is not padded.
        return_type: Text ("input", "str") or ids ("tokens").
        seed: Of a generator of this text's own; None draws from torch's global random state, which all threads of a process
            share.
        verbose: Without effect.
    """

    max_new_tokens: int = 10
    stop_at_eos: bool = True
    eos_token_id: int | Sequence[int] | Tensor | None = None
    do_sample: bool = True
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    temperature: float = 1.0
    freq_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    streamer: Any = None
    use_past_kv_cache: bool = True
    prepend_bos: bool | None = None
    padding_side: str | None = None
    return_type: str | None = "input"
    seed: int | None = None
    verbose: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; at least 1 is needed")
        largest = torch.finfo(torch.float32).max
        if self.do_sample and not 0 <= self.temperature <= largest:
            raise InputError(
                f"temperature is {self.temperature}; give a positive one that is finite in float32, 0, or do_sample=False"
            )
        if abs(self.freq_penalty) > largest:
            raise InputError(f"freq_penalty is {self.freq_penalty:g}, which is not finite in float32")
        require_cuts(self.top_k or None, self.top_p)
        if self.repetition_penalty <= 0:
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; give a positive one (1: none)")
        for name in _WARPERS:
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a share between 0 and 1")
        if self.return_type not in ("input", "str", "tokens"):
            raise InputError(f"return_type is {self.return_type!r}; use 'input' or 'str' for text, 'tokens' for ids")

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

    def generator(self) -> torch.Generator | None:
        """What tokens are drawn with; None for torch's global random state."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed & (2**63 - 1))

    def choose(self, logits_V: Tensor, seen: Tensor, generator: torch.Generator | None = None) -> int:
        """The next token, given the ids (P,) so far."""
        import transformers

        scores, ids = logits_V[None], seen[None]
        if self.repetition_penalty != 1:
            scores = transformers.RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))(ids, scores)
        for process in self.logits_processor:
            scores = process(ids, scores)
        if not self.do_sample or self.temperature == 0:
            return int(scores.argmax())
        # to be subtracted after the division by the temperature
        penalty = self.freq_penalty * torch.bincount(seen, minlength=scores.shape[1]).to(scores)
        scores = warp(scores[0] - penalty * self.temperature, self.temperature, self.top_k or None, self.top_p)[None]
        for option, (warper, none) in _WARPERS.items():
            if (value := getattr(self, option)) not in (None, none):
                scores = getattr(transformers, warper)(value)(ids, scores)
        odds = torch.softmax(scores[0].float(), dim=-1)
        return int(torch.multinomial(odds if generator is None else odds.cpu(), 1, generator=generator))


def transformers_defaults(model: Traceable) -> dict[str, Any]:
    """What transformers' `generate`, to which circuit-tracer's nnsight backend leaves generation, does when told nothing: 20
    tokens, chosen as the model's own generation configuration says.
    """
    names = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "eos_token_id")
    configured = model.parts.model.generation_config
    found = {name: getattr(configured, name, None) for name in names}
    return {
        "max_new_tokens": getattr(configured, "max_new_tokens", None) or 20,
        "do_sample": False,
        **{name: value for name, value in found.items() if value is not None},
    }


def feature_intervention_generate(
    model: Traceable,
    inputs: Prompt,
    interventions: Sequence[Intervention],
    *settings: Any,
    skip_special_tokens: bool = True,
    **generation: Any,
) -> tuple[str | Tensor, Tensor, Tensor | None]:
    """(text, logits (G, V), activations (L, P + G - 1, F) or None); see `ReplacementModel.feature_intervention_generate`.

    Args:
        model: The replacement model.
        inputs: The prompt: text, or token ids (P,).
        interventions: (layer, position, feature, value) each.
        skip_special_tokens: Leave special tokens out of the text.
        *settings: Those of `feature_intervention` after the interventions, in order.
        **generation: Of `GenerationOptions`.

    Returns:
        (prompt and continuation as text or ids, logits (G, V), activations (L, P + G - 1, F) or None).
    """
    wanted = GenerationOptions.read(generation).return_type
    if model.tokenizer is None and wanted != "tokens":
        raise InputError(
            "this model has no tokenizer, so it cannot turn what it generates into text; load it with one, or ask for ids "
            "(return_type='tokens')"
        )
    ids, logits, activations = generate_held(model, inputs, interventions, *settings, **generation)
    if wanted == "tokens":
        return ids[None].to(model.parts.device), logits, activations
    return model.tokenizer.decode(ids.tolist(), skip_special_tokens=skip_special_tokens), logits, activations


@typed
@plain_torch()
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
    if interventions and not options.use_past_kv_cache:
        raise InputError("interventions generate with the key-value cache only; leave use_past_kv_cache out")
    ids, parts = model.ensure_tokenized(inputs), model.parts
    check_length(parts, ids, options.max_new_tokens)
    left_out = model.left_out(ids)
    loop = _Generation(model, ids, options, return_activations, sparse, apply_activation_function)
    place = (model.transcoders, len(ids), model.parts.device, parts.compute_dtype)
    freeze = freeze_for(model, ids, interventions, constrained_layers, freeze_attention)
    loop.step(ids, resolve(interventions, *place), freeze, left_out)
    goes_on = resolve(open_ended(interventions), model.transcoders, 1, model.parts.device, parts.compute_dtype)
    ends = options.end_ids(model.tokenizer)
    while len(loop.logits) < options.max_new_tokens and int(loop.ids[-1]) not in ends:
        if not options.use_past_kv_cache:
            loop.forget()
        loop.step(loop.ids[-1:] if options.use_past_kv_cache else loop.ids, goes_on, None, [])
    if options.streamer is not None:
        options.streamer.end()
    return loop.ids, torch.stack(loop.logits), loop.all_activations()


class _Generation:
    """The tokens, logits, activations and cache of a generation so far."""

    def __init__(
        self, model: Traceable, ids: Tensor, options: GenerationOptions, record: bool, sparse: bool, apply: bool
    ) -> None:
        self.model, self.ids, self.record, self.sparse, self.apply = model, ids, record, sparse, apply
        self.options, self.generator = options, options.generator()
        self.past: Any = None
        self.logits: list[Tensor] = []
        self.activations: list[Tensor] = []

    def forget(self) -> None:
        """Start again with all tokens, and nothing kept of them."""
        self.past, self.activations = None, []

    def step(
        self,
        fed: Tensor,
        settings: dict[int, LayerSettings],
        freeze: Freeze | None,
        left_out: list[int],
    ) -> None:
        """Run the model on the tokens that it has not seen, and choose the next one."""
        recorder = Recorder(self.model.transcoders, self.sparse, self.apply, left_out) if self.record else None
        run = Pass(self.model, settings, freeze, recorder, left_out).run()
        (final,), self.past = run(fed, past=self.past, keep_past=True)
        if recorder is not None:
            self.activations.append(recorder.result())
        self.logits.append(logits_at(self.model.parts, require_finite(final)[-1:])[0])
        chosen = self.ids.new_tensor(
            [self.options.choose(self.logits[-1], self.ids.to(self.model.parts.device), self.generator)]
        )
        if self.options.streamer is not None and len(self.logits) == 1:
            self.options.streamer.put(self.ids[None].cpu())
        if self.options.streamer is not None:
            self.options.streamer.put(chosen.cpu())
        self.ids = torch.cat([self.ids, chosen])

    def all_activations(self) -> Tensor | None:
        """(L, P + G - 1, F): the last token was never fed to the model."""
        if not self.record:
            return None
        joined = torch.cat(self.activations, dim=1)
        return joined.coalesce() if self.sparse else joined
