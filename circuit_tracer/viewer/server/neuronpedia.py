"""Neuronpedia's graph-server protocol, so that a site of one's own can use this engine (USE_LOCALHOST_GRAPH=true).

Names, defaults and rules are those of its own server. One request at a time, otherwise 503.
"""

from __future__ import annotations

import gzip
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.responses import Response

from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.graph.files.viewer_json import graph_document
from circuit_tracer.http import request
from circuit_tracer.viewer.server import chat_turns
from circuit_tracer.viewer.server.engine import Engine
from circuit_tracer.viewer.server.messages import Problem
from circuit_tracer.viewer.server.neuronpedia_messages import (
    ChatMessage,
    CheckBusy,
    ForwardPass,
    ForwardPassed,
    GenerateGraph,
    LogitsByToken,
    ParseChatPrompt,
    ParsedChatPrompt,
    SalientLogit,
    Steer,
    Steered,
    SteerFeature,
    TopLogit,
    Uploaded,
    WithPrompt,
)
from circuit_tracer.viewer.server.routing import SECRET, Served, router

if TYPE_CHECKING:
    from torch import Tensor

NEURONPEDIA = router("Neuronpedia's protocol", dependencies=[SECRET])


@NEURONPEDIA.get("/check-busy")
def check_busy(site: Served) -> CheckBusy:
    """Whether the model is at work."""
    return CheckBusy(busy=site.jobs.busy)


@NEURONPEDIA.post("/parse-chat-prompt")
def parse_chat_prompt(site: Served, asked: ParseChatPrompt) -> ParsedChatPrompt:
    """Turns from a prompt that a chat template made."""
    engine = site.model
    prompt = chat_turns.without_bos(asked.prompt, engine.model.tokenizer)
    turns = chat_turns.parse(prompt, engine.chat_frames)
    return ParsedChatPrompt(
        messages=None if turns is None else [ChatMessage(**turn) for turn in turns],
        is_chat=turns is not None,
        prompt=prompt,
        unsteerable_positions=_unsteerable(engine, engine.ids_of_text(prompt)),
    )


@NEURONPEDIA.post("/forward-pass")
def forward_pass(site: Served, asked: ForwardPass) -> ForwardPassed | Problem:
    """The likeliest next tokens."""
    engine = site.model
    with site.jobs.alone("forward pass"):
        try:
            return _forward_pass(engine, asked)
        except CircuitTracerError as error:
            return Problem(error=f"Forward pass failed: {error}")


@NEURONPEDIA.post("/generate-graph", response_model=Uploaded, response_model_exclude_none=True)
def generate_graph(site: Served, asked: GenerateGraph) -> Response | Uploaded:
    """Trace a prompt; answer with its graph, or send that to a signed address."""
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.attribution.target_text import parse_target
    from circuit_tracer.attribution.targets import AttentionTarget

    engine = site.model
    name = _require_model(engine, asked.model_id)
    targets = [parse_target(text) for text in asked.attribution_targets]
    scores = [target for target in targets if isinstance(target, AttentionTarget)] if asked.enable_qk_tracing else []
    if asked.enable_qk_tracing and not scores:
        raise InputError(
            "QK tracing explains scores of heads, and none is named: send them in attribution_targets, such as "
            "attn:L5H3:-1:4, or enable_qk_tracing false"
        )
    with site.jobs.alone("graph generation"):
        graph = attribute(
            engine.ids_of_text(_prompt(engine, asked)),
            engine.model,
            attribution_targets=targets or None,
            max_n_logits=asked.max_n_logits,
            desired_logit_prob=asked.desired_logit_prob,
            batch_size=asked.batch_size,
            max_feature_nodes=engine.feature_nodes(asked.max_feature_nodes, usual=10_000),
        )
        for target in scores:
            found = graph.explain_score(engine.model, *target.place)
            graph.scores.append(found.kept(asked.qk_topk, asked.qk_topk))
        document = graph_document(
            graph,
            asked.slug_identifier,
            name,
            asked.node_threshold,
            asked.edge_threshold,
            labels=site.labels,
            info={"creator_name": asked.user_id} if asked.user_id else None,
        )
    if asked.signed_url is None:
        return Response(document.text.encode("utf-8", "replace"), media_type="application/json")
    return _upload(document.text, asked.signed_url, asked.compress)


@NEURONPEDIA.post("/steer", operation_id="neuronpedia_steer")
def steer(site: Served, asked: Steer) -> Steered:
    """Generate with features at fixed values, and without."""
    engine = site.model
    _require_model(engine, asked.model_id)
    ids = engine.ids_of_text(chat_turns.without_bos(_prompt(engine, asked), engine.model.tokenizer))
    for feature in asked.features:
        _check(feature, len(ids))
    kept = [each for each in asked.features if each.steer_position not in _unsteerable(engine, ids)]
    with site.jobs.alone("steering"):
        interventions = _interventions(engine, ids, kept)
        default = _generation(engine, ids, [], asked)
        steered = _generation(engine, ids, interventions, asked)
    return Steered(
        DEFAULT_GENERATION="".join(each.token for each in default),
        STEERED_GENERATION="".join(each.token for each in steered),
        DEFAULT_LOGITS_BY_TOKEN=default,
        STEERED_LOGITS_BY_TOKEN=steered,
    )


def neuronpedia_id(model_name: str) -> str:
    """The id under which Neuronpedia knows a model: google/gemma-2-2b is gemma-2-2b."""
    return model_name.partition("@")[0].rstrip("/").rsplit("/", 1)[-1].lower()


def _require_model(engine: Engine, asked: str) -> str:
    name = engine.model.cfg.model_name
    if asked not in (name, neuronpedia_id(name)):
        raise InputError(f"Model {asked[:100]!r} is not available. Only {name!r} is currently loaded.")
    return neuronpedia_id(name)


def _prompt(engine: Engine, asked: WithPrompt) -> str:
    if asked.messages is None:
        return asked.prompt
    return chat_turns.render([turn.model_dump() for turn in asked.messages], engine.model.tokenizer)


def _forward_pass(engine: Engine, asked: ForwardPass) -> ForwardPassed:
    import torch

    from circuit_tracer.models.capture import check_length, logits_at
    from circuit_tracer.models.run import ModelRun

    prompt = _prompt(engine, asked)
    ids, parts = engine.ids_of_text(prompt), engine.model.parts
    check_length(parts, ids)
    with torch.no_grad():
        probability = torch.softmax(logits_at(parts, ModelRun(parts)(ids).final[0, -1:])[0], dim=-1)
    top = torch.topk(probability, min(asked.max_n_logits, len(probability)))
    before = torch.cumsum(top.values, 0) - top.values
    count = int((before < asked.desired_logit_prob).sum())
    rows = zip(engine.texts(top.indices[:count]), top.indices.tolist(), top.values.tolist(), strict=False)
    salient = [SalientLogit(token=text, token_id=number, probability=value) for text, number, value in rows]
    return ForwardPassed(
        prompt=prompt,
        input_tokens=engine.texts(ids),
        salient_logits=salient,
        total_salient_tokens=len(salient),
        cumulative_probability=float(top.values[:count].sum()),
    )


def _unsteerable(engine: Engine, ids: Tensor) -> list[int]:
    """Positions of the token that opens a text, which carries no meaning of its own."""
    opening = engine.model.tokenizer.bos_token_id
    return [position for position, number in enumerate(ids.tolist()) if number == opening]


def _check(feature: SteerFeature, n_pos: int) -> None:
    """Neuronpedia's rules, in its words."""
    if feature.ablate and feature.delta is not None:
        raise InputError("When ablate is True, delta must be None")
    if not feature.ablate and feature.delta is None:
        raise InputError("When ablate is False, delta must be provided")
    if feature.steer_generated_tokens and feature.steer_position is not None:
        raise InputError("When steer_generated_tokens is True, position must be None")
    if not feature.steer_generated_tokens and feature.steer_position is None:
        raise InputError("When steer_generated_tokens is False, position must be provided")
    for position in (feature.steer_position, feature.token_active_position):
        if position is not None and not 0 <= position < n_pos:
            raise InputError(f"Position is out of bounds: {position}, of {n_pos} tokens")


def _interventions(engine: Engine, ids: Tensor, features: list[SteerFeature]) -> list[Any]:
    """(layer, position, feature, value) each."""
    import torch

    from circuit_tracer.interventions import FeatureAt
    from circuit_tracer.interventions.features.clean import CleanRun
    from circuit_tracer.interventions.features.resolve import check_feature

    clean = CleanRun(engine.model, ids)
    found = []
    for each in features:
        check_feature(FeatureAt(each.layer, None, each.index), engine.model.transcoders)
        value = 0.0
        if each.delta is not None:
            place = torch.tensor([each.token_active_position]), torch.tensor([each.index])
            value = float(clean.activations(each.layer, *place)) + each.delta
        where: int | slice = slice(len(ids), None)
        if each.steer_position is not None:
            where = each.steer_position
        found.append((each.layer, where, each.index, value))
    return found


def _generation(engine: Engine, ids: Tensor, interventions: list[Any], asked: Steer) -> list[LogitsByToken]:
    """The prompt's tokens and those generated, each generated step with its likeliest tokens."""
    import torch

    from circuit_tracer.interventions.steering.generate import generate_held

    sampling: dict[str, Any] = {"do_sample": asked.temperature > 0, "freq_penalty": asked.freq_penalty}
    if asked.temperature > 0:
        sampling["temperature"] = asked.temperature
    # One more than is shown, for what is likely behind the last one.
    found, logits, _ = generate_held(
        engine.model,
        ids,
        interventions,
        freeze_attention=asked.freeze_attention,
        return_activations=False,
        max_new_tokens=asked.n_tokens + 1,
        seed=secrets.randbits(63) if asked.seed is None else asked.seed,
        **sampling,
    )
    shown = found[: len(ids) + asked.n_tokens]
    top = torch.softmax(logits.float(), dim=-1).topk(min(asked.top_k, logits.shape[-1]))
    likely = [
        [TopLogit(token=text, prob=prob) for text, prob in zip(engine.texts(row), values.tolist(), strict=True)]
        for row, values in zip(top.indices.cpu(), top.values, strict=True)
    ]
    first = len(ids) - 1
    return [
        LogitsByToken(token=text, top_logits=likely[at - first] if first <= at < first + len(likely) else [])
        for at, text in enumerate(engine.texts(shown))
    ]


def _upload(text: str, address: str, compress: bool) -> Uploaded:
    """Send a document to a signed address, as Neuronpedia's storage takes it."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError("signed_url must be an http or https address")
    data = text.encode("utf-8", "replace")
    headers = {"Content-Type": "application/json"}
    if compress:
        data, headers["Content-Encoding"] = gzip.compress(data, 3), "gzip"
    try:
        request("PUT", address, data, headers, attempts=1)
    except CircuitTracerError as error:
        return Uploaded(error=f"Failed to upload file: {error}")
    return Uploaded(success=f"Graph uploaded successfully to url: {address}")
