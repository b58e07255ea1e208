"""`circuit-tracer plan`: what memory a trace would take, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.attribution.plan import MemoryPlan
    from circuit_tracer.transcoders.base import Transcoders


def plan(
    *,
    chosen: ModelOptions,
    tokens: Annotated[int | None, typer.Option("--tokens", min=2, help="Length of the prompt.")] = None,
    prompt: Annotated[
        str | None,
        options.text("-p", "--prompt", help="The prompt itself, to be counted; default with --demo: the demo's."),
    ] = None,
    active: Annotated[
        float | None,
        typer.Option("--active", help="Features active a layer and token; default: k of TopK dictionaries, else 50."),
    ] = None,
    limits: options.Limits,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that share the rows.")] = 1,
    json: options.Json = False,
) -> None:
    """Say what memory a trace would take, phase by phase, and how it would be made to fit.

    Reads configurations and the headers of files; no weights are loaded.
    """
    if tokens is None and prompt is None and chosen.demo:
        from circuit_tracer.demo import PROMPT

        prompt = PROMPT
    if (tokens is None) == (prompt is None):
        raise InputError("say how long the prompt is: --tokens NUMBER, or the prompt itself with -p (not both)")
    from circuit_tracer.attribution.forecast import active_features, forecast
    from circuit_tracer.models.outline import outline
    from circuit_tracer.sizes import parse_bytes
    from circuit_tracer.transcoders.neurons import Neurons

    device, dtype = chosen.place()
    chosen.require_without("attention", "adapter", "elsewhere")
    if chosen.of_neurons:
        name = chosen.model_name({})
        outlined = outline(name, chosen.revision)
        transcoders: Transcoders = Neurons(outlined, checked=False)
    else:
        on_disk = replace(chosen, device="cpu", lazy_encoder=True, lazy_decoder=True)
        transcoders, config = on_disk.dictionary(chosen.transcoders)
        name = chosen.model_name(config)
        outlined = outline(name, chosen.revision)
    made = forecast(
        outlined,
        transcoders,
        _count(prompt, name, chosen) if tokens is None else tokens,
        device=device,
        dtype=dtype,
        active=active,
        max_feature_nodes=limits.arguments(chosen.of_neurons)["max_feature_nodes"],
        n_targets=limits.max_n_logits,
        batch_size=limits.batch_size,
        memory=None if limits.memory is None else parse_bytes(limits.memory),
        may_keep_rows=limits.offload is None,
        lazy_encoder=chosen.lazy_encoder,
        lazy_decoder=chosen.lazy_decoder,
        processes=processes,
    )
    if json:
        typer.echo(options.dump(_plain(made)))
        return
    work = made.work
    assumed = "" if active else f" ({active_features(transcoders, active):g} a layer and token are assumed: --active)"
    if transcoders.exact:
        typer.echo(f"{work.n_pos} tokens, {work.n_rows} neurons as nodes (--max-feature-nodes)\n{made.table()}")
        return
    typer.echo(f"{work.n_pos} tokens, {work.n_active} active features{assumed}, {work.n_rows} expanded\n{made.table()}")


def _plain(made: MemoryPlan) -> dict[str, object]:
    work = made.work
    return {
        "tokens": work.n_pos,
        "active_features": work.n_active,
        "feature_nodes": work.n_rows,
        "peak": made.peak,
        "budget": made.budget,
        "held": made.held,
        "keep_patterns": made.keep_patterns,
        "keep_decoder_rows": made.keep_decoder_rows,
        "block_rows": made.block_rows,
        "phases": made.phases,
    }


def _count(prompt: str | None, name: str, chosen: ModelOptions) -> int:
    from circuit_tracer.models.loading import read_tokenizer
    from circuit_tracer.models.sources import pretrained_source
    from circuit_tracer.models.tokenization import tokenize

    tokenizer = read_tokenizer(name, pretrained_source(name, chosen.revision))
    return len(tokenize(prompt or "", tokenizer, chosen.bos))
