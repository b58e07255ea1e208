"""`circuit-tracer push`: a trained dictionary to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuit_tracer.cli import options
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    from circuit_tracer.training.export.push import Publication


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a dictionary, or of a training run.")],
    repo_id: Annotated[
        str | None, typer.Argument(metavar="[OWNER/NAME]", help="Repository of the hub; made if needed.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the files; upload nothing.")] = False,
    output: Annotated[
        Path | None, options.output("Write the files into this empty folder instead of uploading.")
    ] = None,
    json: options.Json = False,
) -> dict[str, str]:
    """Publish config, card and weights in one commit.

    Needs a token with write permission: `hf auth login`, or HF_TOKEN.
    """
    from circuit_tracer.training.export.push import check_repo_id, collect, copy_to
    from circuit_tracer.training.export.push import push as upload

    if (repo_id is None) == (output is None) and not dry_run:
        raise InputError("say where to: OWNER/NAME of a repository, or -o FOLDER (one of them)")
    if private and output is not None:
        raise InputError("--private is about a repository; leave it out with -o")
    if repo_id is not None:
        check_repo_id(repo_id)
    publication = collect(folder)
    address = None
    if not dry_run:
        address = (
            str(copy_to(publication, output)) if output is not None else upload(publication, str(repo_id), private)
        )
    if json:
        typer.echo(options.dump(_described(publication, address)))
    elif address is None:
        _show(publication)
    elif output is not None:
        typer.echo(f"wrote {len(publication.files)} files to {address}")
    else:
        typer.echo(f"pushed {len(publication.files)} files ({_size(publication.bytes)}): {address}")
    return {"kind": "dry run"} if dry_run else {}


def _described(publication: Publication, address: str | None) -> dict[str, Any]:
    return {
        "files": list(publication.files),
        "bytes": publication.bytes,
        "left_out": list(publication.left_out),
        "to": address,
    }


def _show(publication: Publication) -> None:
    for name, path in publication.files.items():
        typer.echo(f"{_size(path.stat().st_size):>10}  {name}")
    typer.echo(f"{_size(publication.bytes):>10}  in {len(publication.files)} files")
    if publication.left_out:
        typer.echo(f"left out: {', '.join(publication.left_out)}")


def _size(n_bytes: int) -> str:
    from pydantic import ByteSize

    return ByteSize(n_bytes).human_readable(decimal=True, separator=" ")
