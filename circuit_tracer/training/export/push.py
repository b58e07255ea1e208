"""Publishing a dictionary: config, card and weights to a repository of the Hugging Face hub, in one commit, or to a folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError, ResourceError, warn
from circuit_tracer.files import atomic_write, require_writable_folder
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders.config import CONFIG_NAME, NATIVE_FILE
from circuit_tracer.transcoders.loading import load_transcoder_from_hub

Result = TypeVar("Result")

CARD_NAME = "README.md"
WEIGHTS_FOLDER = "transcoder"  # of a training run
_SAE_FILE = re.compile(r"layer_\d+/(sae_weights\.safetensors|cfg\.json)")
_BESIDE = (".json", ".yaml", ".yml", ".png", ".svg")  # reports, recipes and pictures beside the weights
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")


@dataclass(frozen=True)
class Publication:
    """What a repository will hold: local files by their path in it.

    Attributes:
        left_out: Other files of the folder.
    """

    files: dict[str, Path]
    left_out: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def collect(folder: str | Path) -> Publication:
    """The files of a dictionary's folder, or of a training run's, proved to be complete and readable.

    Warns about what others could not use: a model named by a local path.

    Args:
        folder: Of a dictionary, or of a run.

    Returns:
        The files by their path in the repository.

    Raises:
        InputError: When the folder, its card or its weights are missing.
        FileFormatError: When the weights are damaged or lack a layer.
    """
    root = Path(folder).expanduser()
    if (root / WEIGHTS_FOLDER).is_dir():
        root = root / WEIGHTS_FOLDER
    if not root.is_dir():
        raise InputError(f"no such folder: {root}. Give the folder of a dictionary, or that of a training run.")
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    weights = [name for name in found if is_weights(name)]
    if not weights:
        raise InputError(
            f"{root} holds no weights: expected W_enc_0.safetensors and W_dec_0.safetensors, layer_0.safetensors, or "
            "layer_0/sae_weights.safetensors, and so on. For other layouts, `circuit-tracer convert` writes these."
        )
    if CARD_NAME not in found:
        raise InputError(
            f"{root} holds no {CARD_NAME}: a dictionary nobody has measured is of little use to others. Make its card with "
            f"circuit-tracer evaluate -t {root} --data TEXT -o {root}, or write one."
        )
    _check_weights(root, found)
    kept = {
        name: path
        for name, path in found.items()
        if is_weights(name) or name == CARD_NAME or ("/" not in name and path.suffix in _BESIDE)
    }
    return Publication(kept, [name for name in found if name not in kept])


def push(
    publication: Publication, repo_id: str, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Upload to ``repo_id`` (org/name), which is made if needed, in one commit; the commit's address.

    Weights that the repository has and the dictionary has not (of an earlier one with more layers) are deleted in the same
    commit.

    Args:
        publication: Of `collect`.
        repo_id: Org/name, made if needed.
        private: Whether a repository that is made is private.
        token: None for the one of `hf auth login` or HF_TOKEN.
        endpoint: None for the public hub, or HF_ENDPOINT.

    Returns:
        The address of the commit.

    Raises:
        InputError: For a name that is none, no token, or no permission.
        ResourceError: When the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    check_repo_id(repo_id)
    token = token or get_token()
    if token is None:
        raise InputError(
            "uploading needs a token of the Hugging Face hub, and there is none: run `hf auth login`, or set HF_TOKEN "
            "(a token with write permission, from huggingface.co/settings/tokens). -o FOLDER needs none."
        )
    api = HfApi(endpoint=endpoint, token=token)
    _asking(repo_id, lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    there = _asking(repo_id, lambda: api.list_repo_files(repo_id))
    stale = [name for name in there if is_weights(name) and name not in publication.files]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in publication.files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
    message = "Dictionary, configuration and card"
    commit = _asking(repo_id, lambda: api.create_commit(repo_id, operations, commit_message=message))
    return str(commit.commit_url)


def copy_to(publication: Publication, folder: str | Path) -> Path:
    """Write the files that a repository would hold into an empty folder.

    Args:
        publication: Of `collect`.
        folder: Empty, made if needed.

    Returns:
        The folder.

    Raises:
        InputError: When it is not empty.
    """
    target = require_writable_folder(folder)
    if any(target.iterdir()):
        raise InputError(
            f"{target} is not empty. Choose a new folder, so that nothing of another dictionary is mixed in."
        )
    for name, path in publication.files.items():
        with atomic_write(target / name) as temporary:
            shutil.copyfile(path, temporary)
    return target


def is_weights(name: str) -> bool:
    """Whether a file of a repository is a layer's weights."""
    return bool(NATIVE_FILE.fullmatch(name) or _SAE_FILE.fullmatch(name))


def check_repo_id(repo_id: str) -> None:
    """Raise InputError unless ``repo_id`` is org/name, as the hub allows it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its __all__ is computed

    try:
        validate_repo_id(repo_id)
        if not _REPO_ID.fullmatch(repo_id):
            raise HFValidationError("the owner is missing")
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository: {error}. Expected OWNER/NAME.") from error


def _check_weights(root: Path, found: dict[str, Path]) -> None:
    """Open every file and read its header; nothing is loaded."""
    if any(_SAE_FILE.fullmatch(name) for name in found):
        _check_autoencoders(root, found)
        return
    if CONFIG_NAME not in found:
        raise InputError(
            f"{root} holds no {CONFIG_NAME}, so nobody could load it. `circuit-tracer convert` writes one."
        )
    _, config = load_transcoder_from_hub(root.absolute(), device="cpu", dtype=None, lazy_encoder=True)
    name = config.get("model_name") or ""
    if not _HUB_NAME.fullmatch(name) or name.endswith(".gguf") or Path(name).exists():
        warn(
            f"{CONFIG_NAME} names the model {name!r}, which others cannot load: write its name on the hub there (model_name) "
            "and remove the line `digest`"
        )


def _check_autoencoders(root: Path, found: dict[str, Path]) -> None:
    for folder in sorted({name.split("/")[0] for name in found if _SAE_FILE.fullmatch(name)}):
        names = [f"{folder}/cfg.json", f"{folder}/sae_weights.safetensors"]
        missing = [name for name in names if name not in found]
        if missing:
            raise FileFormatError(f"{root} lacks {missing[0]}. Copy the folder again, whole.")
        open_tensor_file(found[names[1]])


def _asking(repo_id: str, ask: Callable[[], Result]) -> Result:
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's, as the hub chose
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        return ask()
    except HfHubHTTPError as error:
        raise _refused(repo_id, error) from error
    except OfflineModeIsEnabled as error:
        raise ResourceError(
            "the Hugging Face hub may not be asked: HF_HUB_OFFLINE is set. Unset it, or write a folder with -o."
        ) from error
    except ValueError as error:
        raise InputError(f"the hub cannot take {repo_id}: {error}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise ResourceError(
            f"the Hugging Face hub cannot be reached, or the connection broke: {error}. Nothing was committed; run the command "
            "again (what is uploaded already is not sent twice), or write a folder with -o."
        ) from error


def _refused(repo_id: str, error: Exception) -> CircuitTracerError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if status == 401:
        return InputError(f"the hub does not know the token ({reason}). Run `hf auth login`, or correct HF_TOKEN.")
    if status == 403:
        return InputError(
            f"the token may not write to {repo_id} ({reason}). Use a token with write permission, or a repository of yours."
        )
    return ResourceError(f"the hub refused {repo_id}: {reason}. Nothing was committed; try again later.")
