"""`circuit-tracer attribute`: trace prompts. Flags and defaults are circuit-tracer's where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.outputs import Outputs
from circuit_tracer.cli.prompts import PromptJob, read_jobs
from circuit_tracer.cli.serve import PORT, FeaturesDir, Labels, Port, chosen_labels
from circuit_tracer.cli.serve import run as run_server
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph
    from circuit_tracer.ranks import Ranks
    from circuit_tracer.replacement_model import ReplacementModel


def attribute(
    transcoder_set: Annotated[
        str | None,
        typer.Option(
            "-t", "--transcoder-set", help="Folder, or Hugging Face org/repo/folder@revision, of the transcoders."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to trace.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", help="Hugging Face id, folder or .gguf file; default: what the transcoders name."
        ),
    ] = None,
    graph_output_path: Annotated[
        Path | None,
        typer.Option("-o", "--graph-output-path", help="Graph file: .safetensors, or .pt for circuit-tracer's format."),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="Trace each line of this file; - is standard input.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="The prompt is a user message, a .json file of messages, or a JSON list of them."),
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="TOKEN",
            help="Explain this token instead of the most probable ones; text, or id:NUMBER. Repeatable.",
        ),
    ] = None,
    position: Annotated[int, typer.Option("--position", help="Where targets are read; -1 is the last token.")] = -1,
    max_n_logits: Annotated[int, typer.Option("--max-n-logits", min=1, help="Most targets to explain.")] = 10,
    desired_logit_prob: Annotated[
        float,
        typer.Option(
            "--desired-logit-prob", min=0.0, max=1.0, help="Explain targets until this probability is covered."
        ),
    ] = 0.95,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Most rows in flight; does not change the result.")
    ] = 256,
    max_feature_nodes: Annotated[
        int, typer.Option("--max-feature-nodes", min=0, help="Features that get a row of their own; 0 means all.")
    ] = 7500,
    zero_positions: Annotated[
        str | None,
        typer.Option(
            "--zero-positions", help="Positions without features, such as 0,1, or none; default: circuit-tracer's rule."
        ),
    ] = None,
    offload: Annotated[
        Literal["cpu", "disk"] | None,
        typer.Option("--offload", help="Read decoder rows again instead of keeping them."),
    ] = None,
    memory: options.Memory = None,
    keep_edge_mass: Annotated[
        float | None,
        typer.Option(
            "--keep-edge-mass",
            help="Share of each row's mass that its edges keep, such as 0.95; default: 1, or 0.98 beyond 512 tokens.",
        ),
    ] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = None,
    lazy_encoder: Annotated[
        bool, typer.Option("--lazy-encoder/--no-lazy-encoder", help="Leave encoders on disk.")
    ] = False,
    lazy_decoder: Annotated[
        bool, typer.Option("--lazy-decoder/--no-lazy-decoder", help="Leave decoders on disk.")
    ] = True,
    backend: Annotated[
        Literal["transformerlens", "nnsight"],
        typer.Option("--backend", help="Accepted for circuit-tracer's scripts; has no effect."),
    ] = "transformerlens",
    slug: options.Slug = None,
    graph_file_dir: options.GraphFileDir = None,
    node_threshold: options.NodeThreshold = 0.8,
    edge_threshold: options.EdgeThreshold = 0.98,
    policy: options.Policy = "circuit-tracer",
    labels: Labels = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the small model and transcoder that ship with the package.")
    ] = False,
    json: options.Json = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out prompts whose files are there: go on after an interruption.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show progress and the memory plan.")] = False,
    debug: options.Debug = False,
    server: Annotated[
        bool, typer.Option("--server", help="Then serve --graph-file-dir, and the model, to the browser until Ctrl-C.")
    ] = False,
    port: Port = PORT,
    features_dir: FeaturesDir = None,
) -> None:
    """Trace prompts to attribution graphs."""
    if server and (graph_file_dir is None or not (slug or prompt_file)):
        raise InputError(
            "--server shows the graphs of a folder: name it with --graph-file-dir, and the graph with --slug"
        )
    if demo != (transcoder_set is None):
        raise InputError(
            "name the transcoders with -t, or use --demo for the model that ships with the package (not both)"
        )
    jobs = read_jobs(prompt, prompt_file, chat, slug)
    outputs = Outputs(
        graph_output_path,
        _viewer_folder(graph_file_dir, slug, jobs, prompt_file is not None),
        node_threshold,
        edge_threshold,
        policy,
        several=prompt_file is not None,
        labels=chosen_labels(labels, demo),
    )
    if labels is not None and outputs.folder is None:
        raise InputError("--labels name features in the viewer's files: add --slug NAME and --graph-file-dir FOLDER")
    if outputs.path is None and outputs.folder is None and not json:
        raise InputError("say where the graph goes: -o FILE, or --slug NAME with --graph-file-dir FOLDER (or --json)")
    outputs.check([job.slug for job in jobs])
    ranks = _ranks(device)
    if resume:
        jobs = _still_to_do(jobs, outputs, ranks)
    settings: dict[str, Any] = {
        "attribution_targets": [_target(text) for text in target] if target else None,
        "max_n_logits": max_n_logits,
        "desired_logit_prob": desired_logit_prob,
        "batch_size": batch_size,
        "max_feature_nodes": max_feature_nodes,
        "offload": offload,
        "verbose": verbose,
        "zero_positions": options.integers(zero_positions, "--zero-positions"),
        "position": position,
        "memory": memory,
        "keep_edge_mass": keep_edge_mass,
        "ranks": ranks,
    }
    if not verbose:
        options.quiet_loading()
    loaded = _load(transcoder_set, model, backend, device, dtype, lazy_encoder, lazy_decoder)
    for number, job in enumerate(jobs, start=1):
        graph = _trace(job, loaded, settings, outputs, json, verbose)
        if graph.provenance.get("interrupted") and number < len(jobs):
            raise KeyboardInterrupt
    ranks.close()
    if server and graph_file_dir is not None and ranks.first:
        run_server(graph_file_dir, port, features_dir, loaded, demo, labels=labels)


def _ranks(device: str | None) -> Ranks:
    """This process among those that torchrun started."""
    from circuit_tracer.ranks import Ranks

    return Ranks.from_environment(options.place(device))


def _still_to_do(jobs: list[PromptJob], outputs: Outputs, ranks: Ranks) -> list[PromptJob]:
    import torch

    # what the first process finds counts: files may lie where others do not see them
    present = ranks.broadcast(torch.tensor([outputs.present(job.slug) for job in jobs], dtype=torch.uint8))
    left = [job for job, there in zip(jobs, present.tolist(), strict=True) if not there]
    if ranks.first:
        typer.echo(f"{len(jobs) - len(left)} of {len(jobs)} prompts are traced already", err=True)
    if not left:
        ranks.close()  # a process that ends without may abort
        raise typer.Exit
    return left


def _trace(
    job: PromptJob, model: ReplacementModel, settings: dict[str, Any], outputs: Outputs, json: bool, verbose: bool
) -> Graph:
    from circuit_tracer.attribution.attribute import attribute as trace
    from circuit_tracer.cli.summary import as_text, summarise

    graph = trace(job.tokenized(model), model, **settings)
    if not settings["ranks"].first:
        return graph
    files = outputs.write(graph, job.slug)
    summary = summarise(graph)
    if json:
        typer.echo(options.dump({"slug": job.slug or None, **summary, "files": [str(path) for path in files]}))
    else:
        typer.echo(as_text(summary, files, verbose) + "\n")
    return graph


def _load(
    transcoder_set: str | None,
    model: str | None,
    backend: Literal["transformerlens", "nnsight"],
    device: str | None,
    dtype: str,
    lazy_encoder: bool,
    lazy_decoder: bool,
) -> ReplacementModel:
    from circuit_tracer.models.loading import resolve_dtype

    place, kind = options.place(device), resolve_dtype(dtype)
    if transcoder_set is None:
        from circuit_tracer.demo.show import load_demo

        if device not in (None, "cpu"):
            raise InputError(f"the demo's model is small and runs on the cpu; leave --device {device} out")
        return load_demo(dtype=kind)
    from circuit_tracer.replacement_model import ReplacementModel
    from circuit_tracer.transcoders.loading import load_transcoder_from_hub

    transcoders, config = load_transcoder_from_hub(
        transcoder_set, device=place, dtype=kind, lazy_encoder=lazy_encoder, lazy_decoder=lazy_decoder
    )
    name = model or config.get("model_name")
    if not name:
        raise InputError(f"the transcoders {transcoder_set} do not name their model; name it with -m")
    return ReplacementModel.from_pretrained_and_transcoders(name, transcoders, backend, place, kind)


def _viewer_folder(folder: Path | None, slug: str | None, jobs: list[PromptJob], from_file: bool) -> Path | None:
    """The folder, if viewer files are wanted and can be named; prompts of a file name themselves."""
    if folder is not None and (slug or from_file):
        return folder
    if folder is not None or (slug and not from_file):
        typer.echo("warning: viewer files need both --slug and --graph-file-dir; none will be written", err=True)
    return None


def _target(text: str) -> str | int:
    """A token by its text, or by its id in the form id:123."""
    name, separator, number = text.partition(":")
    return int(number) if name == "id" and separator and number.isdecimal() else text
