"""`circuit-tracer patch`: activation patching between two prompts, as a table and a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuit_tracer.cli import options
from circuit_tracer.cli.completion import SITES, words
from circuit_tracer.cli.edit_options import read_features
from circuit_tracer.cli.intervene import layer_range
from circuit_tracer.cli.loading import ModelOptions
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.interventions import FeatureAt, Metric, PatchTable
    from circuit_tracer.replacement_model import ReplacementModel

WRITERS = {".csv": "to_csv", **dict.fromkeys((".png", ".svg", ".pdf"), "draw")}  # methods of PatchTable


def patch(
    *,
    clean: Annotated[str, options.text("-p", "--prompt", help="The clean prompt.")],
    corrupted: Annotated[str, options.text("-c", "--corrupted", help="The other prompt, of as many tokens.")],
    chosen: ModelOptions,
    answer: Annotated[
        str | None, options.text("--answer", help="Token that is judged (text, or id:123); default: both answers.")
    ] = None,
    instead: Annotated[
        str | None, options.text("--instead", help="Judge by the logit difference of --answer and this token.")
    ] = None,
    log_probability: Annotated[
        bool, typer.Option("--log-probability", help="Judge --answer by its log-probability, not its probability.")
    ] = False,
    noising: Annotated[
        bool, typer.Option("--noising", help="Put the corrupted into the clean run; by default the other way round.")
    ] = False,
    sites: Annotated[
        str,
        typer.Option(
            "--sites",
            autocompletion=words(*SITES, several=True),
            help="What is patched: of resid, attn_out, mlp_out, head, with commas; or none.",
        ),
    ] = "resid,attn_out,mlp_out",
    features: Annotated[
        str,
        typer.Option(
            "--features", help="Also features: how many of the strongest, or LAYER/FEATURE[@POSITION], with commas."
        ),
    ] = "0",
    layers: Annotated[str | None, typer.Option("--layers", help="Layers such as 3-8; default: all.")] = None,
    positions: Annotated[
        str | None, typer.Option("--positions", help="Positions such as 3,5,-1 or 2:5; default: each.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Patch all positions at once.")] = False,
    approximate: Annotated[
        int | None, typer.Option("--approximate", min=1, help="Estimate with so many backward passes instead.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Patches in a pass; does not change the result.")
    ] = 16,
    output: Annotated[
        list[Path] | None,
        options.output("Write the table (.csv) or a heat map (.png, .svg, .pdf; needs matplotlib). Repeatable."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many patches to show.")] = 15,
    json: options.Json = False,
) -> None:
    """Put activations of one prompt's run into another's, place by place, and see what changes the answer."""
    from circuit_tracer.files import require_writable_folder

    _check_answers(answer, instead, log_probability)
    also = _features(features)
    if approximate is not None and not isinstance(also, int):
        raise InputError("--approximate estimates the strongest features; say how many with --features, such as 20")
    for path in output or ():
        if path.suffix not in WRITERS:
            raise InputError(f"-o {path}: end it in {', '.join(WRITERS)}")
        require_writable_folder(path.parent)
    from circuit_tracer import interventions as do

    loaded = chosen.open()
    mode: Literal["denoising", "noising"] = "noising" if noising else "denoising"
    settings: dict[str, Any] = {
        "mode": mode,
        "sites": [] if sites == "none" else [site.strip() for site in sites.split(",")],
        "features": also,
        "layers": layer_range(layers),
        "positions": _positions(positions, together),
    }
    metric = _metric(loaded, answer, instead, log_probability)
    if approximate is None:
        table = do.activation_patching(loaded, clean, corrupted, metric, batch_size=batch_size, **settings)
    else:
        table = do.attribution_patching(loaded, clean, corrupted, metric, steps=approximate, **settings)
    files = [getattr(table, WRITERS[path.suffix])(path) for path in output or ()]
    typer.echo(options.dump(_described(table, files)) if json else _text(table, top, files))


def _check_answers(answer: str | None, instead: str | None, log_probability: bool) -> None:
    if answer is None and (instead is not None or log_probability):
        raise InputError("--instead and --log-probability judge --answer; name that token too")
    if instead is not None and log_probability:
        raise InputError("--instead asks for a logit difference and --log-probability for a probability; choose one")


def _features(text: str) -> int | list[FeatureAt]:
    """How many, or which."""
    if text.strip().isdecimal():
        return int(text)
    found = []
    for feature, place in read_features(text, {}):
        if place is not None and not isinstance(place, int):
            raise InputError(f"--features {text!r}: a feature's place must be one position, such as 3/120@6")
        found.append(feature._replace(position=place))
    return found


def _positions(text: str | None, together: bool) -> list[int] | Literal["together"] | None:
    """Numbers and ranges; a range has both ends, since the prompts' length is not known yet."""
    if together and text is not None:
        raise InputError("--positions patches one position at a time and --together all at once; choose one")
    if text is None:
        return "together" if together else None
    found: list[int] = []
    for item in text.split(","):
        first, colon, stop = item.partition(":")
        try:
            found += range(int(first), int(stop)) if colon else [int(first)]
        except ValueError as error:
            raise InputError(
                f"--positions {text!r}: {item.strip()!r} is no position; write numbers or ranges, such as 3,5,-1 or 2:5"
            ) from error
    return found


def _metric(model: ReplacementModel, answer: str | None, instead: str | None, log_probability: bool) -> Metric | None:
    from circuit_tracer import interventions as do

    if answer is None:
        return None
    token = options.token(answer)
    if instead is not None:
        return do.logit_difference(model, token, options.token(instead))
    return do.log_probability(model, token) if log_probability else do.probability(model, token)


def _described(table: PatchTable, files: list[Path]) -> dict[str, Any]:
    return {
        "mode": table.mode,
        "metric": table.metric,
        "base": table.base,
        "donor": table.donor,
        "estimated": table.estimated,
        "patches": table.rows(),
        "files": [str(path) for path in files],
    }


def _text(table: PatchTable, top: int, files: list[Path]) -> str:
    names = ("corrupted", "clean") if table.mode == "denoising" else ("clean", "corrupted")
    lines = [
        f"metric      {table.metric}: {table.base:.4f} {names[0]}, {table.donor:.4f} {names[1]}",
        f"patches     {len(table)}, {table.mode}{', estimated by gradients' if table.estimated else ''}; largest effects "
        f"(1: as {names[1]}):",
        "",
        f"{'site':<10}{'layer':>6}{'unit':>7}  {'token':<24}{'effect':>8}",
    ]
    for row in table.largest(top):
        unit = "" if row["unit"] is None else row["unit"]
        token = "all positions" if row["token"] is None else f"{row['position']} {row['token'].strip()}"
        lines.append(f"{row['site']:<10}{row['layer']:>6}{unit:>7}  {token:<24}{row['effect']:>+8.3f}")
    return "\n".join(lines + [f"wrote       {path}" for path in files])
