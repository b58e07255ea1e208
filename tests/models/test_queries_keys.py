"""Queries and keys as affine maps of the stream, on every architecture: scores are those of the model's own attention, and
reads give queries and keys back, on this stream and on any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models import attention
from circuit_tracer.models.architecture import NormKind
from circuit_tracer.models.capture import PromptCapture, capture
from circuit_tracer.models.layer_scores import LayerScores
from circuit_tracer.models.norms import NormParameters
from circuit_tracer.models.parts import ModelParts, bind
from circuit_tracer.models.queries_keys import read_scores
from circuit_tracer.models.run import ModelRun, implementation, read
from tests.support.tiny import CONFIGS, FAMILIES, NO_SCORES, tiny_model

IDS = torch.tensor([3, 17, 5, 17, 40, 8, 0, 29])  # longer than the sliding windows
N_POS = len(IDS)
ROUNDED = {
    "cohere",
    "cohere2",
    "deepseek_v2",
    "ernie4_5",
    "hunyuan_vl",
    "llama4",
}  # their rotary embedding rounds queries to float32
# what the tables of tiny models leave out
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4-no-rope": ("llama4_text", {"no_rope_layers": [1, 0], "floor_scale": 3, "attn_scale": 0.4}),
    "stablelm-head-norms": ("stablelm", {"qk_layernorm": True}),
    "glm4_moe-head-norms": ("glm4_moe", {"use_qk_norm": True}),
    "gpt_neox-half-rotary": ("gpt_neox", {"rotary_pct": 0.5}),
}


@dataclass
class Case:
    name: str
    parts: ModelParts
    captured: PromptCapture
    scores: dict[int, LayerScores]

    @property
    def tolerance(self) -> float:
        """Of our scores against the model's."""
        return 1e-6 if self.name.startswith(tuple(ROUNDED)) else 1e-9


def case_of(name: str, dtype: torch.dtype = torch.float64, n_layers: int = 2, **overrides: Any) -> Case:
    family, extra = VARIANTS.get(name, (name, {}))
    parts = bind(tiny_model(family, dtype, num_hidden_layers=n_layers, **extra, **overrides), name)
    captured = capture(parts, IDS)
    return Case(name, parts, captured, read_scores(parts, captured, range(n_layers)))


_SHOWN = [name for name in FAMILIES if name not in NO_SCORES and name != "deepseek_v3"]


@pytest.fixture(scope="module", params=[*CONFIGS, "deepseek_v3", *_SHOWN, *VARIANTS])
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Up to a tolerance relative to the largest."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# ---- every architecture


@pytest.mark.few
def test_scores_are_those_of_the_models_own_attention(case: Case) -> None:
    places = [(f"attn.hook_{what}", layer) for what in ("scores", "q", "k") for layer in case.scores]
    seen = {place: x[0] for place, x in read(case.parts, IDS, places).items()}
    for layer, one in case.scores.items():
        same(one.query, seen["attn.hook_q", layer], case.tolerance)
        same(one.key, seen["attn.hook_k", layer], case.tolerance)
        for query in (0, N_POS - 1):
            score, logs = (
                torch.stack([ask(head, query) for head in range(one.n_heads)]) for ask in (one.score, one.log_pattern)
            )
            pattern = case.captured.patterns[layer][:, query]
            same(logs.exp(), pattern, case.tolerance)
            looked = torch.arange(int(one.first[query]), query + 1)
            assert torch.equal(logs.isfinite().all(0).nonzero().flatten(), looked)
            score, own = score[:, looked], seen["attn.hook_scores", layer][:, query, looked]
            same(score, own, case.tolerance)
            same(score[1], torch.stack([one.score(1, query, int(key)) for key in looked]))
            contrast, of_logs = score[:, -1:] - score, pattern[:, looked].log()
            same(contrast + 1, of_logs[:, -1:] - of_logs + 1, 10 * case.tolerance)


@pytest.mark.few
def test_patterns_are_those_that_transformers_says(case: Case) -> None:
    with torch.no_grad(), implementation(case.parts, "eager"):
        own = case.parts.model(input_ids=IDS[None], output_attentions=True).attentions
    for layer, one in case.scores.items():
        rows = torch.stack([one.log_pattern(head, N_POS - 1).exp() for head in range(one.n_heads)])
        if case.name.endswith("_swa"):  # says its weights before the sinks take their share
            rows = rows / rows.sum(1, keepdim=True)
        same(rows, own[layer][0, :, -1], 1e-5)  # which makes them in float32


@pytest.mark.few
def test_reads_give_queries_and_keys_back(case: Case) -> None:
    for one in case.scores.values():
        cotangents = draw(3, one.query.shape[2])
        for head in range(one.n_heads):
            for position in (0, 5):
                x = one.stream[position]
                vectors, constants = one.query_reads(head, position, cotangents)
                same(vectors @ x + constants, cotangents @ one.query[head, position])
                vectors, constants = one.key_reads(head, position, cotangents)
                same(vectors @ x + constants, cotangents @ one.key[one.key_head(head), position])
                same(one.key_reads(head, position, cotangents[1:2])[0], vectors[1:2])
        vectors, constants = one.keys_reads(1, [4, 2], cotangents[:2])
        for at, position in enumerate((4, 2)):
            alone = one.key_reads(1, position, cotangents[at][None])
            same(vectors[at], alone[0][0])
            same(constants[at], alone[1][0])


@pytest.mark.few
def test_reads_hold_on_any_other_stream(case: Case) -> None:
    """With norms frozen, another stream has the queries and keys that its own position says. Norms of heads react in this pass:
    then directions are the same."""
    layer, one = 1, case.scores[1]
    other = one.stream + draw(*one.stream.shape, seed=1)
    seen: dict[str, Tensor] = {}
    visits = {("hook_resid_pre", layer): lambda _, x: other[None]}
    for name in ("q", "k"):
        visits[f"attn.hook_{name}", layer] = lambda _, x, name=name: seen.update({name: x[0]})
    ModelRun(case.parts, visits, norms=case.captured.scales)(IDS)
    head_norms = case.parts.layers[layer].head_norms.values()
    if any(norm.parameters.shift is not None or norm.parameters.centred for norm in head_norms):
        return
    for head in range(one.n_heads):
        for reads, x_Pd in ((one.query_reads, seen["q"][head]), (one.key_reads, seen["k"][one.key_head(head)])):
            for position in (1, 6):
                vectors, constants = reads(head, position, torch.eye(x_Pd.shape[1]))
                expected, found = x_Pd[position], vectors @ other[position] + constants
                if head_norms:
                    expected, found = expected / expected.norm(), found / found.norm()
                same(found, expected, case.tolerance)


@pytest.mark.few
def test_norms_of_queries_and_keys_are_found(case: Case) -> None:
    attention_module = case.parts.layers[0].attention
    expected = {path for path, each in attention_module.named_modules() if type(each).__name__.endswith("Norm")}
    assert set(case.parts.layers[0].head_norms) == expected


# ---- what a model has, and what it is read as


@pytest.fixture(scope="module")
def llama() -> Case:
    return case_of("llama", n_layers=3)


@pytest.mark.parametrize(("name", "layer"), [("llama", 0), ("gpt_neox-half-rotary", 0), ("smollm3", 1)])
def test_with_rotary_embedding_only_the_distance_counts(name: str, layer: int) -> None:
    one = case_of(name).scores[layer]
    every = torch.eye(one.query.shape[2])

    def form(query: int, key: int) -> Tensor:
        """What scores are of two vectors, the same at any place, with norms of scale one."""
        norm = one.queries.norm
        assert norm is not None
        left, right = one.query_reads(1, query, every)[0], one.key_reads(1, key, every)[0]
        return left.T @ right / norm.inverse_sigma[query] / norm.inverse_sigma[key]

    for shift in range(1, 6):
        # transformers makes the angles in float32
        same(form(2 + shift, shift), form(2, 0), 1e-5)
    rotated = float((form(3, 0) - form(2, 0)).abs().max())
    assert rotated < 1e-12 if name == "smollm3" else rotated > 1e-3  # a layer without positions


def test_heads_of_a_group_read_one_key(llama: Case) -> None:
    one = llama.scores[0]
    assert [one.key_head(head) for head in range(4)] == [0, 0, 1, 1]
    cotangents = draw(2, one.key.shape[2])
    vectors = [one.key_reads(head, 3, cotangents)[0] for head in range(4)]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[1], vectors[2])


def test_windows_caps_and_sinks_are_those_of_the_layer() -> None:
    gemma, oss = case_of("gemma2").scores, case_of("gpt_oss").scores
    assert gemma[0].first.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    assert gemma[1].first.tolist() == [0] * N_POS
    assert gemma[0].softcap == 50.0
    raw = gemma[0].raw(0, 5, 4) * 1000
    assert float(gemma[0].score(0, 5, 4)) == pytest.approx(50 * float(torch.tanh(raw / 1000 / 50)), rel=1e-12)
    assert oss[0].softcap is None
    assert oss[0].sinks is not None
    assert float(oss[0].log_pattern(2, 6).exp().sum()) < 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "gpt_neox"])
def test_models_of_less_precision_are_read_in_float32(name: str, dtype: torch.dtype) -> None:
    case = case_of(name, dtype)
    for layer, one in case.scores.items():
        assert one.query.dtype is one.stream.dtype is torch.float32
        cotangents = draw(4, one.query.shape[2])
        vectors, constants = one.query_reads(2, 5, cotangents)
        same(vectors @ one.stream[5] + constants, cotangents.float() @ one.query[2, 5], 1e-5)
        pattern = case.captured.patterns[layer][2, 5]
        same(one.log_pattern(2, 5).exp(), pattern, 1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("name", ["mistral", "gpt_oss", "gemma3"])
def test_long_prompts_are_read_as_short_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_A_TILE", 3)
    short = case_of(name)
    long = read_scores(short.parts, capture(short.parts, IDS, keep_patterns=False), [1])[1]
    same(long.query, short.scores[1].query)
    same(long.log_pattern(3, 6).exp(), short.scores[1].log_pattern(3, 6).exp())
    same(
        long.key_reads(3, 4, draw(2, long.key.shape[2]))[0],
        short.scores[1].key_reads(3, 4, draw(2, long.key.shape[2]))[0],
    )


def test_weights_of_zero_are_read_too() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    model.model.layers[0].self_attn.q_proj.weight.zero_()
    parts = bind(model, "llama")
    one = read_scores(parts, capture(parts, IDS), [0])[0]
    assert not one.query_reads(0, 5, draw(2, 4))[0].any()
    same(one.log_pattern(0, 3)[:4], torch.full((4,), 0.25).log().double(), 1e-6)


# ---- what it costs, and what it leaves behind


def test_the_model_runs_no_further_than_it_must_and_is_left_as_it_was(llama: Case) -> None:
    ran: list[int] = []
    handles = [
        layer.mlp.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(llama.parts.layers)
    ]
    before = {name: id(module) for name, module in llama.parts.model.named_modules()}
    found = read_scores(llama.parts, llama.captured, [1])
    assert list(found) == [1]
    assert ran == [0]
    assert {name: id(module) for name, module in llama.parts.model.named_modules()} == before
    for handle in handles:
        handle.remove()


def test_weights_that_learn_get_no_gradients_and_neither_mode_of_torch_matters(llama: Case) -> None:
    llama.parts.model.requires_grad_(True)
    expected = llama.scores[0].query_reads(1, 4, draw(2, 4))
    with torch.inference_mode():
        one = read_scores(llama.parts, llama.captured, [0])[0]
        found = one.query_reads(1, 4, draw(2, 4))
    with torch.no_grad():
        same(one.query_reads(1, 4, draw(1, 4))[0], llama.scores[0].query_reads(1, 4, draw(1, 4))[0])
    same(found[0], expected[0])
    assert not found[0].requires_grad
    assert all(weight.grad is None for weight in llama.parts.model.parameters())
    llama.parts.model.requires_grad_(False)


def test_layers_are_read_once_in_any_order(llama: Case) -> None:
    assert list(read_scores(llama.parts, llama.captured, [2, 0, 2])) == [0, 2]
    assert read_scores(llama.parts, llama.captured, []) == {}


# ---- refusals


@pytest.mark.parametrize(
    ("layer", "says"),
    [(3, "layer 3 does not exist; the model has layers 0 to 2"), (-1, "layer -1"), (0.5, "layer is 0.5")],
)
def test_a_layer_that_is_not_there_is_refused(llama: Case, layer: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_scores(llama.parts, llama.captured, [layer])


@pytest.mark.parametrize(
    ("head", "query", "key", "says"),
    [
        (4, 5, 2, "there is no head L0H4"),
        (-1, 5, 2, "there is no head L0H-1"),
        (True, 5, 2, "head is True; expected a whole number"),
        (1, 8, 2, "query 8 does not exist; the prompt has positions 0 to 7"),
        (1, 5, -2, "key -2 does not exist; the prompt has positions 0 to 7"),
        (1, 5, 6, "key 6 is behind query 5, which sees nothing later; give a key from 2 to 5"),
        (1, 5, 1, "key 1 is outside the window of layer 0, whose query 5 sees keys 2 to 5"),
    ],
)
def test_a_score_that_is_not_there_is_refused(mistral: LayerScores, head: Any, query: int, key: int, says: str) -> None:
    for ask in (mistral.require, mistral.raw, mistral.score):
        with pytest.raises(InputError, match=says):
            ask(head, query, key)


@pytest.fixture(scope="module")
def mistral() -> LayerScores:
    return case_of("mistral").scores[0]


@pytest.mark.parametrize("shape", [(4,), (2, 5), (0, 4)], ids=str)
def test_cotangents_of_another_shape_are_refused(mistral: LayerScores, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"cotangents have shape .*; expected is \(n, 4\)"):
        mistral.query_reads(0, 3, torch.ones(shape))
    with pytest.raises(InputError, match="position 8 does not exist"):
        mistral.key_reads(0, 8, torch.ones(1, 4))


class Bent(nn.Module):
    """A projection with a squashing function behind it."""

    def __init__(self, within: nn.Module) -> None:
        super().__init__()
        self.within = within

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.within(x))


class Shifted(Bent):
    """A projection that reads the token before too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x + x.roll(1, dims=1) / 8)


class OddNorm(Bent):
    """A norm of no kind that is known."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "path", "kind", "what"),
    [
        ("llama", "q_proj", Bent, "queries"),
        ("llama", "k_proj", Shifted, "keys"),
        ("qwen3", "q_norm", OddNorm, "queries"),
    ],
    ids=["squashed", "token before", "norm of another kind"],
)
def test_queries_and_keys_that_are_no_such_map_are_refused_by_name(name: str, path: str, kind: Any, what: str) -> None:
    model = tiny_model(name, num_hidden_layers=1)
    module = model.model.layers[0].self_attn
    setattr(module, path, kind(getattr(module, path)).eval())
    parts = bind(model, name)
    with pytest.raises(
        UnsupportedModelError, match=rf"{what} of layer 0 of this {name} are no affine map of the residual"
    ):
        read_scores(parts, capture(parts, IDS), [0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", NormKind, ids=lambda kind: kind.value)
def test_a_norm_is_recognised_by_what_it_gives(kind: NormKind, dtype: torch.dtype) -> None:
    known = {
        NormKind.RMS: "qwen3",
        NormKind.RMS_PLUS_ONE: "gemma3",
        NormKind.LAYER: "phi",
        NormKind.LAYER_PLUS_ONE: "nemotron",
    }
    parts = bind(tiny_model(known[kind], dtype, num_hidden_layers=1), "x")
    norms = [*parts.layers[0].head_norms.values(), *parts.layers[0].norms().values()]
    for norm in norms:
        found = NormParameters.recognise(norm.module, parts.compute_dtype)
        assert found is not None
        assert found.centred == norm.parameters.centred == (kind in (NormKind.LAYER, NormKind.LAYER_PLUS_ONE))
        same(found.gain, norm.parameters.gain)
    assert NormParameters.recognise(OddNorm(nn.Identity()), torch.float64) is None
