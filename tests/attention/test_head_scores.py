"""Scores of heads: against loops over the patterns by the formulas of docs/how-to/heads.md, and on heads that are known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel
from circuit_tracer.attention import HeadTable, RandomTokens, diagnose_heads
from circuit_tracer.attention.sequences import windows
from circuit_tracer.errors import InputError, NumericalError
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import read
from tests.support.data_cases import tokenizer
from tests.support.induction import (
    FIRST,
    INDUCTION,
    POSITIONS,
    PREVIOUS_TOKEN,
    RESTING,
    SELF,
    UNIFORM,
    induction_model,
    induction_transcoders,
)
from tests.support.kept import kept
from tests.support.tiny import tiny_model, tiny_transcoder

TEXTS = [[1, 5, 5, 9, 5, 9, 7, 9], [3, 3, 3], [8, 4, 2, 6, 8, 4, 2, 6]]  # repeats at once, thrice, and of a block


def by_loops(parts: Any, texts: list[list[int]]) -> dict[str, Tensor]:
    """The definitions, entry by entry: sums over all texts, over counts over all texts."""
    sums: dict[str, Any] = dict.fromkeys(
        ("self", "previous_token", "entropy", "distance", "squared", "duplicate_token", "induction"), 0.0
    )
    tokens = repeated = 0
    for ids in texts:
        places = [("attn.hook_pattern", layer) for layer in range(len(parts.layers))]
        found = read(parts, torch.tensor([ids]), places)
        pattern = torch.stack([found[place][0] for place in places]).double()  # (L, H, T, T)
        for q, token in enumerate(ids):
            earlier = [r for r in range(q) if ids[r] == token]
            tokens, repeated = tokens + 1, repeated + bool(earlier)
            row = pattern[:, :, q]
            sums["self"] = sums["self"] + row[..., q]
            sums["previous_token"] = sums["previous_token"] + (row[..., q - 1] if q else 0.0)
            for k in range(q + 1):
                a = row[..., k]
                sums["entropy"] = sums["entropy"] - torch.where(a > 0, a * a.log(), 0.0)
                sums["distance"] = sums["distance"] + a * (q - k)
                sums["squared"] = sums["squared"] + a * (q - k) ** 2
            for r in earlier:
                sums["duplicate_token"] = sums["duplicate_token"] + row[..., r]
                behind = row[..., r + 1]
                sums["induction"] = sums["induction"] + torch.where(behind < 0.01, 0.0, behind)
    by = {"previous_token": tokens - len(texts), "duplicate_token": repeated, "induction": repeated}
    means = {name: value / by.get(name, tokens) for name, value in sums.items()}
    means["distance_variance"] = means.pop("squared") - means["distance"] ** 2
    return means


@pytest.mark.few
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss", "gpt2", "gpt_neox", "olmo2", "gpt_bigcode"])
def test_scores_are_their_definitions(name: str) -> None:
    """Grouped queries, soft caps, windows and sinks, whose rows sum to less than one, included."""
    model = tiny_model(name)
    table = diagnose_heads(model, TEXTS, ablate=1)
    for score, expected in by_loops(bind(model, name), TEXTS).items():
        torch.testing.assert_close(
            table[score], expected, rtol=1e-6, atol=1e-6, msg=lambda text, score=score: score + text
        )
    assert (table.n_layers, table.n_heads, table.n_tokens, table.repeated) == (3, 4, 19, 2 + 2 + 2 + 4)
    assert bool(table["ov_copying"].abs().le(1).all())


@pytest.fixture(scope="module")
def known() -> HeadTable:
    """The model written by hand, on blocks of 14 tokens said twice."""
    return diagnose_heads(induction_model(), random=RandomTokens(14, 3), ablate="all")


def test_the_heads_of_the_induction_model(known: HeadTable) -> None:
    assert float(known["induction"][INDUCTION]) >= 0.999
    assert float(known["previous_token"][PREVIOUS_TOKEN]) >= 0.999
    assert float(known["self"][SELF]) >= 0.999
    assert known.strongest("induction", 1) == [INDUCTION]
    assert known.strongest("previous_token", 1) == [PREVIOUS_TOKEN]
    others = [head for head in known.order() if head != INDUCTION]
    assert all(float(known["induction"][head]) < 0.1 for head in others)
    assert float(known["distance"][RESTING]) == pytest.approx(sum(range(29)) / 29)
    assert float(known["ov_copying"][INDUCTION]) == pytest.approx(1.0)
    assert [head for head in known.order() if not math.isnan(float(known["ov_copying"][head]))] == [INDUCTION]


def test_uniform_attention(known: HeadTable) -> None:
    queries = torch.arange(29, dtype=torch.float64)
    expected = {
        "entropy": (queries + 1).log().mean(),
        "previous_token": (1 / (queries[1:] + 1)).mean(),
        "self": (1 / (queries + 1)).mean(),
        "distance": (queries / 2).mean(),
    }
    for score, value in expected.items():
        for head in UNIFORM:
            assert float(known[score][head]) == pytest.approx(float(value), rel=1e-6), score


def test_induction_adds_up_all_earlier_copies_and_the_query_itself() -> None:
    """As HeadVis has it: at the third copy both tokens that followed count; at a token said twice running, the query does."""
    thrice = diagnose_heads(induction_model(), [FIRST, 3, 4, 5, 3, 6, 7, 3], ablate=0)
    assert float(thrice["induction"][INDUCTION]) >= 0.999
    running = diagnose_heads(induction_model(), [FIRST, 3, 3, 4], ablate=0)
    assert (running.repeated, float(running["induction"][SELF])) == (1, pytest.approx(1.0))


def test_weak_attention_is_no_induction() -> None:
    """A uniform head gives each of more than 100 keys less than .01."""
    model = tiny_model("llama", vocab_size=200, max_position_embeddings=256)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()
    ids = [*range(3, 110), *range(3, 13)]
    table = diagnose_heads(model, ids, ablate=0)
    assert table.repeated == 10
    assert not table["induction"].any()
    assert bool((table["duplicate_token"] > 0.005).all())


def test_without_a_repeated_token_two_scores_are_undefined() -> None:
    table = diagnose_heads(tiny_model("llama"), [3, 4], ablate=0)
    assert bool(table["induction"].isnan().all())
    assert bool(table["duplicate_token"].isnan().all())
    assert table.row((0, 0))["induction"] is None
    assert table.strongest("induction") == []
    assert bool(table["previous_token"].isfinite().all())
    assert "induction:" not in repr(table)


@kept
def read_at_once() -> HeadTable:
    return diagnose_heads(tiny_model("gemma3"), TEXTS, ablate=3)


@pytest.mark.few
@pytest.mark.parametrize("batch_tokens", [1, 10, 1000])
def test_batches_and_lengths_change_nothing(batch_tokens: int) -> None:
    """Sequences of several lengths, read alone or together: there is no padding that could count."""
    texts, one = [*TEXTS, *TEXTS[::-1]], read_at_once()
    two = diagnose_heads(tiny_model("gemma3"), texts, ablate=3, batch_tokens=batch_tokens)
    for score in one.scores:
        torch.testing.assert_close(two[score], one[score], equal_nan=True)
    assert torch.equal(two.peaks[:3], one.peaks)


def test_a_model_with_transcoders_is_read_like_the_bare_one(known: HeadTable) -> None:
    whole = ReplacementModel.from_model(induction_model(), induction_transcoders(), None, "org/induction")
    table = diagnose_heads(whole, random=RandomTokens(14, 3), ablate="all")
    assert table.model == "org/induction"
    for score in table.scores:
        assert torch.equal(table[score].nan_to_num(), known[score].nan_to_num()), score


# ---- what is read


def cut(*texts: Any, **settings: Any) -> list[list[int]]:
    parts = bind(tiny_model("llama"), "llama")
    return [ids.tolist() for ids in windows(texts, parts, tokenizer(), **settings)]


def test_texts_are_cut_into_windows_behind_the_special_token() -> None:
    (whole,) = cut("abcde")
    first, *letters = whole
    assert (first, len(letters)) == (tokenizer().bos_token_id, 5)
    assert cut("abcde", context_length=3) == [[first, *letters[:2]], [first, *letters[2:4]], [first, letters[4]]]
    assert cut("abcde", prepend_bos=False, context_length=2) == [letters[:2], letters[2:4], letters[4:]]
    assert cut("ab", "c", max_tokens=4) == [[first, *letters[:2]], [first]]
    assert cut("", prepend_bos=False) == [[]]
    assert cut(torch.tensor([first, 5, 6, 7]), context_length=3) == [[first, 5, 6], [first, 7]]


def test_an_endless_text_is_read_as_far_as_wanted() -> None:
    def endless() -> Any:
        while True:
            yield [1, 5, 9, 5]

    table = diagnose_heads(tiny_model("llama"), endless(), max_tokens=10, ablate=0)
    assert (table.n_tokens, table.skipped, [len(ids) for ids in table.sequences]) == (10, 0, [4, 4, 2])


def test_texts_that_are_too_short_are_left_out_and_counted() -> None:
    table = diagnose_heads(tiny_model("llama"), [[3], [], [3, 4, 3]], ablate=0)
    assert (len(table.sequences), table.skipped) == (1, 2)
    spoken = diagnose_heads(tiny_model("llama"), ["a", ""], tokenizer=tokenizer(), ablate=0)
    assert (len(spoken.sequences), spoken.skipped) == (1, 1), "a special token stands in front of one letter"


def test_random_tokens() -> None:
    parts = bind(tiny_model("llama"), "llama")
    drawn = RandomTokens(9, 5, seed=3).draw(parts, tokenizer())
    assert drawn.ids_NT.shape == (5, 19)
    for ids in drawn.ids_NT.tolist():
        assert ids[0] == tokenizer().bos_token_id
        assert ids[1:10] == ids[10:]
        assert len(set(ids)) == 10
        assert not set(ids[1:]) & set(tokenizer().all_special_ids)
    assert torch.equal(drawn.ids_NT, RandomTokens(9, 5, seed=3).draw(parts, tokenizer()).ids_NT)
    assert not torch.equal(drawn.ids_NT, RandomTokens(9, 5).draw(parts, tokenizer()).ids_NT)
    assert RandomTokens().draw(parts, None).block == 31, "what fits into 64 tokens of context"
    assert RandomTokens().draw(bind(induction_model(), "m"), None).block == (POSITIONS - 1) // 2


# ---- refusals


@pytest.mark.few
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text": [[3], [4]]}, "none of 2 texts has two tokens"),
        ({"text": ""}, "no tokenizer"),
        ({"text": []}, "none of 0 texts"),
        ({"text": 5}, "text is a int"),
        ({"text": [[3, 99]]}, "vocabulary is 0..46"),
        ({"text": [3, 4], "context_length": 1}, "context_length is 1"),
        ({"text": [3, 4], "context_length": 65}, "the model's context length is 64"),
        ({"text": [3, 4], "max_tokens": 1}, "max_tokens 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"random": RandomTokens(40)}, "a block of 40"),
        ({"ablate": -1}, "ablate is -1"),
        ({"ablate": [(0, 4)]}, "there is no head L0H4; the model has layers 0 to 2, each with heads 0 to 3"),
        ({"ablate": [(-1, 0)]}, "there is no head L-1H0"),
        ({"ablate": [5]}, "expected (layer, head) pairs"),
        ({"ablate": "most"}, "'all'"),
        ({"how": "half"}, "'zero'"),
    ],
    ids=str,
)
def test_bad_input(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        diagnose_heads(tiny_model("llama"), **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"block": 1}, {"seed": -1}, {"sequences": 0}, {"block": 2.5}], ids=lambda one: next(iter(one))
)
def test_random_tokens_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        RandomTokens(**settings)


def test_patterns_that_are_not_finite(known: HeadTable) -> None:
    """A model that breaks behind the tokens with which it is checked when it is opened."""
    model = induction_model()
    model.transformer.wpe.weight[20] = math.nan
    with pytest.raises(NumericalError, match="patterns of layer 0 are not finite"):
        diagnose_heads(model, random=RandomTokens(14), ablate=0)
    with pytest.raises(InputError, match="score 'induced' is unknown; known are induction, "):
        known["induced"]


@pytest.mark.parametrize("head", [3, (1,), (0, "x"), (9, 0), (-1, 0), (0, 0, 0), None], ids=str)
def test_rows_of_what_is_no_head(known: HeadTable, head: Any) -> None:
    with pytest.raises(InputError, match="head"):
        known.row(head)


def test_arguments_of_a_table_that_cannot_be(known: HeadTable) -> None:
    bad: list[Any] = [[], 3, torch.ones(2)]
    for value in bad:
        with pytest.raises(InputError, match="score is"):
            known.order(value)
    with pytest.raises(InputError, match="count is"):
        known.strongest(count=[1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokenizer is expected"):
        diagnose_heads(
            ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama"), [3, 4], tokenizer=5
        )


def test_columns_are_sorted_with_the_undefined_last(known: HeadTable) -> None:
    for ascending in (False, True):
        values = [row["ov_copying"] for row in known.rows("ov_copying", ascending)]
        assert values == [pytest.approx(1.0), *[None] * 5]
        entropies = [row["entropy"] for row in known.rows("entropy", ascending)]
        assert all((a <= b) if ascending else (a >= b) for a, b in pairwise(entropies))
