"""A graph that somebody else shows, from what one has of it: a link to its page, its address, its name, or a downloaded file.

fetched = fetch_graph("https://www.neuronpedia.org/gemma-2-2b/graph?slug=gemma-fact-dallas-austin&pinnedIds=...")
fetched.prompt, fetched.view.pinned, fetched.view.supernodes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urljoin, urlsplit, urlunsplit

from circuit_tracer.errors import FileFormatError, InputError, shortened
from circuit_tracer.files import parse_json, unpack
from circuit_tracer.graph.files.read_json import load_viewer_json, prompt_tokens, viewer_document
from circuit_tracer.graph.files.view import View
from circuit_tracer.http import RefusedRequest, request
from circuit_tracer.neuronpedia import Neuronpedia, refused

_JSON = (".json", ".json.gz")
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_WITHOUT_SCHEME = re.compile(r"(www\.)?neuronpedia\.org/")
_WANTED = (
    "expected a link to a graph's page (https://www.neuronpedia.org/gemma-2-2b/graph?slug=NAME, or that of a local server, "
    "http://localhost:8032/?slug=NAME), the address of its JSON, MODEL/SLUG as Neuronpedia names it, or a downloaded .json"
)


@dataclass(frozen=True)
class FetchedGraph:
    """A viewer's document and what was chosen in it.

    document: metadata, nodes, links (`graph.files.read_json.from_json` makes a networkx graph of it); it is pruned. view: pins,
    supernodes and labels, of the link if it holds any, else of the file. source: where the document came from. record: what
    Neuronpedia says of the graph besides (sourceSetName, ...), empty from elsewhere.
    """

    document: dict[str, Any]
    view: View
    source: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt as the file spells it: with a special token in front where the tokenizer puts one."""
        return str(self.document["metadata"].get("prompt", ""))

    @property
    def tokens(self) -> list[str]:
        """The texts of its tokens."""
        return prompt_tokens(self.document["metadata"])

    @property
    def token_ids(self) -> list[int]:
        """Its tokens, from the ids of their nodes. Raises FileFormatError for a file that lacks one of them."""
        found = {}
        for node in self.document["nodes"]:
            parts = str(node.get("node_id", "")).split("_")
            if node.get("feature_type") == "embedding" and len(parts) == 3 and parts[1].isdecimal():
                found[node.get("ctx_idx")] = int(parts[1])
        if missing := [place for place in range(len(self.tokens)) if place not in found]:
            raise FileFormatError(
                f"{self.source} does not say which token stands at {missing[0]}; trace its prompt by text"
            )
        return [found[place] for place in range(len(self.tokens))]


def fetch_graph(link: str | Path) -> FetchedGraph:
    """The graph of a link, in one or two requests; of a file, without any.

    Args:
        link: The page of a graph at Neuronpedia (the public one or one of your own), whose JSON is where its record says; the
            page of a local server of ours or of circuit-tracer (``/?slug=NAME``, JSON at ``graph_data/NAME.json``); the address
            of a .json; "model/slug", asked of the Neuronpedia in NEURONPEDIA_HOST; a .json or .json.gz file. No key is sent:
            graphs are public.

    Returns:
        The viewer's document, and the pins, supernodes and labels of the link, or else of the file.

    Raises:
        InputError: For what is none of these, or is not there.
        ResourceError: When a server cannot be reached.
        FileFormatError: For what is no graph.

    Examples:
        >>> from circuit_tracer.viewer.download import fetch_graph
        >>> fetched = fetch_graph(graph.to_json("dallas", "graphs"))
        >>> fetched.prompt, len(fetched.token_ids)
        ('<s> the capital of the state containing Dallas is', 9)
    """
    text = str(link).strip()
    if _WITHOUT_SCHEME.match(text):  # as some browsers show it
        text = f"https://{text}"
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InputError(f"{shortened(text)} is no address ({error}); {_WANTED}") from error
    if parts.scheme not in ("http", "https"):
        return _file_or_name(text)
    try:
        if parts.path.endswith(_JSON):
            return _seen(_document(text), text, text)
        slug = _slug(parts, text)
        page = re.fullmatch(r"/([^/]+)/graph/?", parts.path)
        if page is None:  # circuit-tracer's server, or ours
            address = urljoin(urlunsplit(parts._replace(query="", fragment="")), f"graph_data/{quote(slug)}.json")
            return _seen(_document(address), address, text)
        return _of_neuronpedia(Neuronpedia(f"{parts.scheme}://{parts.netloc}"), unquote(page[1]), slug, text)
    except RefusedRequest as error:
        raise InputError(
            f"there is no graph at {shortened(text)} ({error}). Open the link in a browser: is it there?"
        ) from error


def _file_or_name(text: str) -> FetchedGraph:
    if text.endswith(_JSON):
        return _seen(load_viewer_json(text), text, "")
    if _NAME.fullmatch(text):
        model, slug = text.split("/")
        return _of_neuronpedia(Neuronpedia(Neuronpedia.from_environment().host), model, slug, "")
    raise InputError(f"{shortened(text)} names no graph; {_WANTED}")


def _slug(parts: SplitResult, text: str) -> str:
    slugs = parse_qs(parts.query or parts.fragment).get("slug", [])
    if not slugs:
        raise InputError(f"{shortened(text)} names no graph: it has no slug=...; {_WANTED}")
    return slugs[0]


def _of_neuronpedia(server: Neuronpedia, model: str, slug: str, link: str) -> FetchedGraph:
    record = server.get(f"graph/{quote(model)}/{quote(slug)}")
    address = record.get("url") if isinstance(record, dict) else None
    if not isinstance(address, str) or urlsplit(address).scheme not in ("http", "https"):
        raise FileFormatError(
            f"{server.host} does not say where the JSON of {model}/{slug} is: its record holds {shortened(record)}"
        )
    try:
        document = _document(address)
    except RefusedRequest as error:
        raise refused(error) from error
    return _seen(document, address, link, {name: value for name, value in record.items() if value is not None})


def _document(address: str) -> dict[str, Any]:
    data = request("GET", address, None)
    if data[:2] == b"\x1f\x8b":  # stored packed, as Neuronpedia's files are
        data = unpack(data, address)
    return viewer_document(parse_json(data, address, halves=True), address)


def _seen(document: dict[str, Any], source: str, link: str, record: Mapping[str, Any] | None = None) -> FetchedGraph:
    """With the view of the link if it holds one, else that of the file."""
    linked = View.from_url(link)
    view = linked if linked != View() else View.from_q_params(document.get("qParams") or {})
    return FetchedGraph(document, view, source, record or {})
