"""`circuit-tracer steer`: generate with features or directions changed, beside the text without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.edit_options import EditOptions
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from circuit_tracer.interventions import Direction, Edit, Steering
    from circuit_tracer.probes.generation import GenerationWatch


def steer(
    *,
    prompt: Annotated[str, options.text("-p", "--prompt", help="Text to continue.")],
    chosen: ModelOptions,
    changes: EditOptions,
    direction: Annotated[
        list[str] | None,
        typer.Option("--direction", help="LAYER:FILE=STRENGTH: a vector (one tensor, .safetensors) behind a layer."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to generate.")] = 40,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: always the most probable token.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Draw from the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from the tokens that hold this share.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text.")] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep keys and values; changes logits by rounding only.")
    ] = True,
    watch: Annotated[
        list[str] | None,
        typer.Option("--watch", help="A probe, or LAYER/FEATURE>VALUE, that looks at every token. Repeatable."),
    ] = None,
    steer_when: Annotated[
        list[str] | None,
        typer.Option(
            "--steer-when", help="The same, and nothing is changed before it has fired; then from the next token on."
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out the text without interventions.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the steered text as it grows.")] = False,
    json: options.Json = False,
) -> None:
    """Continue a prompt with features or directions changed, and without.

    FEATURES are LAYER/FEATURE[@PLACE], everywhere without a place: --scale 1/45=10, --set 1/45@generated=8.
    """
    if stream and json:
        raise InputError("--stream prints text and --json nothing but JSON; choose one")
    edits: list[Edit | Direction] = [*changes.read(), *(_direction(text) for text in direction or ())]
    if not edits and (steer_when or not watch):
        raise InputError(
            "say what to change: --set, --scale, --ablate, --add, --take or --direction, such as --scale 1/45=10"
        )
    from circuit_tracer.interventions import Sampling
    from circuit_tracer.interventions import steer as generate

    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed, tuple(stop or ()))
    watched = _probes(watch, steer_when)
    loaded = chosen.open()
    watcher = None if watched is None else watched(loaded)
    shown = _print if stream else None
    both = bool(edits) and not alone  # nothing changed: both texts would be one
    result = generate(loaded, prompt, edits, sampling, compare=both, cache=cache, on_text=shown, watcher=watcher)
    if stream:
        typer.echo("\n")
    if json:
        typer.echo(options.dump(describe(result) | ({} if watcher is None else {"watched": watcher.to_json()})))
        return
    typer.echo(_text(result))
    if watcher is not None:
        typer.echo("\n".join(["", *watcher.lines()]))


def describe(result: Steering) -> dict[str, Any]:
    """A generation as JSON values."""
    both = {"steered": result.steered, "unsteered": result.unsteered}
    return {
        "prompt": result.prompt,
        "interventions": [str(each) for each in result.interventions],
        **{
            name: None if each is None else {"text": each.text, "ids": each.ids.tolist(), "finish": each.finish}
            for name, each in both.items()
        },
    }


def _probes(watch: list[str] | None, steer_when: list[str] | None) -> Callable[[Any], GenerationWatch] | None:
    """Makes what looks on, of a model; probes are read before it is."""
    if not watch and not steer_when:
        return None
    from functools import partial

    from circuit_tracer.probes.generation import GenerationWatch
    from circuit_tracer.probes.monitor import named_probes

    looking, deciding = named_probes(watch or ()), named_probes(steer_when or ())
    known = {probe.name for probe in deciding}
    every = [*deciding, *(probe for probe in looking if probe.name not in known)]
    return partial(GenerationWatch, probes=every, steer_when=sorted(known) if deciding else None)


def _print(text: str) -> None:
    typer.echo(text, nl=False)


def _text(result: Steering) -> str:
    import shutil

    shown = "\n".join(f"changed     {each}" for each in result.interventions)
    shown += "\n\n" if shown else ""
    return f"{shown}{result.side_by_side(min(160, shutil.get_terminal_size().columns))}"


def _direction(text: str) -> Direction:
    from circuit_tracer.interventions import Direction

    place, equals, number = text.rpartition("=")
    layer, colon, name = place.partition(":")
    try:
        depth, strength = int(layer), float(number)
    except ValueError:
        equals = ""
    if not (equals and colon and name):
        raise InputError(f"--direction {text!r}: write LAYER:FILE=STRENGTH, such as 5:french.safetensors=4")
    return Direction(depth, _vector(Path(name)), strength, name=Path(name).stem)


def _vector(path: Path) -> Any:
    from circuit_tracer.files.tensors import open_tensor_file

    file = open_tensor_file(path)
    if len(file.entries) != 1:
        raise FileFormatError(f"{path} holds {len(file.entries)} tensors; a direction is one tensor of d_model numbers")
    vector = file.tensor(*file.entries).clone()
    if not vector.is_floating_point() or not bool(vector.isfinite().all()):
        raise FileFormatError(f"{path} holds {vector.dtype}; a direction is of finite floating point numbers")
    return vector
