"""`circuit-tracer info`: what is this graph, transcoder or model, and does the transcoder fit the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import graphs
from circuit_tracer.cli.loading import HookOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.transcoders.base import Transcoders


_MADE_OF_GRAPHS = (".html", ".md", ".svg", ".png", ".pdf", ".csv")


def info(
    what: Annotated[
        str,
        typer.Argument(
            autocompletion=graphs,
            help="Graph file; folder or hub id of transcoders or of a model; folder of a run; .gguf file; neurons (with -m).",
        ),
    ],
    *,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Say whether the transcoders fit this model.")
    ] = None,
    hooks: HookOptions,
    json: options.Json = False,
) -> dict[str, str]:
    """Say what a graph, transcoder or model is.

    Weights are not loaded; of a hub id, only the configuration is read.
    """
    from circuit_tracer.transcoders.neurons import NEURONS

    path = Path(what)
    found: dict[str, Any]
    if what == NEURONS:
        found = _neurons(model, hooks)
        typer.echo(options.dump(found) if json else _text(found))
        return {"kind": found["what"]}
    if model is not None and (path.is_file() or (path / "config.json").is_file()):
        raise InputError(f"-m says whether transcoders fit a model, and {what} holds none; leave it out")
    if path.suffix != ".gguf" and options.means_a_file(what):
        found = _graph(path)
    elif path.suffix == ".gguf" or (path / "config.json").is_file():
        found = _model(what)
    elif path.is_dir() and _is_run(path):
        found = _run(what)
    else:
        _require_place(what)
        found = _folder_or_hub(what, model, hooks)
    typer.echo(options.dump(found) if json else _text(found))
    return {"kind": found["what"]}


def _require_place(what: str) -> None:
    """Refuse what is no path here and cannot be a hub id, which has a name on either side of a slash."""
    from circuit_tracer.files import near_names
    from circuit_tracer.transcoders.references import ALIASES
    from circuit_tracer.transcoders.selection import split_selection

    name = split_selection(what)[0].partition("@")[0]
    if "/" in name or name in ALIASES or Path(name).exists():
        return
    near = near_names(name, folders=True) or "A model or dictionary of the hub is named org/repo."
    raise InputError(f"no file or folder {what} here. {near}")


def _neurons(model: str | None, hooks: HookOptions) -> dict[str, Any]:
    from circuit_tracer.models.outline import outline
    from circuit_tracer.transcoders.neurons import NOT_MONOSEMANTIC, Neurons

    if model is None or any(vars(hooks).values()):
        raise InputError("neurons are a model's own, without files: name the model with -m, and no hooks or selection")
    neurons = Neurons(outline(model), checked=False)
    return {
        "what": "neurons of a model",
        "kind": neurons.kind,
        "layers": neurons.n_layers,
        "neurons_a_layer": neurons.d_transcoder // 2,
        "features_a_layer": neurons.d_transcoder,
        "d_model": neurons.d_model,
        "reads": neurons.feature_input_hook,
        "writes": neurons.feature_output_hook,
        "fits": model,
        "note": NOT_MONOSEMANTIC,
    }


def _graph(path: Path) -> dict[str, Any]:
    from circuit_tracer.graph.summary import summarise

    if path.suffix in _MADE_OF_GRAPHS and path.is_file():
        raise InputError(f"{path} was made of a graph and is none; open it with what opens {path.suffix} files")
    if path.suffix == ".json" or path.name.endswith(".json.gz"):
        from circuit_tracer.graph.files.read_json import from_json

        viewed = from_json(path)
        metadata = viewed.graph["metadata"]
        kept = {name: metadata[name] for name in ("slug", "scan", "prompt", "interrupted") if name in metadata}
        counts = {"nodes": viewed.number_of_nodes(), "links": viewed.number_of_edges()}
        return {"what": "graph file for viewers", **kept, **counts, "repairs": viewed.graph["repairs"]}
    from circuit_tracer.graph.files.formats import read_graph

    return {"what": "graph", **summarise(read_graph(path))}


def _is_run(folder: Path) -> bool:
    from circuit_tracer.viewer.server.runs import is_run

    return is_run(folder)


def _run(folder: str) -> dict[str, Any]:
    from collections import Counter

    from circuit_tracer.many import open_run

    run = open_run(folder)
    opening = run.settings["opening"]
    counts = Counter(each["status"] for each in run.table)
    states = {state: counts[state] for state in ("done", "failed", "waiting")}
    named = {name: opening[name] for name in ("transcoders", "model", "dtype")}
    return {"what": "run over many prompts", "rows": len(run.table), **states, **named}


def _model(name: str) -> dict[str, Any]:
    from circuit_tracer.models.outline import outline

    parts = outline(name)
    weights = sum(parameter.numel() for parameter in parts.model.parameters())
    return {"what": "model", **parts.config.to_dict(), "parameters": weights, "supported": True}


def _folder_or_hub(name: str, model: str | None, hooks: HookOptions) -> dict[str, Any]:
    from circuit_tracer.transcoders.loading import described_on_hub
    from circuit_tracer.transcoders.references import HubReference, resolve

    reference, _ = resolve(name, hooks.select)
    if not isinstance(reference, HubReference):
        return _transcoders(name, model, hooks)
    config = described_on_hub(reference)
    if config is None:
        return _model(name)
    if model is not None:
        config = {**config, "fits": f"unknown until its files are here; made for {config.get('model_name')}"}
    return {"what": "transcoders on the Hugging Face hub", **config}


def _transcoders(name: str, model: str | None, hooks: HookOptions) -> dict[str, Any]:
    loaded, config = hooks.dictionary(name)
    if loaded.is_autoencoder:
        return _autoencoders(name, model, loaded, config)
    found: dict[str, Any] = {
        "what": "transcoders",
        "kind": loaded.kind,
        "layers": loaded.n_layers,
        **({} if len(loaded.layers) == loaded.n_layers else {"layers_with_transcoders": list(loaded.layers)}),
        "features_a_layer": loaded.d_transcoder,
        "d_model": loaded.d_model,
        "activation": loaded.activation(loaded.layers[0]).name,
        "reads": loaded.feature_input_hook,
        "writes": loaded.feature_output_hook,
        "skip_connection": loaded.skip_connection,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "scan": loaded.scan,
        "model_name": config.get("model_name"),
    }
    if "l0" in config:
        found["l0_taken"] = config["l0"]
    if model is not None:
        loaded = _fitted(model, loaded)
        found |= {"layers": loaded.n_layers, "fits": model}
        if len(loaded.layers) < loaded.n_layers:
            found["layers_with_transcoders"] = list(loaded.layers)
    return found


def _autoencoders(name: str, model: str | None, loaded: Transcoders, config: dict[str, Any]) -> dict[str, Any]:
    from circuit_tracer.transcoders.attention import PLACES

    found: dict[str, Any] = {
        "what": "sparse autoencoders",
        "layers_with_autoencoders": list(loaded.layers),
        "features_a_layer": loaded.d_transcoder,
        "d_model": loaded.d_model,
        "activation": loaded.activation(loaded.layers[0]).name,
        "reads_and_writes": loaded.feature_input_hook,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "model_name": config.get("model_name"),
        "use": f"-t {name} of evaluate, features build, intervene and steer; they replace no MLP, so no prompt is traced with "
        "them, but attribute --target sae:FOLDER:LAYER:POSITION:FEATURE explains one of their features",
    }
    if loaded.feature_input_hook in PLACES:
        found["use"] += f"; --attention {name} makes their features nodes of a graph"
    if "l0" in config:
        found["l0_taken"] = config["l0"]
    if model is not None:
        found["fits"] = model if _fitted(model, loaded) else None
    return found


def _fitted(model: str, transcoders: Transcoders) -> Transcoders:
    from circuit_tracer.attribution.prompt import paired
    from circuit_tracer.models.outline import outline
    from circuit_tracer.models.sites import check_hooks

    parts = outline(model)
    check_hooks(parts, transcoders.feature_input_hook, transcoders.feature_output_hook)
    return paired(parts, transcoders)


def _text(found: dict[str, Any]) -> str:
    if "targets" in found:
        from circuit_tracer.cli.summary import as_text

        return as_text(found, verbose=True)
    shown = {name.replace("_", " "): value for name, value in found.items() if value not in (None, [])}
    width = max(24, 2 + max(map(len, shown)))
    return "\n".join(f"{name:<{width}}{value}" for name, value in shown.items())
