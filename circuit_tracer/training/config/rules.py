"""Which values of a configuration contradict each other, and which would have no effect. Both are errors, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from circuit_tracer.text.source import Kind
from circuit_tracer.training.sparsity import rule_of, unread

if TYPE_CHECKING:
    from circuit_tracer.training.config.schema import TrainingConfig
    from circuit_tracer.training.sparsity.base import Rule

# keys of `data` that not every kind of data has, and the kinds that do
DATA_KEYS = {
    "name": ("huggingface",),
    "split": ("huggingface",),
    "field": ("huggingface", "jsonl", "parquet"),
    "context_length": get_args(Kind),
    "sequences_per_pass": get_args(Kind),
}
# keys of `data` that name one data set or several, and those that each takes the place of
ONE_OR_SEVERAL = {"mixture": ("path", "name"), "path": ("mixture",)}


def contradictions(config: TrainingConfig) -> list[str]:
    """One message for each contradiction, naming values, expectation and next step; empty if there is none."""
    idle = [
        f"{key} is {_value(config, key)}, which has no effect {reason}: leave it out (default {_default(config, key)})"
        for key, reason in without_effect(config).items()
        if _value(config, key) != _default(config, key)
    ]
    return [*idle, *_kind(config), *_data(config), *_sparsity(config), *_lengths(config)]


def without_effect(config: TrainingConfig) -> dict[str, str]:
    """Options that nothing reads under this configuration, with the reason."""
    reasons: dict[str, str] = {}

    def idle(reason: str, section: str, *names: str) -> None:
        reasons.update({f"{section}.{name}": reason for name in names})

    sparsity, data = config.sparsity, config.data
    if sparsity.penalty is None:
        idle("without a sparsity.penalty, which is then zero", "sparsity", "penalty_scale", "penalty_warmup")
    for name, reason in unread(sparsity.activation).items():
        idle(f"with sparsity.activation {sparsity.activation}, {reason}", "sparsity", name)
    if config.run.start_from is not None and sparsity.active_at_start is None:
        idle(
            "with run.start_from, where k is sparsity.active unless active_at_start is given",
            "sparsity",
            "anneal",
        )
    if sparsity.aux_active == 0:
        idle("with sparsity.aux_active 0", "sparsity", "aux_weight")
    kinds_here = {data.kind} if data.mixture is None else {part.kind or data.kind for part in data.mixture}
    for name, kinds in DATA_KEYS.items():
        if not kinds_here.intersection(kinds):
            here = " and ".join(sorted(kinds_here))
            idle(f"with data.kind {here}: only {' and '.join(kinds)} data have it", "data", name)
    if data.mixture is not None:
        idle("with data.mixture, whose parts have their own", "data", *ONE_OR_SEVERAL["mixture"])
    if data.kind == "activations":
        idle("with data.kind activations, which hold no derivatives", "sparsity", "jacobian_weight")
        idle("with data.kind activations: reconstruction alone is measured", "evaluation", "per_layer_baseline")
    if config.dictionary.kind == "sae":
        idle(
            "with dictionary.kind sae, which reads and writes at dictionary.point",
            "dictionary",
            "input_hook",
            "output_hook",
        )
        idle("with dictionary.kind sae: it replaces no MLP", "sparsity", "jacobian_weight")
        idle("with dictionary.kind sae: it replaces no MLP", "evaluation", "per_layer_baseline")
    else:
        idle(f"with dictionary.kind {config.dictionary.kind}, which has hooks of its own", "dictionary", "point")
    if config.dictionary.kind == "clt":
        idle("with dictionary.kind clt, which covers all layers", "dictionary", "layers")
    return reasons


def _kind(config: TrainingConfig) -> Iterator[str]:
    layers = config.dictionary.layers
    if layers is not None and layers != sorted(set(layers)):
        yield f"dictionary.layers is {layers}; name each layer once, in order: {sorted(set(layers))}"


def _data(config: TrainingConfig) -> Iterator[str]:
    data = config.data
    if data.path is None and data.mixture is None:
        yield "data.path is missing: give the one data set there, or several in data.mixture"
    if data.kind == "activations" and data.mixture is not None:
        yield "data.kind is activations, of which data.mixture can hold none: give one data.path, or the kind of the texts"
    for number, part in enumerate(data.mixture or (), 1):
        kind = part.kind or data.kind
        if kind == "activations":
            yield f"part {number} of data.mixture is of kind activations; only text is mixed: give one path instead"
        for name in (
            name for name, kinds in DATA_KEYS.items() if kind not in kinds and getattr(part, name) is not None
        ):
            yield f"part {number} of data.mixture has a {name}, which has no effect with kind {kind}: leave it out"


def _sparsity(config: TrainingConfig) -> Iterator[str]:
    sparsity, features = config.sparsity, config.dictionary.features
    rule = rule_of(sparsity)
    yield from rule.contradictions(features)
    yield from _served(config, rule)
    if sparsity.prefixes is not None and [*sparsity.prefixes, features] != sorted({*sparsity.prefixes, features}):
        yield (
            f"sparsity.prefixes is {sparsity.prefixes}; name sizes in ascending order, below dictionary.features, {features}"
        )
    tokens = config.run.schedule_tokens or config.run.tokens
    if sparsity.dead_after_tokens is not None and sparsity.dead_after_tokens >= tokens:
        yield (
            f"sparsity.dead_after_tokens is {sparsity.dead_after_tokens}, so that nothing can ever be dead in a run of "
            f"{tokens} tokens; use a tenth of that, or leave it out"
        )
    if sparsity.aux_active > features:
        yield (
            f"sparsity.aux_active is {sparsity.aux_active}, more than dictionary.features, {features}; "
            f"lower it, {max(1, features // 8)} say, or use 0"
        )


def _served(config: TrainingConfig, rule: Rule) -> Iterator[str]:
    """What a rule of sparsity cannot be combined with."""
    sparsity, kind, named = config.sparsity, config.dictionary.kind, f"sparsity.activation {config.sparsity.activation}"
    if kind not in rule.kinds:
        yield (
            f"dictionary.kind is {kind} with {named}, whose router makes activations no linear function of the input, which "
            f"tracing needs: use {' or '.join(rule.kinds)}, or another activation"
        )
    if not rule.nests and (sparsity.prefixes is not None or sparsity.prefixes_drawn):
        yield (
            f"sparsity.prefixes is {sparsity.prefixes} and prefixes_drawn {sparsity.prefixes_drawn} with {named}, whose first "
            "features are one expert's, which most tokens never see: leave them out, or use another activation"
        )
    if rule.gated and sparsity.jacobian_weight:
        yield (
            f"sparsity.jacobian_weight is {sparsity.jacobian_weight} with {named}, whose magnitudes grow by another factor "
            "than its pre-activations: leave it out, or use another activation"
        )
    if rule.experts and config.run.start_from is not None:
        yield f"run.start_from is {config.run.start_from} with {named}: no dictionary brings a router along; leave it out"


def _lengths(config: TrainingConfig) -> Iterator[str]:
    run, optimizer = config.run, config.optimizer
    if config.steps == 0:
        yield f"run.tokens is {run.tokens}, less than one run.batch of {run.batch}; train on more tokens or lower the batch"
        return
    if run.batch % run.data_parallel:
        yield (
            f"run.batch is {run.batch}, which {run.data_parallel} groups (run.data_parallel) cannot share evenly; make it "
            f"{max(1, run.batch // run.data_parallel) * run.data_parallel}, say"
        )
    if config.schedule_steps < config.steps:
        yield (
            f"run.schedule_tokens is {run.schedule_tokens}, less than run.tokens, {run.tokens}, so that the schedules end "
            "before the run; raise it, or leave it out"
        )
        return
    steps = config.schedule_steps
    longest = steps - round(optimizer.decay * steps)
    if optimizer.warmup_steps is not None and optimizer.warmup_steps > longest:
        yield (
            f"optimizer.warmup_steps is {optimizer.warmup_steps}, but of {steps} steps (run.tokens / run.batch) "
            f"{longest} come before the decay; use at most {longest}, or train on more tokens"
        )
    if 0 < optimizer.skip_above <= 1:
        yield (
            f"optimizer.skip_above is {optimizer.skip_above}, which would skip usual steps; use more than 1, or 0 to skip none"
        )
    if run.batch % (run.accumulate * run.data_parallel):
        groups = f" in each of {run.data_parallel} groups (run.data_parallel)" if run.data_parallel > 1 else ""
        size = run.accumulate * run.data_parallel
        yield (
            f"run.accumulate is {run.accumulate}, parts into which run.batch, {run.batch}, cannot be divided{groups}; "
            f"use a batch of {-(-run.batch // size) * size}, or another number of parts"
        )
    if (every := config.evaluation.every_steps) is not None and every > config.steps:
        yield (
            f"evaluation.every_steps is {every}, more than the run's {config.steps} steps; leave it out, or use 0 to evaluate "
            "at the end only"
        )
    if config.data.buffer_tokens < run.batch:
        yield (
            f"data.buffer_tokens is {config.data.buffer_tokens}, less than one run.batch of {run.batch}; "
            f"make the buffer several batches, {16 * run.batch} say"
        )


def _value(config: TrainingConfig, key: str) -> Any:
    section, name = key.split(".")
    value = getattr(getattr(config, section), name)
    return "null" if value is None else value


def _default(config: TrainingConfig, key: str) -> Any:
    section, name = key.split(".")
    default = type(getattr(config, section)).model_fields[name].default
    return "null" if default is None else default
