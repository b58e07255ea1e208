"""Downloads from the Hugging Face hub, through its own client; failures become errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from circuit_tracer.errors import InputError, first_line
from circuit_tracer.hub_connection import ask_hub, why_offline
from circuit_tracer.progress import doing, told
from circuit_tracer.transcoders.references import HubReference, parse_hub_uri

Result = TypeVar("Result")


class NoSuchFile(InputError):
    """A repository that was reached, and has no such file."""


_PARALLEL_DOWNLOADS = 8


def download_file(reference: HubReference, name: str | None = None) -> Path:
    """Local path of file ``name`` in the folder ``reference`` (or of the file that it names)."""
    from huggingface_hub import hf_hub_download

    path = "/".join(part for part in (reference.path, name) if part)
    return Path(_asking(reference, path, lambda: hf_hub_download(reference.repo_id, path, revision=reference.revision)))


def optional_file(reference: HubReference, name: str) -> Path | None:
    """As `download_file`; None if the repository, or what has been downloaded of it where the hub cannot be asked, has none."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return download_file(reference, name)
    except NoSuchFile:
        return None
    except InputError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        try:
            here = _downloaded(reference)
        except (OSError, ValueError):  # nothing of it
            raise error from error.__cause__
        if not here:
            raise
        return None


def list_files(reference: HubReference) -> list[str]:
    """Names of all files below the folder ``reference``, relative to it.

    Where the hub cannot be asked, of what has been downloaded before.
    """
    from huggingface_hub import HfApi, RepoFile, constants

    def ask() -> list[str]:
        if constants.HF_HUB_OFFLINE:
            return _downloaded(reference)
        found = HfApi().list_repo_tree(reference.repo_id, reference.path, recursive=True, revision=reference.revision)
        return [entry.path for entry in found if isinstance(entry, RepoFile)]

    prefix = f"{reference.path}/" if reference.path else ""
    return [name.removeprefix(prefix) for name in _asking(reference, "the list of files", ask)]


def download_files(reference: HubReference, names: Iterable[str]) -> Path:
    """Local folder with the files ``names`` of the folder ``reference``; several are fetched at a time."""
    listed = list(names)
    paths = _several(lambda name: download_file(reference, name), listed)
    return paths[0].parents[listed[0].count("/")]


def _downloaded(reference: HubReference) -> list[str]:
    from huggingface_hub import snapshot_download

    root = Path(snapshot_download(reference.repo_id, revision=reference.revision, local_files_only=True))
    folder = root / (reference.path or "")
    return [path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()]


def download_uris(uris: Iterable[str]) -> list[Path]:
    """Local paths of `hf://` files, in order; several at a time, each once."""
    listed = list(uris)
    unique = list(dict.fromkeys(listed))
    paths = dict(zip(unique, _several(lambda uri: download_file(parse_hub_uri(uri)), unique), strict=True))
    return [paths[uri] for uri in listed]


def _several(fetch: Callable[[str], Path], names: list[str]) -> list[Path]:
    """Several at a time, in order."""
    paths: list[Path] = []
    with told() as progress, ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        for path in pool.map(fetch, names):
            paths.append(path)
            progress("downloading files", len(paths), len(names))
    return paths


def _asking(reference: HubReference, what: str, ask: Callable[[], Result]) -> Result:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with doing(f"getting {what} from the hub"):
            ask_hub()
            return ask()
    except GatedRepoError as error:
        advice = "the repository is gated: accept its terms on huggingface.co and log in with `hf auth login`"
        raise _failure(reference, what, advice) from error
    except RepositoryNotFoundError as error:
        raise _failure(reference, what, "no such repository, or it is private: check the name, or log in") from error
    except RevisionNotFoundError as error:
        raise _failure(reference, what, f"there is no revision {reference.revision!r}") from error
    except LocalEntryNotFoundError as error:
        why = why_offline() or f"the hub cannot be reached ({first_line(error.__cause__ or error)})"
        advice = f"{why}, and the file is not in its cache: connect, or give a local folder"
        raise _failure(reference, what, advice) from error
    except EntryNotFoundError as error:
        raise NoSuchFile(
            str(_failure(reference, what, "the repository has no such file: check the sub-folder"))
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _failure(reference, what, f"{error}; check the connection, or give a local folder") from error


def _failure(reference: HubReference, what: str, advice: str) -> InputError:
    return InputError(f"could not get {what} of {reference.repo_id} from the Hugging Face hub: {advice}.")
