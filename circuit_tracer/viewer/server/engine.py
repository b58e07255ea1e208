"""What the server does with its model: tokens, traces, interventions, steering. One thing at a time (`jobs.py`)."""

from __future__ import annotations

import copy
import math
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuit_tracer.attention import explain_edge, explain_edges, explain_score
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.neuron_choice import DEFAULT_NEURONS
from circuit_tracer.attribution.target_text import parse_target
from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.interventions import (
    Edit,
    FeatureAt,
    Outcome,
    Sampling,
    Semantics,
    Supernode,
    ablate,
    add,
    apply_edits,
    scale,
    set_to,
    steer,
)
from circuit_tracer.interventions.features.clean import AGREEMENT, COARSE_AGREEMENT, CleanRun
from circuit_tracer.models.capture import logits_at
from circuit_tracer.models.model_pass import require_context
from circuit_tracer.models.run import ModelRun
from circuit_tracer.models.tokenization import token_strings, tokenize
from circuit_tracer.sizes import USUAL_ROWS
from circuit_tracer.transcoders.neurons import NEURONS
from circuit_tracer.viewer.server.chat_turns import Frame, frames, render
from circuit_tracer.viewer.server.head_messages import EdgeAnswer, EdgeQuestion, ScoreAnswer, ScoreQuestion
from circuit_tracer.viewer.server.jobs import Job
from circuit_tracer.viewer.server.messages import (
    EditRequest,
    FeatureMove,
    InterveneRequest,
    InterventionResult,
    ModelFacts,
    Output,
    Outputs,
    PromptText,
    SteeringResult,
    SteerRequest,
    Token,
    TokenOdds,
    Tokens,
    TraceRequest,
    Written,
)

if TYPE_CHECKING:
    from circuit_tracer.graph.files.viewer_json import Labels
    from circuit_tracer.graph.graph import Graph
    from circuit_tracer.replacement_model import ReplacementModel

TOKENS_SHOWN, OTHERS_SHOWN, OUTPUTS_SHOWN = 8, 10, 8
CONTRIBUTORS_SHOWN = PAIRS_SHOWN = 20
COMPARED = 20  # features of a graph whose activations are compared where none of those to change has one in the file
_FEATURE = re.compile(r"(\d{1,9})_(\d{1,9})_(\d{1,9})")
_TOKEN = re.compile(r"E_(\d{1,9})_(\d{1,9})")


class Engine:
    """A model with its transcoders."""

    def __init__(self, model: ReplacementModel) -> None:
        self.model = model
        # Fast tokenizers cannot be used by two threads at once: requests share a copy, and the jobs have the model's own.
        self._tokenizer, self._tokenizing = copy.deepcopy(model.tokenizer), threading.Lock()

    def facts(self) -> ModelFacts:
        """The model in words and numbers."""
        config, transcoders = self.model.cfg, self.model.transcoders
        return ModelFacts(
            name=config.model_name.rstrip("/").rsplit("/", 1)[-1]
            if config.model_name.startswith("/")
            else config.model_name,
            transcoders=transcoders.scan,
            n_layers=config.n_layers,
            features_a_layer=transcoders.d_transcoder,
            feature_nodes=self.feature_nodes(None),
            chat=getattr(self.model.tokenizer, "chat_template", None) is not None,
        )

    def feature_nodes(self, asked: int | None, usual: int = USUAL_ROWS) -> int:
        """How many features get a row of their own, as asked for, or the usual number, which for neurons is their own."""
        return asked if asked is not None else DEFAULT_NEURONS if self.model.transcoders.kind == NEURONS else usual

    def ids(self, prompt: PromptText) -> Tensor:
        """Token ids (P,) of a prompt or conversation."""
        with self._tokenizing:
            if prompt.messages is not None:
                if prompt.prompt:
                    raise InputError("give either prompt or messages, not both")
                text = render([turn.model_dump() for turn in prompt.messages], self._tokenizer)
                return tokenize(text, self._tokenizer, self.model.prepend_bos)
            return tokenize(prompt.prompt, self._tokenizer, self.model.prepend_bos)

    def ids_of_text(self, text: str) -> Tensor:
        """Token ids (P,) of a text."""
        return self.ids(PromptText(prompt=text))

    @cached_property
    def chat_frames(self) -> list[Frame]:
        """How the model's chat template frames turns."""
        with self._tokenizing:
            return frames(self._tokenizer)

    def texts(self, ids: Tensor) -> list[str]:
        """Each token as it reads."""
        with self._tokenizing:
            return token_strings(ids, self._tokenizer)

    def tokens(self, prompt: PromptText) -> Tokens:
        """A prompt token by token."""
        ids = self.ids(prompt)
        pairs = zip(ids.tolist(), self.texts(ids), strict=True)
        most = getattr(self.model.hf_model.config, "max_position_embeddings", None)
        return Tokens(
            tokens=[Token(id=number, text=text) for number, text in pairs],
            most=most if isinstance(most, int) else None,
        )

    @torch.no_grad()
    def outputs(self, prompt: PromptText) -> Outputs:
        """What the model would say after a prompt."""
        ids, parts = self.ids(prompt), self.model.parts
        require_context(parts, len(ids))
        final_1D = ModelRun(parts, {}, norms=None, own_attention=False)(ids[None].to(parts.device)).final[0, -1:]
        logits_V = logits_at(parts, final_1D)[0].float()
        most = logits_V.softmax(-1).topk(min(OUTPUTS_SHOWN, len(logits_V)))
        texts = self.texts(most.indices.cpu())
        found = zip(most.indices.tolist(), texts, most.values.tolist(), strict=True)
        return Outputs(outputs=[Output(id=number, text=text, probability=share) for number, text, share in found])

    def trace(self, request: TraceRequest, job: Job) -> Graph:
        """Trace a prompt; the job shows how far it is, and can end it."""
        ids = self.ids(request)
        job.progress(f"reading {len(ids)} tokens")
        return attribute(
            ids,
            self.model,
            attribution_targets=None if request.targets is None else [parse_target(text) for text in request.targets],
            max_n_logits=request.max_n_logits,
            desired_logit_prob=request.desired_logit_prob,
            max_feature_nodes=self.feature_nodes(request.max_feature_nodes),
            batch_size=request.batch_size,
            progress=job.progress,
        )

    def intervene(
        self, request: InterveneRequest, document: Mapping[str, Any], graph: Graph | None
    ) -> InterventionResult:
        """Change features on a graph's prompt. graph: the whole graph if it is at hand; it is checked to be of this model."""
        clean = self._clean_run(request.edits, document, graph)
        meaning = Semantics(request.semantics, freeze_attention=request.freeze_attention)
        outcome = apply_edits(self.model, clean, [_edit(each) for each in request.edits], meaning)
        targets = _targets(document, clean)
        odds = outcome.tokens(TOKENS_SHOWN, others=tuple(dict.fromkeys(targets.values())))
        by_token = {each.token_id: each for each in odds}
        nodes, others = _moves(outcome, {str(node.get("node_id")) for node in document["nodes"]})
        for name, token in targets.items():
            nodes[name] = (by_token[token].probability_before, by_token[token].probability_after)
        return InterventionResult(
            semantics=str(meaning),
            edits=[str(edit) for edit in outcome.edits],
            tokens=[TokenOdds(**{name: getattr(each, name) for name in TokenOdds.model_fields}) for each in odds],
            nodes=nodes,
            given={_name(*place): value for place, value in outcome.values.items()},
            others=others,
            changed_top=outcome.changed_top,
        )

    def steer(
        self, request: SteerRequest, document: Mapping[str, Any], graph: Graph | None, job: Job
    ) -> SteeringResult:
        """Continue a graph's prompt with features changed, and without; the job streams the steered text."""
        clean = self._clean_run(request.edits, document, graph)
        sampling = Sampling(
            request.max_new_tokens, request.temperature, request.top_k, request.top_p, seed=request.seed
        )
        job.progress("writing")
        edits = [_edit(each) for each in request.edits]
        found = steer(self.model, clean.ids, edits, sampling, on_text=job.write)
        assert found.unsteered is not None
        return SteeringResult(
            prompt=found.prompt,
            edits=[str(edit) for edit in found.interventions],
            steered=Written(text=found.steered.text, tokens=self.texts(found.steered.ids), finish=found.steered.finish),
            unsteered=Written(
                text=found.unsteered.text, tokens=self.texts(found.unsteered.ids), finish=found.unsteered.finish
            ),
        )

    def explain_edge(self, graph: Graph, asked: EdgeQuestion) -> EdgeAnswer:
        """The heads that a link runs through. Raises what `circuit_tracer.attention.explain_edge` does."""
        return EdgeAnswer(**explain_edge(graph, asked.source, asked.target, self.model, paths=asked.paths).to_dict())

    def explain_links(self, graph: Graph, document: Mapping[str, Any], keep: int) -> None:
        """Give a graph the strongest heads of its edges that a document shows."""
        names = set(graph.nodes.ids())
        pairs = [(str(link.get("source")), str(link.get("target"))) for link in document["links"]]
        if lost := [name for pair in pairs for name in pair if name not in names]:
            raise CompatibilityError(
                f"the JSON of this graph has a node {lost[0]!r} that the whole graph beside it has not; prune it anew"
            )
        explain_edges(graph, self.model, keep, pairs)

    def explain_score(self, graph: Graph, asked: ScoreQuestion, labels: Labels | None) -> ScoreAnswer:
        """Why a head looks at a key; labels: for contributors. Raises what `circuit_tracer.attention.explain_score` does."""
        place, key = (asked.layer, asked.head, asked.query), asked.key
        if key is None:  # a query sees itself, whatever the window
            key = int(explain_score(graph, self.model, *place, key=asked.query, pairs=False).pattern.argmax())
        found = explain_score(graph, self.model, *place, key, asked.versus).kept(CONTRIBUTORS_SHOWN, PAIRS_SHOWN)
        by_any = dict[Any, str]((labels or {}).items())
        texts = {name: by_any.get(name) or by_any.get(_place(name)) for name in found.ids}
        return ScoreAnswer(**found.to_dict(), labels={name: text for name, text in texts.items() if text})

    def _clean_run(self, edits: Sequence[EditRequest], document: Mapping[str, Any], graph: Graph | None) -> CleanRun:
        if graph is not None:
            return CleanRun(self.model, graph)
        clean = CleanRun(self.model, torch.tensor(_ids_of(document)))
        _check_activations(clean, {name for edit in edits for name in edit.nodes}, document)
        return clean


def _edit(request: EditRequest) -> Edit:
    features: Any = [feature_of(name) for name in request.nodes]
    if request.name is not None:
        features = Supernode(request.name, features)
    at = None if request.at == "own" else request.at
    if request.how == "ablate":
        return ablate(features, at)
    return {"scale": scale, "set": set_to, "add": add}[request.how](features, request.amount, at)


def _place(node: str) -> tuple[int, int] | None:
    """(layer, index) of a feature's id."""
    match = _FEATURE.fullmatch(node)
    return None if match is None else (int(match[1]), int(match[2]))


def feature_of(node: str) -> FeatureAt:
    """The feature of a node's id. Raises InputError for a node of another kind."""
    match = _FEATURE.fullmatch(node)
    if match is None:
        raise InputError(f"node {node!r} is no feature; only features can be changed")
    layer, index, position = (int(number) for number in match.groups())
    return FeatureAt(layer, position, index)


def _name(layer: int, position: int, index: int) -> str:
    return f"{layer}_{index}_{position}"


def _ids_of(document: Mapping[str, Any]) -> list[int]:
    """The prompt's token ids, which the names of its token nodes carry."""
    found = {}
    for node in document["nodes"]:
        match = _TOKEN.fullmatch(str(node.get("node_id")))
        if match:
            found[int(match[2])] = int(match[1])
    wanted = range(len(document["metadata"].get("prompt_tokens") or []))
    if not found or sorted(found) != list(wanted):
        raise FileFormatError(
            f"this graph names {len(found)} of its {len(wanted)} tokens by E_id_position, so its prompt cannot be run again; "
            "put the whole graph (.safetensors or .pt) beside it"
        )
    return [found[position] for position in wanted]


def _check_activations(clean: CleanRun, names: set[str], document: Mapping[str, Any]) -> None:
    """Refuse a graph whose features have other activations on this model: those that are changed, if the file says theirs,
    else the first that it says.
    """
    known = {
        str(node.get("node_id")): float(node["activation"])
        for node in document["nodes"]
        if node.get("feature_type") == "cross layer transcoder"
        and _FEATURE.fullmatch(str(node.get("node_id")))
        and isinstance(node.get("activation"), int | float)
        and math.isfinite(node["activation"])
    }
    compared = sorted(names & known.keys()) or list(known)[:COMPARED]
    if not compared:
        raise CompatibilityError(
            "this graph says no activation of any feature, so it cannot be told whether it was made with this model; put the "
            "whole graph (.safetensors or .pt) beside it, or export it again with activations"
        )
    coarse = clean.model.parts.config.dtype in ("bfloat16", "float16")
    for name in compared:
        layer, position, index = feature_of(name)
        transcoders, there = clean.model.transcoders, known[name]
        if layer >= transcoders.n_layers or index >= transcoders.n_features(layer) or (position or 0) >= clean.n_pos:
            raise CompatibilityError(
                f"the graph was made with other transcoders: they have a feature {name} (layer, index, position), these "
                "have none. Start the server with those it was traced with."
            )
        here = float(clean.activations(layer, torch.tensor([position]), torch.tensor([index])))
        if abs(here - there) > (COARSE_AGREEMENT if coarse else AGREEMENT) * max(abs(there), 1e-3):
            raise CompatibilityError(
                f"the graph was made with another model or other transcoders: node {name} has activation {there:.4g} in the "
                f"graph, {here:.4g} here. Start the server with those it was traced with."
            )


def _targets(document: Mapping[str, Any], clean: CleanRun) -> dict[str, int]:
    """Outputs of the last position that are tokens, by node id."""
    vocabulary = clean.model.parts.config.d_vocab
    return {
        str(node["node_id"]): node["feature"]
        for node in document["nodes"]
        if node.get("feature_type") == "logit"
        and node.get("ctx_idx") == clean.n_pos - 1
        and isinstance(node.get("feature"), int)
        and 0 <= node["feature"] < vocabulary
        and node.get("target_kind", "logit") == "logit"
    }


def _moves(outcome: Outcome, names: set[str]) -> tuple[dict[str, tuple[float, float]], list[FeatureMove]]:
    """(before, after) of the features that are nodes, and the largest changes of others."""
    changes = outcome.features
    assert changes is not None
    nodes: dict[str, tuple[float, float]] = {}
    for layer, position, index, before, after in zip(
        *(
            column.tolist()
            for column in (changes.layer, changes.position, changes.feature_idx, changes.before, changes.after)
        ),
        strict=True,
    ):
        name = _name(layer, position, index)
        if name in names:
            nodes[name] = (before, after)
    largest = [
        FeatureMove(
            layer=feature.layer, position=feature.position or 0, feature=feature.feature_idx, before=before, after=after
        )
        for feature, before, after in changes.largest(OTHERS_SHOWN + len(nodes))
        if _name(feature.layer, feature.position or 0, feature.feature_idx) not in nodes and before != after
    ]
    return nodes, largest[:OTHERS_SHOWN]
