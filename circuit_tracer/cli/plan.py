"""`circuit-tracer plan`: what memory a trace would take, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.attribution.plan import MemoryPlan


def plan(
    transcoder_set: Annotated[
        str,
        typer.Option(
            "-t", "--transcoder-set", help="Folder, or Hugging Face org/repo/folder@revision, of the transcoders."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Hugging Face id or folder; default: what the transcoders name."),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=2, help="Length of the prompt.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="The prompt itself, to be counted.")] = None,
    active: Annotated[
        float | None,
        typer.Option("--active", help="Features active a layer and token; default: k of TopK dictionaries, else 50."),
    ] = None,
    max_feature_nodes: Annotated[
        int, typer.Option("--max-feature-nodes", min=0, help="Features that get a row of their own; 0 means all.")
    ] = 7500,
    max_n_logits: Annotated[int, typer.Option("--max-n-logits", min=1, help="Most targets to explain.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Most rows in flight.")] = 256,
    memory: options.Memory = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes that share the rows.")] = 1,
    offload: Annotated[
        Literal["cpu", "disk"] | None,
        typer.Option("--offload", help="Read decoder rows again instead of keeping them."),
    ] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    lazy_encoder: Annotated[
        bool, typer.Option("--lazy-encoder/--no-lazy-encoder", help="Leave encoders on disk.")
    ] = False,
    lazy_decoder: Annotated[
        bool, typer.Option("--lazy-decoder/--no-lazy-decoder", help="Leave decoders on disk.")
    ] = True,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say what memory a trace would take, phase by phase, and how it would be made to fit.

    Reads configurations and the headers of files; no weights are loaded.
    """
    if (tokens is None) == (prompt is None):
        raise InputError("say how long the prompt is: --tokens NUMBER, or the prompt itself with -p (not both)")
    from circuit_tracer.attribution.forecast import active_features, forecast
    from circuit_tracer.models.loading import resolve_dtype
    from circuit_tracer.models.outline import outline
    from circuit_tracer.sizes import parse_bytes
    from circuit_tracer.transcoders.loading import load_transcoder_from_hub

    place, kind = options.place(device), resolve_dtype(dtype)
    transcoders, config = load_transcoder_from_hub(
        transcoder_set, device="cpu", dtype=kind, lazy_encoder=True, lazy_decoder=True
    )
    name = model or config.get("model_name")
    if not name:
        raise InputError(f"the transcoders {transcoder_set} do not name their model; name it with -m")
    made = forecast(
        outline(name),
        transcoders,
        _count(prompt, name) if tokens is None else tokens,
        device=place,
        dtype=kind,
        active=active,
        max_feature_nodes=max_feature_nodes,
        n_targets=max_n_logits,
        batch_size=batch_size,
        memory=None if memory is None else parse_bytes(memory),
        may_keep_rows=offload is None,
        lazy_encoder=lazy_encoder,
        lazy_decoder=lazy_decoder,
        processes=processes,
    )
    if json:
        typer.echo(options.dump(_plain(made)))
        return
    work = made.work
    assumed = "" if active else f" ({active_features(transcoders, active):g} a layer and token are assumed: --active)"
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


def _count(prompt: str | None, name: str) -> int:
    from transformers import AutoTokenizer

    from circuit_tracer.models.loading import pretrained_source
    from circuit_tracer.models.tokenization import tokenize

    source, extra = pretrained_source(name)
    return len(tokenize(prompt or "", AutoTokenizer.from_pretrained(source, **extra)))
