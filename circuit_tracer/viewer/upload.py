"""Graphs and features to Neuronpedia: checked here first, so that nothing is sent that it would refuse or show blank."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.features.export import upload_batches
from circuit_tracer.features.folder import FeatureFolder
from circuit_tracer.graph.files.validate import MIN_UPLOAD_BYTES, upload_size_problems, validate_document
from circuit_tracer.graph.files.view import View
from circuit_tracer.http import RefusedRequest, request
from circuit_tracer.neuronpedia import Neuronpedia, refused
from circuit_tracer.progress import Progress, silent

Place = tuple[int, int]


@dataclass(frozen=True)
class Parcel:
    """A graph ready to be sent: ``data`` is its JSON, gzipped unless that makes it too small for Neuronpedia."""

    model_id: str
    slug: str
    data: bytes
    packed: bool
    view: View

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Parcel:
        """Of a viewer's JSON. Raises InputError with everything in it that Neuronpedia refuses or does not show."""
        problems = validate_document(document, "neuronpedia")
        data = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )
        packed = gzip.compress(data, mtime=0)
        smaller = len(packed) >= MIN_UPLOAD_BYTES
        problems += upload_size_problems(len(packed if smaller else data))
        if problems:
            raise InputError("Neuronpedia would not take or show this graph: " + "; ".join(problems))
        metadata = document["metadata"]
        view = View.from_q_params(document["qParams"])
        return cls(metadata["scan"], metadata["slug"], packed if smaller else data, smaller, view)


def upload_graph(server: Neuronpedia, parcel: Parcel) -> str:
    """Send a graph and return the link to it, pins and supernodes included.

    Asks for a signed address, puts the file there, and has it entered. An earlier graph of yours with the same slug is
    replaced. Raises InputError for what is refused (no key, unknown model, limits), ResourceError when it cannot be reached.
    """
    server.require_key()
    size, name = len(parcel.data), f"{parcel.slug}.json"
    asked = {"filename": name, "contentLength": size, "contentType": "application/json"}
    place = server.post("graph/signed-put", asked)
    try:
        url, number = place["url"], place["putRequestId"]
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{server.host} gave no address to upload to, but {place!r}") from error
    headers = {"Content-Type": "application/json", **({"Content-Encoding": "gzip"} if parcel.packed else {})}
    try:
        request("PUT", url, parcel.data, headers)
    except RefusedRequest as error:
        raise refused(error) from error
    server.post("graph/save-to-db", {"putRequestId": number})
    return graph_link(server, parcel)


def graph_link(server: Neuronpedia, parcel: Parcel) -> str:
    """Where the graph is seen, opened as its view says."""
    return parcel.view.to_url(server.graph_page(parcel.model_id, parcel.slug))


def upload_features(
    server: Neuronpedia,
    features: FeatureFolder,
    model_id: str,
    source_set: str,
    places: Iterable[Place] | None = None,
    labels: Mapping[Place, str] | None = None,
    progress: Progress = silent,
) -> int:
    """Send features, batch by batch, to the sources "{layer}-{source_set}" of a model; returns how many."""
    server.require_key()
    sent = 0
    for body in upload_batches(features, model_id, source_set, places, labels):
        server.post("feature/upload-batch", body)
        sent += len(body["features"])
        progress("features", sent, sent)
    return sent
