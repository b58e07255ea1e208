"""Monitors: what is flagged where, in which order, however texts are batched and cut; thresholds; streams with broken lines."""

from __future__ import annotations

import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.errors import CompatibilityError, InputError
from circuit_tracer.models.parts import bind
from circuit_tracer.probes.calibration import calibrate, calibrated, rate_interval
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.incoming import read_folder, read_lines, read_texts_of
from circuit_tracer.probes.monitor import Monitor, Verdict, Watching, feature_watch, named_probes
from circuit_tracer.probes.probe import POOLS, Pool, Probe
from circuit_tracer.probes.reading import (
    Reads,
    Subject,
    Tokens,
    columns,
    read_batch,
    scored,
    tokens_of,
    tokens_of_any_length,
)
from circuit_tracer.probes.reasons import Reasons
from circuit_tracer.probes.scoring import Scorer
from circuit_tracer.probes.windows import windows
from circuit_tracer.transcoders.neurons import Neurons
from circuit_tracer.transcoders.router import Router
from tests.support.autoencoders import random_autoencoders
from tests.support.dictionaries import uniform
from tests.support.tiny import tiny_model, tiny_transcoder

TEXTS = [one.text for one in world.two_hops()[:20:3]] + ["the opposite of big is small", "after Monday comes Tuesday"]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu", dtype=torch.float32)


def probes() -> list[Probe]:
    """One of each way to read a text: the stream with features of two layers, and of one more layer alone."""
    chance = torch.Generator().manual_seed(0)
    features = ((1, 3), (2, 12), (1, 7))
    return [
        *(
            Probe(pool, "hook_resid_post", 2, torch.randn(131, generator=chance), 0.3, 2.0, pool, features)
            for pool in POOLS
        ),
        Probe("features", "features", None, torch.randn(2, generator=chance), 0.0, 0.5, "token", ((0, 5), (3, 1))),
        feature_watch("2/12 > 1.5"),
    ]


def lines(*records: object) -> io.BytesIO:
    written = (each if isinstance(each, bytes) else json.dumps(each).encode() for each in records)
    return io.BytesIO(b"\n".join(written))


def test_scores_are_those_of_each_probe_by_itself(model: ReplacementModel) -> None:
    subject, watched = Subject.of(model), list(Monitor(model, probes()).watch(TEXTS))
    for text, verdict in zip(TEXTS, watched, strict=True):
        for probe in probes():
            found = read_batch(subject, [tokens_of(text, subject)], Reads.of(probe))[0]
            alone = scored(probe, found)
            assert verdict.scores[probe.name] == pytest.approx(alone.score, rel=1e-4, abs=1e-4)
            fires = probe.fires(alone.tokens).numpy() if probe.pool == "token" else None
            flags = [flag for flag in verdict.flags if flag.probe == probe.name]
            if fires is None:
                assert len(flags) == (alone.score > probe.threshold)
            else:
                covered = np.zeros(len(text), bool)
                for flag in flags:
                    covered[flag.start : flag.end] = True
                    assert text[flag.start : flag.end] == flag.text
                expected = [bool(fires[at]) for at in np.flatnonzero(found.tokens.counted)]
                begins = found.tokens.start[found.tokens.counted]
                assert [bool(covered[at]) for at in begins] == expected


def test_answers_keep_the_order_and_do_not_depend_on_batches(model: ReplacementModel) -> None:
    stream = [{"id": f"text {number}", "text": text} for number, text in enumerate(TEXTS)]

    def answers(watching: Watching) -> list[Verdict]:
        return list(Monitor(model, probes(), watching).watch(read_lines(lines(*stream))))

    alone = answers(Watching(ahead=1, batch_tokens=1))
    assert [verdict.id for verdict in alone] == [f"text {number}" for number in range(len(TEXTS))]
    for watching in (Watching(), Watching(ahead=4, batch_tokens=30)):
        for one, other in zip(alone, answers(watching), strict=True):
            assert one.id == other.id
            assert one.scores == pytest.approx(dict(other.scores), rel=1e-6, abs=1e-5)
            assert [(flag.probe, flag.start, flag.end) for flag in one.flags] == [
                (flag.probe, flag.start, flag.end) for flag in other.flags
            ]


def test_each_text_is_answered_at_once_if_nothing_is_looked_ahead_at(model: ReplacementModel) -> None:
    asked = []

    def stream():  # type: ignore[no-untyped-def]  # a generator that tells how far it was asked
        for text in TEXTS:
            asked.append(text)
            yield text

    next(Monitor(model, probes(), Watching(ahead=1)).watch(stream()))
    assert len(asked) == 1


def test_broken_lines_have_problems_and_the_stream_goes_on(model: ReplacementModel) -> None:
    stream = lines(
        b"\xef\xbb\xbf" + json.dumps({"text": TEXTS[0]}).encode(),
        b"{broken",
        b"",
        b"\xff\xfe",
        [1, 2],
        {"id": "both", "text": "a", "messages": []},
        {"id": "none"},
        {"id": "empty", "text": "  "},
        {"id": "half", "text": "the \ud800"},
        {"id": "chat", "messages": [{"role": "user", "content": "hi"}]},
        {"id": 7, "text": TEXTS[1]},
    )
    found = list(Monitor(model, probes()).watch(read_lines(stream)))
    assert [verdict.id for verdict in found] == ["1", "2", "4", "5", "both", "none", "empty", "9", "chat", "7"]
    assert [verdict.problem is None for verdict in found] == [True, *[False] * 8, True]
    assert set(found[1].to_json()) == {"id", "problem"}
    assert json.loads(json.dumps(found[0].to_json()))["flagged"]
    later = list(Monitor(model, probes()).watch(read_lines(lines(*[{"text": text} for text in TEXTS]), skip=5)))
    assert [verdict.id for verdict in later] == [str(number) for number in range(6, len(TEXTS) + 1)]


def test_folders_are_read_by_path(tmp_path: Path) -> None:
    for name, data in (("b.txt", b"\xef\xbb\xbfthe"), ("a/c.txt", b"big"), ("a/bad.txt", b"\xff"), ("a/d.json", b"{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = list(read_folder(tmp_path))
    assert [item.id for item in found] == ["a/bad.txt", "a/c.txt", "b.txt"]
    assert "UTF-8" in str(found[0].problem)
    assert found[2].example == Example("the", where="b.txt")  # without the mark in front
    with pytest.raises(InputError, match=r"holds no \.txt files"):
        list(read_folder(tmp_path / "a" / "nothing"))


def test_a_stream_may_come_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"text": "the"}\n{}\n',), daemon=True)
    writer.start()
    found = list(read_texts_of(pipe, io.BytesIO(), plain=False, field="text", skip=0))
    assert [item.problem for item in found] == [None, "line 2 has neither text nor messages; give one of them"]


@pytest.mark.parametrize("most", [9, 12, 40])
def test_windows_read_each_token_once_behind_half_a_window(model: ReplacementModel, most: int) -> None:
    text = tokens_of_any_length(" ".join(TEXTS), Subject.of(model))
    parts = windows(text, most)
    read = np.concatenate([part.place[part.tokens.counted] for part in parts])
    assert read.tolist() == np.flatnonzero(text.counted).tolist()
    for part in parts:
        assert len(part.place) <= most
        assert part.tokens.ids.tolist() == text.ids[torch.from_numpy(part.place)].tolist()
    for part in parts[1:]:
        first = int(np.argmax(part.tokens.counted))
        assert first - 1 >= (most - 1) // 2  # behind the special token


def test_a_text_over_the_context_is_read_in_windows(model: ReplacementModel) -> None:
    text = " ".join(TEXTS)  # more than the 64 tokens that the model takes
    found = Monitor(model, probes()).look(text)
    assert found.problem is None
    assert found.tokens > 64
    subject = Subject.of(model)
    whole = tokens_of_any_length(text, subject)
    for probe in probes():
        parts = [read_batch(subject, [part.tokens], Reads.of(probe))[0] for part in windows(whole, 64)]
        by_token = torch.cat([scored(probe, part).tokens[torch.from_numpy(part.tokens.counted)] for part in parts])
        expected = {"token": by_token.max(), "mean": by_token.mean(), "last": by_token[-1]}
        if probe.pool in expected:
            assert found.scores[probe.name] == pytest.approx(float(expected[probe.pool]), rel=1e-4, abs=1e-4)


def test_features_behind_a_flag_add_up_where_the_probe_reads_features(model: ReplacementModel) -> None:
    probe = probes()[4]
    flags = [flag for verdict in Monitor(model, [probe]).watch(TEXTS) for flag in verdict.flags]
    assert flags
    for flag in flags:
        assert sum(reason.part for reason in flag.features) + probe.bias == pytest.approx(flag.score, rel=1e-5)


def test_features_behind_a_flag_of_the_stream_are_what_they_write_along_it(model: ReplacementModel) -> None:
    probe = Probe(
        "stream", "hook_resid_post", 1, torch.randn(128, generator=torch.Generator().manual_seed(3)), 0.0, -1e9, "last"
    )
    flag = Monitor(model, [probe]).look(TEXTS[0]).flags[0]
    subject = Subject.of(model)
    found = read_batch(subject, [tokens_of(TEXTS[0], subject)], Reads(None, (1,)))[0].features[1]
    here = {
        int(index): float(value)
        for position, index, value in zip(*found, strict=True)
        if int(position) == flag.position
    }
    assert flag.features
    for reason in flag.features:
        row = model.transcoders.decoder_rows(1, torch.tensor([reason.feature]), 1)[0]
        assert reason.activation == pytest.approx(here[reason.feature], rel=1e-4)
        assert reason.part == pytest.approx(here[reason.feature] * float(row @ probe.weight), rel=1e-4)


@pytest.mark.few
@pytest.mark.parametrize("dictionary", ["relu", "jump_relu", "topk", "neurons", "autoencoders", "switch"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_scores_of_every_kind_of_dictionary_are_exact(architecture: str, dictionary: str) -> None:
    parts = bind(tiny_model(architecture, torch.float64), architecture)
    if dictionary in ("autoencoders", "switch"):
        transcoders = random_autoencoders(16, "hook_resid_post", (0, 1, 2), n_features=20)
        for layer in range(3) if dictionary == "switch" else ():
            transcoders[layer].router = Router(uniform(2, 16), uniform(2), 20)
    else:
        transcoders = Neurons(parts) if dictionary == "neurons" else tiny_transcoder(activation=dictionary)
    subject = Subject(parts, None, transcoders)
    # norms round to float32 whatever a model's dtype, and differently beside other texts: an ulp of terms of some tens
    close = {"rtol": 1e-5, "atol": 1e-5}
    chance = torch.Generator().manual_seed(2)
    watched = [
        Probe(
            "some",
            "features",
            None,
            torch.randn(5, generator=chance),
            0.1,
            0.0,
            "token",
            tuple((1, 3 * at) for at in range(5)),
        ),
        Probe("both", "hook_resid_mid", 1, torch.randn(18, generator=chance), 0.1, 0.0, "max", ((0, 2), (2, 7))),
    ]
    texts = [_plain(torch.randint(3, 47, (size,), generator=chance)) for size in (5, 9, 7)]
    scorer = Scorer(subject, watched)
    rows = scorer.read(texts)
    scores = scorer.tokens(rows).split([int(text.counted.sum()) for text in texts])
    for number, probe in enumerate(watched):
        for text, found in zip(texts, scores, strict=True):
            here = read_batch(subject, [text], Reads.of(probe))[0]
            expected = scored(probe, here).tokens[torch.from_numpy(text.counted)]
            torch.testing.assert_close(found[:, number], expected.to(found), **close)
    every = torch.cat([columns(watched[1], read_batch(subject, [text], Reads.of(watched[1]))[0])[1:] for text in texts])
    torch.testing.assert_close(scorer.columns(1, rows), every.to(scorer.dtype), **close)


def test_features_of_an_autoencoder_at_the_place_are_what_it_rebuilds_there() -> None:
    parts = bind(tiny_model("llama", torch.float64), "llama")
    transcoders = random_autoencoders(16, "hook_resid_post", (0, 2))
    x, weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))
    for layer, knows in ((2, True), (1, False)):
        found = Reasons(
            Subject(parts, None, transcoders), Probe("at", "hook_resid_post", layer, weight, 0.0, 0.0, "token")
        )
        assert (found.place == ("hook_resid_post", layer)) == knows
        if knows:
            active = transcoders.encode_layer(x.double(), layer)
            rebuilt = active @ transcoders.decoder(layer).whole()[:, 0].double()
            reasons = found.find(None, x.double(), 100)
            assert sum(reason.part for reason in reasons) == pytest.approx(float(rebuilt @ weight.double()), rel=1e-6)
            assert [abs(reason.part) for reason in reasons] == sorted(
                (abs(reason.part) for reason in reasons), reverse=True
            )


def _plain(ids: torch.Tensor) -> Tokens:
    """A text of which only ids are known; the first token is left out."""
    nowhere = np.zeros(len(ids), np.int64)
    return Tokens("", ids, nowhere, nowhere, np.arange(len(ids)) > 0)


def test_a_pass_ends_at_the_deepest_place(model: ReplacementModel) -> None:
    shallow = Probe("shallow", "hook_resid_post", 1, torch.ones(128), 0.0, 0.0, "token")
    ran: list[object] = []
    deeper = model.parts.layers[2].mlp
    before = deeper.forward

    def noted(*given: object) -> torch.Tensor:
        ran.append(given)
        made: torch.Tensor = before(*given)
        return made

    deeper.forward = noted
    try:
        Monitor(model, [shallow], Watching(features=0)).look(TEXTS[0])
    finally:
        del deeper.forward  # the instance's own: its class's is there again
    assert not ran


def test_a_threshold_leaves_the_wished_share_above_it_or_says_what_it_leaves() -> None:
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1)).tolist()
    for rate, rank in ((0.001, 1), (0.01, 5), (0.1, 50)):
        found = calibrate(scores, rate)
        above, kth = sorted(scores, reverse=True)[rank - 2 : rank] if rank > 1 else (max(scores) + 1, max(scores))
        assert kth < found.threshold < min(above, kth + 1e-4)  # a hair, and below the next
        assert found.rate == pytest.approx(rank / 501)
        assert (found.rate <= rate) == (rate > 0.002)
        assert found.low < found.rate < found.high
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="share between 0 and 1"):
            calibrate(scores, rate)
    with pytest.raises(InputError, match="there is none"):
        calibrate([], 0.1)


@pytest.mark.parametrize("bias", [0.1, 0.3, -0.7, 1.1])
def test_a_text_where_no_feature_is_active_does_not_fire_by_rounding(model: ReplacementModel, bias: float) -> None:
    """Its score is the bias in float32, which may be above the same number in float64."""
    kept = float(np.float32(bias))
    silent = Probe("silent", "features", None, torch.zeros(1), kept, kept, "last", ((2, 5),))
    verdict = Monitor(model, [silent]).look(TEXTS[0])
    assert verdict.scores["silent"] == kept
    assert not verdict.flagged
    scores = torch.tensor([bias, bias + 1], dtype=torch.float32)
    assert Probe("x", "features", None, torch.ones(1), 0.0, bias, "last", ((2, 5),)).fires(scores).tolist() == [
        score > bias for score in scores.tolist()
    ]


def test_the_interval_of_a_rate_is_that_of_order_statistics() -> None:
    for total in (1, 10, 1000):  # Beta(1, n) and Beta(n, 1) have quantiles in closed form
        assert rate_interval(1, total) == pytest.approx((1 - 0.975 ** (1 / total), 1 - 0.025 ** (1 / total)), abs=1e-9)
        assert rate_interval(total, total) == pytest.approx((0.025 ** (1 / total), 0.975 ** (1 / total)), abs=1e-9)
    chance = torch.Generator().manual_seed(0)
    ranked = torch.rand(20_000, 50, generator=chance).sort(1, descending=True).values
    rates = 1 - ranked[:, 3]  # of uniform scores, the share above the fourth
    low, high = rate_interval(4, 50)
    assert float(((rates > low) & (rates < high)).float().mean()) == pytest.approx(0.95, abs=0.01)


def test_calibrated_probes_are_kept_and_fire_as_rarely_as_they_say(model: ReplacementModel, tmp_path: Path) -> None:
    texts = [one.text for one in world.two_hops()[:300]]
    for probe, found in calibrated(Monitor(model, probes(), Watching(features=0)), texts[::2], 0.05):
        assert (probe.threshold, found.negatives) == (found.threshold, 150)
        probe.save(tmp_path / f"{probe.name.replace('/', '-')}.safetensors")
    kept = named_probes([tmp_path, "1/3>0.5"])
    assert {probe.name for probe in kept} == {probe.name for probe in probes()} | {"feature 1/3"}
    verdicts = list(Monitor(model, kept[:-1], Watching(features=0)).watch(texts[::2]))
    for probe in kept[:-1]:
        alarms = sum(flag.probe == probe.name for verdict in verdicts for flag in verdict.flags[:1])
        assert alarms <= 7  # of 150: below rank 7
        assert probe.card["calibration"]["wished"] == 0.05
        assert probe.card["alarm"]["threshold"] == probe.threshold
    with pytest.raises(InputError, match="negative text 2"):
        calibrated(Monitor(model, probes()), ["the", " "], 0.05)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no probe"):
        named_probes([tmp_path / "empty"])


@pytest.mark.parametrize("text", ["1/2>x", "1", "a/b", "1/2>nan", "", "1/2/3"])
def test_a_feature_to_watch_is_named_with_its_threshold(text: str) -> None:
    with pytest.raises(InputError):
        feature_watch(text)


def test_probes_of_something_else_are_refused(model: ReplacementModel) -> None:
    pool: Pool = "token"
    for probe in (
        feature_watch("2/999999"),
        feature_watch("9/0"),
        Probe("wide", "hook_resid_post", 1, torch.ones(64), 0.0, 0.0, pool),
        Probe("deep", "hook_resid_post", 4, torch.ones(128), 0.0, 0.0, pool),
    ):
        with pytest.raises(CompatibilityError):
            Monitor(model, [probe])
    for given, said in (([], "nothing to watch"), ([feature_watch("1/1"), feature_watch("1/1>2")], "two probes")):
        with pytest.raises(InputError, match=said):
            Monitor(model, given)
    for watching in ({"window": 65}, {"window": 5}):
        with pytest.raises(InputError, match="window"):
            next(Monitor(model, probes(), Watching(**watching)).watch([" ".join(TEXTS)]))
