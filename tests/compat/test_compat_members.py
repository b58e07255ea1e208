"""What scripts for circuit-tracer ask of a replacement model as a torch module and as a HookedTransformer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attribution.targets import AttributionTargets, CustomTarget
from circuit_tracer.errors import InputError
from circuit_tracer.replacement_model.common import convert_open_ended_interventions, ensure_tokenized
from circuit_tracer.replacement_model.replacement_model import Backend
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, assert_equal

PEER = Path(__file__).parents[1] / "interventions" / "peer"
PROMPT = "the capital of Texas is"


def load(**options: Any) -> ReplacementModel:
    return ReplacementModel.from_pretrained(PEER / "model", PEER / "clt", device="cpu", **options)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return load()


def test_it_is_a_module(model: ReplacementModel) -> None:
    assert model.eval() is model
    assert model.train() is model
    assert model.hf_model.training
    assert not model.eval().hf_model.training
    names = dict(model.named_parameters())
    assert len(list(model.parameters())) == len(names)
    assert names["lm_head.weight"] is model.hf_model.lm_head.weight
    assert names["transcoders.W_enc"] is model.transcoders.W_enc
    assert (model.config, model.dtype, model.device) == (model.hf_model.config, torch.float32, torch.device("cpu"))


def test_calling_it_gives_the_models_logits(model: ReplacementModel) -> None:
    ids = model.ensure_tokenized(PROMPT)
    expected = model.hf_model(ids[None]).logits
    for given in (PROMPT, ids, ids[None]):
        torch.testing.assert_close(model(given), expected)
    torch.testing.assert_close(model(torch.stack([ids, ids.flip(0)]))[:1], expected)
    with pytest.raises(InputError, match="hf_model"):
        model(PROMPT, return_type="loss")


def test_sizes_tokens_and_matrices(model: ReplacementModel) -> None:
    cfg = model.cfg
    assert (cfg.device, cfg.n_ctx, cfg.n_layers, cfg.d_vocab) == (torch.device("cpu"), 64, 3, 47)
    assert cfg.tokenizer_name == str(PEER / "model")
    ids = model.ensure_tokenized(PROMPT)
    assert model.to_tokens(PROMPT).tolist() == [ids.tolist()]
    assert model.to_tokens(PROMPT, prepend_bos=False).tolist() == [ids[1:].tolist()]
    assert model.to_str_tokens(PROMPT)[1:] == ["the", "capital", "of", "Texas", "is"]
    assert model.to_string(model.to_tokens(PROMPT, prepend_bos=False)) == PROMPT
    assert model.to_single_token("Texas") == int(ids[4])
    head = model.hf_model.lm_head.weight
    assert torch.equal(model.unembed.W_U, head.T)
    assert torch.equal(model.unembed_weight, head)
    assert not model.unembed.b_U.any()
    assert torch.equal(model.embed.W_E, model.hf_model.get_input_embeddings().weight)
    assert model.zero_positions == slice(0, 1)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gpt2", "llama"])
def test_token_vectors_are_rows_of_the_embedding_matrix(architecture: str) -> None:
    model = ReplacementModel.from_model(tiny_model(architecture), tiny_transcoder(), None, architecture)
    assert_equal(model.W_E[IDS], model.setup_attribution(IDS).token_vectors, 1e-12)


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_a_context_has_the_parts_of_a_graph(kind: str) -> None:
    model = ReplacementModel.from_model(tiny_model("gemma2"), tiny_transcoder(kind, skip=True), None, "gemma2")
    graph, context = attribute(IDS, model), model.setup_attribution(IDS)
    features = graph.active_features
    assert torch.equal(context.activation_matrix.indices().T, features)
    matrix, n = graph.adjacency_matrix, len(features)
    rows = context.compute_batch(features[:, 0], features[:, 1], context.encoder_vecs)
    assert_equal(rows, matrix[:n, : rows.shape[1]], 1e-9)
    components = model.transcoders.compute_attribution_components(_inputs(model, context))
    assert_equal(components["decoder_vecs"], context.decoder_vecs, 1e-9)
    assert torch.equal(components["encoder_to_decoder_map"], context.encoder_to_decoder_map)
    assert torch.equal(components["decoder_locations"], context.decoder_locations)
    assert context.logits.shape == (1, len(IDS), model.cfg.d_vocab)


def _inputs(model: ReplacementModel, context: Any) -> Tensor:
    return torch.stack([context.prompt.network.transcoder_input(layer) for layer in range(model.cfg.n_layers)])


@pytest.mark.parametrize("write", ["in place", "exchanged", "moved"])
def test_weights_that_change_after_loading_count(write: str) -> None:
    model = ReplacementModel.from_model(tiny_model("gemma2"), tiny_transcoder(), None, "gemma2")
    before = attribute(IDS, model)
    changed = copy.deepcopy(model.hf_model)
    with torch.no_grad():
        for layer in changed.model.layers:
            layer.pre_feedforward_layernorm.weight.mul_(2.0)
            layer.self_attn.v_proj.weight.mul_(-1.0)
    expected = attribute(IDS, ReplacementModel.from_model(changed, model.transcoders, None, "changed"))
    if write == "exchanged":
        for old, new in zip(model.hf_model.model.layers, changed.model.layers, strict=True):
            old.load_state_dict(new.state_dict(), assign=True)
    else:
        with torch.no_grad():
            for old, new in zip(model.hf_model.parameters(), changed.parameters(), strict=True):
                old.copy_(new)
    if write == "moved":
        model.to(torch.float32)
        assert attribute(IDS, model).edges.weight.dtype is torch.float32
    found = attribute(IDS, model)
    assert before.adjacency_matrix.shape != found.adjacency_matrix.shape
    assert torch.equal(found.active_features, expected.active_features)
    torch.testing.assert_close(found.adjacency_matrix.double(), expected.adjacency_matrix, rtol=1e-4, atol=1e-5)
    assert found.residual is not None
    assert found.residual < 1e-5


def test_generation_by_the_model_alone(model: ReplacementModel) -> None:
    ids = model.to_tokens(PROMPT)
    expected = model.hf_model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    greedy: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    for cached in (True, False):
        assert torch.equal(model.generate(ids, use_past_kv_cache=cached, **greedy), expected)
    assert torch.equal(model.generate(PROMPT, return_type="tokens", **greedy), expected)
    assert model.generate(PROMPT, **greedy) == model.tokenizer.decode(expected[0], skip_special_tokens=True)
    # as Neuronpedia's server asks: temperature 0 is the most probable token, even where sampling is on
    zero = model.generate(PROMPT, return_type="tokens", **{**greedy, "do_sample": True, "temperature": 0.0})
    assert torch.equal(zero, expected)
    with pytest.raises(InputError, match="return_type is 'lines'"):
        model.generate(PROMPT, return_type="lines")


def test_generation_takes_transformers_arguments(model: ReplacementModel) -> None:
    from transformers import LogitsProcessorList, MinLengthLogitsProcessor
    from transformers.generation.streamers import BaseStreamer

    class Collector(BaseStreamer):
        def __init__(self) -> None:
            self.seen: list[Tensor] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.seen.append(value.reshape(-1))

        def end(self) -> None:
            self.ended = True

    collector, ids = Collector(), model.to_tokens(PROMPT)
    neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False}
    tokens, logits, _ = model.feature_intervention_generate(
        PROMPT, [], streamer=collector, return_type="tokens", **neutral, **options
    )
    assert torch.equal(torch.cat(collector.seen), tokens[0])
    assert collector.ended
    assert logits.shape == (4, 47)
    torch.testing.assert_close(logits[0], model(ids)[0, -1])
    likely = int(tokens[0, ids.shape[1]])
    never = LogitsProcessorList([MinLengthLogitsProcessor(100, likely, device="cpu")])
    other, _, _ = model.feature_intervention_generate(
        PROMPT, [], logits_processor=never, return_type="tokens", **options
    )
    assert likely not in other[0, ids.shape[1] :].tolist()
    expected = model.hf_model.generate(
        ids, repetition_penalty=1.7, pad_token_id=0, eos_token_id=None, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(model.generate(ids, repetition_penalty=1.7, **options), expected)


def test_backends_differ_in_what_generation_does_when_told_nothing() -> None:
    assert set(Backend.__args__) == {"transformerlens", "nnsight", "interp_engine"}
    nnsight = load(backend="nnsight")
    text, logits, _ = nnsight.feature_intervention_generate(PROMPT, [], stop_at_eos=False)
    assert text.startswith("<bos>")
    assert len(logits) == 20
    again, _, _ = nnsight.feature_intervention_generate(PROMPT, [], stop_at_eos=False)
    assert again == text, "the most probable tokens, unless the model's configuration says otherwise"
    text, logits, _ = load().feature_intervention_generate(PROMPT, [], stop_at_eos=False)
    assert text.startswith(PROMPT)
    assert len(logits) == 10
    with pytest.raises(InputError, match="backend is 'jax'; expected 'transformerlens' or 'nnsight'"):
        load(backend="jax")


def test_helpers_of_interventions(model: ReplacementModel) -> None:
    ids = ensure_tokenized(PROMPT, model.tokenizer, "cpu", "llama")
    assert torch.equal(ids, model.ensure_tokenized(PROMPT))
    opened = convert_open_ended_interventions([(0, slice(2, None), 6, 1.0), (1, slice(1, 4), 2, 0.0), (1, 3, 3, 1.0)])
    assert [tuple(each) for each in opened] == [(0, 0, 6, 1.0)]


def test_a_target_may_weigh_nothing(model: ReplacementModel) -> None:
    first, second = model.unembed_weight[9], model.unembed_weight[10]
    targets = [CustomTarget("seen", 1.0, first - second), CustomTarget("watched", 0.0, second)]
    both = attribute(PROMPT, model, attribution_targets=targets, max_feature_nodes=6)
    alone = attribute(PROMPT, model, attribution_targets=targets[:1], max_feature_nodes=6)
    assert torch.equal(both.selected_features, alone.selected_features)
    assert both.logit_probabilities.tolist() == [1.0, 0.0]
    torch.testing.assert_close(both.adjacency_matrix[-2, :-2], alone.adjacency_matrix[-1, :-1])
    nothing = attribute(PROMPT, model, attribution_targets=targets[1:])
    assert nothing.residual is not None
    assert nothing.residual < 1e-5


def test_attribution_targets_by_themselves(model: ReplacementModel) -> None:
    logits = model(PROMPT)[0, -1]
    graph = attribute(PROMPT, model, max_n_logits=4)
    for matrix in (model.unembed.W_U, model.unembed_weight):
        found = AttributionTargets(None, logits, matrix, model.tokenizer, max_n_logits=4)
        assert found.token_ids.tolist() == graph.logit_token_ids.tolist()
        torch.testing.assert_close(found.logit_probabilities, graph.logit_probabilities)
        custom = list(zip(found.tokens, found.logit_probabilities.tolist(), found.logit_vectors, strict=True))
        same = attribute(PROMPT, model, attribution_targets=[CustomTarget(*target) for target in custom])
        torch.testing.assert_close(same.adjacency_matrix, graph.adjacency_matrix, rtol=1e-4, atol=1e-6)
    assert AttributionTargets(["Austin"], logits, matrix, model.tokenizer).token_ids.tolist() == [9]
    assert AttributionTargets(custom, logits, matrix, model.tokenizer).token_ids.tolist() == [47, 48, 49, 50]
    bad: list[tuple[Any, type[Exception], str]] = [
        ([], ValueError, "cannot be empty"),
        ([("a", 0.5)], ValueError, "exactly 3 elements"),
        ([(5, 0.5, logits)], TypeError, "token_str must be str"),
        ([("a", "0.5", logits)], TypeError, "prob must be int or float"),
        ([("a", 0.5, [1.0])], TypeError, "vec must be torch.Tensor"),
        ([42], TypeError, "Sequence elements must be str or TargetSpec"),
        (torch.tensor([3, 99]), ValueError, "must be in range"),
        (["the capital"], ValueError, "encoded to 2 tokens"),
        (7, TypeError, "attribution_targets must be None"),
    ]
    for given, error, message in bad:
        with pytest.raises(error, match=message) as raised:
            AttributionTargets(given, logits, matrix, model.tokenizer)
        assert isinstance(raised.value, InputError)
