"""`circuit-tracer attribute`: trace prompts. Flags and defaults are circuit-tracer's where it has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options, targets
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.cli.outputs import Outputs
from circuit_tracer.cli.prompts import PromptJob, read_jobs, template_arguments
from circuit_tracer.cli.serve import PORT, FeaturesDir, Labels, Port, chosen_labels, keep_known
from circuit_tracer.cli.serve import run as run_server
from circuit_tracer.cli.stopping import Stopping
from circuit_tracer.errors import InputError
from circuit_tracer.progress import told

if TYPE_CHECKING:
    from circuit_tracer.graph import Graph
    from circuit_tracer.ranks import Ranks
    from circuit_tracer.replacement_model import ReplacementModel


def attribute(
    *,
    prompt: Annotated[str | None, options.text("-p", "--prompt", help="Text to trace.")] = None,
    chosen: ModelOptions,
    output: Annotated[
        Path | None,
        options.output("Graph file: .safetensors, or .pt for circuit-tracer's format.", "--graph-output-path"),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", help="Trace each line of this file; - is standard input.")
    ] = None,
    prompting: options.Prompting,
    target: Annotated[list[str] | None, targets.OPTION] = None,
    limits: options.Limits,
    backend: Annotated[
        Literal["transformerlens", "nnsight"],
        typer.Option("--backend", help="Accepted for circuit-tracer's scripts; has no effect."),
    ] = "transformerlens",
    slug: options.Slug = None,
    graph_file_dir: options.GraphFileDir = None,
    pruning: options.Pruning,
    labels: Labels = None,
    json: options.Json = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on after an interruption: leave out prompts that are traced, go on in one that is begun.",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show progress and the memory plan.")] = False,
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
    jobs = read_jobs(prompt, prompt_file, prompting.chat, slug, template_arguments(prompting.chat_option))
    outputs = Outputs(
        output,
        _viewer_folder(graph_file_dir, slug, jobs, prompt_file is not None),
        pruning,
        several=prompt_file is not None,
        overwrite=overwrite,
        resume=resume,
    )
    if labels is not None and outputs.folder is None and (output is None or output.suffix != ".safetensors"):
        raise InputError(
            "--labels stay in a graph's own file and in viewers' files: end -o in .safetensors, or add --slug NAME and "
            "--graph-file-dir FOLDER"
        )
    if outputs.path is None and outputs.folder is None and not json:
        raise InputError("say where the graph goes: -o FILE, or --slug NAME with --graph-file-dir FOLDER (or --json)")
    outputs = outputs.check([job.slug for job in jobs])
    ranks = _ranks(chosen)
    if resume:
        jobs = _still_to_do(jobs, outputs, ranks)
    settings: dict[str, Any] = {
        **limits.arguments(chosen.of_neurons),
        **prompting.arguments(),
        "attribution_targets": targets.read_targets(target) if target else None,
        "verbose": verbose,
        "ranks": ranks,
    }
    chosen_labels(labels, chosen.shipped)  # before the work, what cannot be read
    loaded = chosen.open(traces=True)

    def keep(graph: Graph) -> None:
        keep_known(graph, labels, chosen.shipped, features_dir)

    with Stopping() as stopping:
        for number, job in enumerate(jobs, start=1):
            _trace(job, loaded, settings, outputs, json, stopping, keep)
            if stopping.asked and number < len(jobs):
                raise KeyboardInterrupt(f"interrupted: {number} of {len(jobs)} prompts are traced; --resume goes on")
            if stopping.asked:
                raise KeyboardInterrupt("interrupted when all was written")
    ranks.close()
    if server and graph_file_dir is not None and ranks.first:
        run_server(graph_file_dir, port, features_dir, loaded, chosen.shipped, labels=labels, quiet=json)


def _ranks(chosen: ModelOptions) -> Ranks:
    """This process among those that torchrun started."""
    from circuit_tracer.ranks import Ranks

    return Ranks.from_environment(chosen.place()[0])


def _still_to_do(jobs: list[PromptJob], outputs: Outputs, ranks: Ranks) -> list[PromptJob]:
    import torch

    # what the first process finds counts: files may lie where others do not see them
    present = ranks.broadcast(torch.tensor([outputs.present(job.slug) for job in jobs], dtype=torch.uint8))
    left = [job for job, there in zip(jobs, present.tolist(), strict=True) if not there]
    if ranks.first:
        typer.echo(f"{len(jobs) - len(left)} of {len(jobs)} prompts are traced already", err=True)
    if not left:
        ranks.close()
        raise typer.Exit
    return left


def _trace(
    job: PromptJob,
    model: ReplacementModel,
    settings: dict[str, Any],
    outputs: Outputs,
    json: bool,
    stopping: Stopping,
    keep: Callable[[Graph], None],
) -> None:
    """Trace a prompt, or go on where it was interrupted, and write the graph, with what `keep` puts into it. Raises
    KeyboardInterrupt when what an interrupt left is written.
    """
    from circuit_tracer.attribution.attribute import attribute as trace
    from circuit_tracer.cli.summary import as_text
    from circuit_tracer.graph.summary import summarise

    alone, verbose = settings["ranks"].world == 1, settings["verbose"]
    resume = outputs.unfinished(job.slug) if outputs.resume and alone else None
    stopping.begin()
    with told() as shown:

        def progress(stage: str, done: int, total: int) -> None:
            stopping.progress(stage, done, total)
            shown(stage, done, total)

        graph = trace(job.tokenized(model), model, **settings, progress=progress, resume=resume)
    if not settings["ranks"].first:
        return
    keep(graph)
    interrupted = bool(graph.provenance.get("interrupted"))
    files = outputs.write_unfinished(graph, job.slug) if interrupted else outputs.write(graph, job.slug)
    summary = summarise(graph)
    if json:
        typer.echo(options.dump({"slug": job.slug or None, **summary, "files": [str(path) for path in files]}))
    else:
        typer.echo(as_text(summary, files, verbose) + "\n")
    if interrupted:
        kept = f"{files[0]} holds what was done; the same command with --resume goes on" if files else "nothing is kept"
        raise KeyboardInterrupt(f"interrupted: {kept}")


def _viewer_folder(folder: Path | None, slug: str | None, jobs: list[PromptJob], from_file: bool) -> Path | None:
    """The folder, if viewer files are wanted and can be named; prompts of a file name themselves."""
    if folder is not None and (slug or from_file):
        return folder
    if folder is not None or (slug and not from_file):
        typer.echo("warning: viewer files need both --slug and --graph-file-dir; none will be written", err=True)
    return None
