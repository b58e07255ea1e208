"""What a run was begun with: `manifest.json`, `fingerprints.json`. Whoever goes on with it must say the same.

Settings decide what comes out. Means (memory, what stays on disk) decide how it is done, and may change from one day to the
next. Fingerprints are those of the first worker that opens model and dictionary; later ones compare. Before that,
nothing is done yet, and other settings take the place of those that were asked for: a name that was misspelt, say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.files import validated
from circuit_tracer.fingerprint import differences
from circuit_tracer.many.runs.documents import read_document, write_document
from circuit_tracer.many.runs.store import Store
from circuit_tracer.models.loading import resolve_dtype
from circuit_tracer.version import package_version

VERSION = 1
MANIFEST, FINGERPRINTS = "manifest.json", "fingerprints.json"
_REMEDY = "Restore it, or begin the run anew in another folder."
_OURS = "circuit_tracer:"  # begins the path of what ships with the package, wherever that is installed
_PACKAGE = Path(__file__).parents[2]


class Part(BaseModel):
    """A part of the manifest; a key that is unknown is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Opening(Part):
    """Model and dictionary. Folders are kept with their whole path, those of the package as `circuit_tracer:...`."""

    transcoders: str
    attention: str | None = None
    adapter: str | None = None
    elsewhere: Literal["neurons"] | None = None
    model: str | None = None
    revision: str | None = None
    dtype: str = "float32"
    device: Literal["cpu", "cuda", "mps"] = "cpu"  # its kind
    select: str | None = None
    input_shift: bool | None = None
    feature_input_hook: str | None = None
    feature_output_hook: str | None = None
    bos: bool = True

    @field_validator("transcoders", "model", "attention", "adapter")
    @classmethod
    def _portable(cls, name: str | None) -> str | None:
        return None if name is None else portable(name)

    @field_validator("dtype")
    @classmethod
    def _full_name(cls, name: str) -> str:
        return str(resolve_dtype(name)).removeprefix("torch.")


class Tracing(Part):
    """Options of `attribute`, and how prompts are read."""

    chat: bool = False
    chat_options: dict[str, Any] = Field(default_factory=dict)
    targets: list[str] | None = None
    position: int = -1
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    max_feature_nodes: int | None = None
    batch_size: int = 512
    zero_positions: list[int] | None = None
    keep_edge_mass: float | None = None
    max_residual: float | None = None


class Layout(Part):
    """How rows are shared out: rows of a unit, which is the least that is done or not done; threads of a worker."""

    unit_rows: int = Field(default=16, ge=1)
    threads: int = Field(default=1, ge=1)


class Means(Part):
    """What changes no result."""

    lazy_encoder: bool = False
    lazy_decoder: bool = True
    offload: Literal["cpu", "disk"] | None = None
    memory: str | None = None


class Manifest(Part):
    """All of it."""

    version: int = VERSION
    generator: str = Field(default_factory=package_version)
    opening: Opening
    tracing: Tracing = Tracing()
    layout: Layout = Layout()
    means: Means = Means()


Asked = Mapping[
    str, Mapping[str, Any]
]  # {"tracing": {"max_n_logits": 5}, ...}: parts of the manifest, or some of their keys


def open_manifest(store: Store, asked: Asked, defaults: Asked) -> Manifest:
    """The manifest of a run as it is asked for (`manifest_of`), written if it is new or has changed."""
    manifest = manifest_of(store, asked, defaults)
    if not store.exists(MANIFEST) or manifest != read_manifest(store):
        write_document(store, MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def manifest_of(store: Store, asked: Asked, defaults: Asked) -> Manifest:
    """What a run is, or would be, worked on with: of what is asked, and else as it was begun, or the defaults.

    Raises CompatibilityError, naming what differs, if the run was begun with other settings than asked; InputError if what is
    asked cannot be, or a run is to be begun without a dictionary.
    """
    if not store.exists(MANIFEST):
        if store.names("units/") or store.names("rows/"):
            raise FileFormatError(
                f"{store} holds rows of a run and no {MANIFEST}: it is damaged. Choose another folder."
            )
        return _manifest(_merged(defaults, asked))
    there = read_manifest(store)
    before = there.model_dump(mode="json")
    manifest = _manifest(_merged(before, asked)).model_copy(update={"generator": there.generator})
    if store.exists(FINGERPRINTS):
        require_same_settings(store, there, manifest)
    return manifest


def require_same_settings(store: Store, there: Manifest, here: Manifest) -> None:
    """Raise CompatibilityError, naming what differs, unless two manifests differ in means alone."""
    differing = differences(*(_flat(each.model_dump(mode="json")) for each in (there, here)))
    if differing := [each for each in differing if not each.startswith("means.")]:
        raise CompatibilityError(
            f"the run {store} was begun with other settings: {'; '.join(differing[:20])}. Leave them out to go on as it was "
            "begun, or choose another folder."
        )


def read_manifest(store: Store) -> Manifest:
    """Raises InputError if there is no run, FileFormatError if its manifest is damaged or of a newer version."""
    if not store.exists(MANIFEST):
        raise InputError(f"there is no run at {store}: it has no {MANIFEST}. Make one with circuit-tracer run.")
    found = read_document(store, MANIFEST, _REMEDY)
    if isinstance(number := found.get("version"), int) and number > VERSION:
        raise FileFormatError(
            f"{store} is a run of version {number}; this circuit-tracing reads up to {VERSION}. Update it."
        )
    return validated(Manifest, found, store.where(MANIFEST))


def agree_on_fingerprints(store: Store, here: dict[str, Any]) -> None:
    """Raise CompatibilityError unless model, dictionary and tokenizer are those that the run was begun with."""
    if not store.exists(FINGERPRINTS):
        write_document(store, FINGERPRINTS, here)
    if differing := differences(read_fingerprints(store), here):
        raise CompatibilityError(
            f"the run {store} was begun with another model, dictionary or tokenizer: {'; '.join(differing)}. Go on with "
            "those, or choose another folder."
        )


def read_fingerprints(store: Store) -> dict[str, Any]:
    """{} before the first worker has opened the model."""
    if not store.exists(FINGERPRINTS):
        return {}
    return read_document(store, FINGERPRINTS, _REMEDY)


def portable(name: str) -> str:
    """A model or dictionary as the manifest names it: folders and files by their whole path, hub ids as they are."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    whole = path.resolve() if ".." in path.parts else path.absolute()
    return f"{_OURS}{whole.relative_to(_PACKAGE).as_posix()}" if whole.is_relative_to(_PACKAGE) else str(whole)


def local(name: str) -> str:
    """The other way round."""
    return str(_PACKAGE / name.removeprefix(_OURS)) if name.startswith(_OURS) else name


def _manifest(parts: dict[str, Any]) -> Manifest:
    if "transcoders" not in parts.get("opening", {}):
        raise InputError(
            "there is no such run yet; to begin one, name the transcoders: -t, or --demo for the small ones"
        )
    return validated(Manifest, {**parts, "version": VERSION}, "what was asked of the run")


def _merged(below: Asked, above: Asked) -> dict[str, Any]:
    parts = {name: dict(below.get(name, {})) for name in ("opening", "tracing", "layout", "means")}
    for name, settings in above.items():
        parts[name] |= settings
    return parts


def _flat(parts: dict[str, Any]) -> dict[str, Any]:
    of_parts = {name: each for name, each in parts.items() if isinstance(each, dict)}
    return {f"{part}.{name}": value for part, each in of_parts.items() for name, value in each.items()}
