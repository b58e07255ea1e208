"""Labels that Neuronpedia has for a source set, kept on disk so that each is asked for once.

Of several explanations the one of the kind that Neuronpedia's own pages prefer is taken: np_max-act-logits, np_max-act, else
the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.features.labels import Label, Place
from circuit_tracer.files import locked, require_writable_folder
from circuit_tracer.files.digests import read_sealed, write_sealed
from circuit_tracer.neuronpedia import Neuronpedia
from circuit_tracer.progress import Progress, silent

FEATURES_A_REQUEST = 512  # Neuronpedia takes 2048
PREFERRED = ("np_max-act-logits", "np_max-act")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def fetch_labels(
    server: Neuronpedia,
    places: Iterable[Place],
    model_id: str,
    source_set: str,
    cache: Path,
    progress: Progress = silent,
) -> dict[Place, Label]:
    """Labels of the features ``places`` in the sources "{layer}-{source_set}" of a model; those without one are left out.

    cache: folder of what was fetched before. Raises InputError for what the server refuses, ResourceError when it cannot be
    reached; what was fetched until then is kept.
    """
    for name in (model_id, source_set):
        if not _NAME.fullmatch(name) or name.startswith("."):
            raise InputError(f"{name!r} is no name of Neuronpedia's; it has letters, digits, '.', '_' and '-' only")
    by_layer: dict[int, set[int]] = {}
    for layer, index in places:
        by_layer.setdefault(layer, set()).add(index)
    total, done, found = sum(map(len, by_layer.values())), 0, dict[Place, Label]()
    for layer, wanted in sorted(by_layer.items()):
        path = cache / "neuronpedia" / model_id / f"{layer}-{source_set}.json"
        known = _read(path)
        missing = sorted(wanted - known.keys())
        for start in range(0, len(missing), FEATURES_A_REQUEST):
            part = missing[start : start + FEATURES_A_REQUEST]
            known |= _ask(server, model_id, f"{layer}-{source_set}", part)
            known = _add(path, known)
            progress("labels", done + start + len(part), total)
        done += len(wanted)
        source = f"neuronpedia:{model_id}/{source_set}"
        found |= {(layer, index): Label(text, source) for index in sorted(wanted) if (text := known[index])}
    return found


def _ask(server: Neuronpedia, model_id: str, source: str, indices: list[int]) -> dict[int, str | None]:
    asked = [{"modelId": model_id, "layer": source, "index": str(index), "maxActsToReturn": 0} for index in indices]
    answer = server.post("features", asked)
    rows = answer.get("features") if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise FileFormatError(f"{server.host} answered with {type(answer).__name__}; expected a list of features")
    labels: dict[int, str | None] = dict.fromkeys(indices)
    for row in rows:
        if isinstance(row, dict) and str(row.get("index", "")).isdecimal() and int(row["index"]) in labels:
            labels[int(row["index"])] = _best(row.get("explanations"))
    return labels


def _best(explanations: Any) -> str | None:
    given = [one for one in explanations or () if isinstance(one, dict) and isinstance(one.get("description"), str)]
    ranked = sorted(given, key=lambda one: PREFERRED.index(kind) if (kind := one.get("typeName")) in PREFERRED else 2)
    return ranked[0]["description"].strip() or None if ranked else None


def _read(path: Path) -> dict[int, str | None]:
    if not path.is_file():
        return {}
    remedy = "Remove it, and the labels are fetched again."
    found = read_sealed(path, remedy)
    try:
        if found["source"] != path.stem:
            raise ValueError(f"they are those of {shortened(found['source'])}")
        return {int(index): _text_or_none(text) for index, text in found["labels"].items()}
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged ({error}). {remedy}") from error


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a label is {shortened(value)}")
    return value


def _add(path: Path, known: dict[int, str | None]) -> dict[int, str | None]:
    """Put labels into the file beside those that other processes put there meanwhile; returns all."""
    with locked(require_writable_folder(path.parent)):
        everything = _read(path) | known
        write_sealed(path, {"source": path.stem, "labels": everything}, ensure_ascii=False)
    return everything
