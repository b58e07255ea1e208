"""The stream of batches: deterministic, resumable at every step, epoch after epoch, in every place of memory."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import CompatibilityError, InputError, NumericalError, ResourceError
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import fast_attention
from circuit_tracer.ranks import Ranks
from circuit_tracer.training.data import ActivationBatch, held_out_activations, held_out_tokens, open_stream
from circuit_tracer.training.data.block import Block, RowLayout
from circuit_tracer.training.feature_ranks import FeatureRanks
from tests.support import data_cases
from tests.support.data_cases import batches, config, same, stream, texts, write_jsonl
from tests.support.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data.jsonl", texts(10))
    return tmp_path


def rows(found: list[ActivationBatch]) -> torch.Tensor:
    """All rows of x, sorted."""
    return in_order(torch.cat([batch.x_BSD for batch in found]))


def in_order(x_BSD: torch.Tensor) -> torch.Tensor:
    return torch.tensor(sorted(x_BSD.flatten(1).tolist()))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs": {"data__epochs": 2},
    "small blocks": {"data__buffer_tokens": 16},
    "one block": {"data__buffer_tokens": 10_000},
    "bfloat16 on disk": {"data__buffer_dtype": "bfloat16", "data__buffer_place": "disk"},
    "jacobian": {"sparsity__jacobian_weight": 0.1},
    "sae": {"dictionary__kind": "sae", "dictionary__layers": [1]},
    "norms": {"data__max_norm_ratio": 1.2},
    "passes of one": {"data__sequences_per_pass": 1, "data__context_length": 9},
}


@pytest.mark.few
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_resumes_at_every_step(variant: str, folder: Path) -> None:
    settings = config(folder, **VARIANTS[variant])
    whole = stream(settings)
    states, expected = [whole.state()], []
    while (batch := whole.next()) is not None:
        expected.append(batch)
        states.append(whole.state())
    assert whole.next() is None
    states.append(whole.state())
    assert len(expected) > 5
    for step, state in enumerate(states):
        resumed = stream(settings)
        resumed.restore(json.loads(json.dumps(state)))
        assert resumed.state() == json.loads(json.dumps(state))
        ahead = 3 if step % 4 else None  # the whole rest now and then
        found = islice(batches(resumed), ahead)
        assert all(same(*pair) for pair in zip(found, expected[step:][:ahead], strict=True))


@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(2, 17),
    st.integers(0, 25),
    st.integers(1, 2),
)
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
def test_a_stream_resumes_whatever_its_sizes(
    tmp_path_factory: pytest.TempPathFactory, batch: int, blocks: int, passes: int, length: int, step: int, epochs: int
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    write_jsonl(folder / "data.jsonl", texts(8, longest=30))
    settings = config(
        folder,
        run__batch=batch,
        data__buffer_tokens=batch * blocks + batch // 2,
        data__sequences_per_pass=passes,
        data__context_length=length,
        data__epochs=epochs,
    )
    whole = stream(settings)
    skipped = sum(whole.next() is not None for _ in range(step))
    resumed = stream(settings)
    resumed.restore(json.loads(json.dumps(whole.state())))
    for one, other in zip(batches(whole), batches(resumed), strict=True):
        assert same(one, other)
    assert skipped <= step


def test_an_epoch_is_every_row_once_in_another_order(folder: Path) -> None:
    once = list(batches(stream(config(folder, run__batch=1))))
    twice = list(batches(stream(config(folder, run__batch=1, data__epochs=2))))
    assert len(twice) == 2 * len(once)
    assert torch.equal(rows(twice), rows([*once, *once]))
    order = [batch.x_BSD for batch in twice]
    assert any(not torch.equal(*pair) for pair in zip(order[: len(once)], order[len(once) :], strict=True))


@pytest.mark.parametrize("buffer", [16, 10_000], ids=["small blocks", "one block"])
def test_a_run_whose_data_ended_goes_on_with_the_next_epoch(buffer: int, folder: Path) -> None:
    once = stream(config(folder, run__batch=1, data__buffer_tokens=buffer))
    expected = rows(list(batches(once)))
    further = stream(config(folder, run__batch=1, data__buffer_tokens=buffer, data__epochs=2))
    further.restore(json.loads(json.dumps(once.state())))
    assert torch.equal(rows(list(batches(further))), expected)


def test_without_a_number_of_epochs_the_data_never_end(folder: Path) -> None:
    source = stream(config(folder, data__epochs=None, data__buffer_tokens=10_000))
    assert all(source.next() is not None for _ in range(300))


def test_rows_are_those_of_the_model(folder: Path) -> None:
    settings = config(folder, run__batch=1, data__sequences_per_pass=1)
    found = list(batches(stream(settings)))
    source = stream(settings).source
    packer = source.rows.packer  # type: ignore[attr-defined]
    parts = data_cases.parts()
    expected = []
    while (sequence := packer.next()) is not None:
        ids = torch.from_numpy(sequence)[None]
        with fast_attention(parts):
            x, _ = ModelPass(parts, Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out"), 16).run(ids)
        keep = [p for p in range(1, 16) if int(ids[0, p]) not in (data_cases.PAD, data_cases.BOS, data_cases.EOS)]
        expected.append(torch.stack(x, dim=1)[keep])
    assert torch.equal(rows(found), in_order(torch.cat(expected)))


def test_another_seed_is_another_order(folder: Path) -> None:
    one, other = stream(config(folder)).next(), stream(config(folder, run__seed=4)).next()
    assert one is not None
    assert other is not None
    assert not same(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_places_of_the_buffer_agree(dtype: str, folder: Path) -> None:
    places = ["device", "disk", *(["pinned"] if torch.cuda.is_available() else [])]
    found = [
        list(batches(stream(config(folder, data__buffer_place=place, data__buffer_dtype=dtype)))) for place in places
    ]
    for others in found[1:]:
        assert all(same(*pair) for pair in zip(found[0], others, strict=True))
    assert all(batch.x_BSD.dtype == batch.y_BSD.dtype == torch.float32 for batch in found[0])
    assert [path for path in (folder / "out").iterdir() if path.name.startswith(".buffer")] == []


def test_an_sae_reconstructs_what_it_reads(folder: Path) -> None:
    batch = stream(config(folder, dictionary__kind="sae")).next()
    assert batch is not None
    assert batch.y_BSD is batch.x_BSD
    assert batch.n_tokens == 16


@pytest.mark.few
@pytest.mark.parametrize("kind", ["parquet", "huggingface", "tokens", "text"])
def test_every_kind_of_source_gives_the_same_batches(kind: str, folder: Path) -> None:
    documents = [text for text in texts(14) if text]
    other = folder / "other"
    other.mkdir()
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `datasets`")
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `datasets`")
        parquet.write_table(pyarrow.table({"text": documents}), other / "data.parquet")
    elif kind == "huggingface":
        pytest.importorskip("datasets", reason="needs the extra `datasets`")
        write_jsonl(other / "data.jsonl", documents)
    elif kind == "tokens":
        ids = data_cases.tokenizer()(documents, add_special_tokens=False).input_ids
        np.save(other / "data.npy", np.array([i for one in ids for i in (*one, data_cases.EOS)], np.uint16))
    else:
        for number, text in enumerate(documents):
            (other / f"{number:02d}.txt").write_text(text)
    write_jsonl(folder / "data.jsonl", documents)
    expected = list(batches(stream(config(folder))))
    found = stream(config(folder, data__kind=kind, data__path=str(other)))
    assert all(same(*pair) for pair in zip(expected, batches(found), strict=True))
    json.dumps(found.state())


def test_token_files_need_no_tokenizer(folder: Path) -> None:
    np.save(folder / "data.npy", np.arange(5 * 90).reshape(5, 90) % 44 + 3)
    settings = config(folder, data__kind="tokens", data__path=str(folder / "data.npy"))
    batch = open_stream(settings, data_cases.parts(), None, FeatureRanks()).next()
    assert batch is not None
    assert batch.n_tokens == 16


def test_a_model_in_bfloat16_gives_float32_batches(folder: Path) -> None:
    parts = bind(tiny_model("gemma3", torch.bfloat16), "gemma3")
    settings = config(folder, sparsity__jacobian_weight=0.1)
    found = list(batches(open_stream(settings, parts, data_cases.tokenizer(), FeatureRanks())))
    expected = list(batches(stream(settings, "gemma3")))
    for one, other in zip(found, expected, strict=True):
        for rounded, exact in zip(data_cases.tensors(one), data_cases.tensors(other), strict=True):
            assert rounded.dtype == torch.float32
            assert float((rounded - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("place", ["device", "disk"])
def test_groups_of_ranks_see_their_shares_of_the_same_batches(place: str, folder: Path) -> None:
    settings = config(folder, data__buffer_place=place)
    shares = [batches(stream(settings, ranks=FeatureRanks(replicas=Ranks(group, 2)))) for group in range(2)]
    for whole, first, second in zip(batches(stream(settings)), *shares, strict=True):
        for name, tensor in vars(first).items():
            if tensor is not None:
                assert torch.equal(torch.cat([tensor, getattr(second, name)]), getattr(whole, name))


# statistics


@pytest.mark.few
@pytest.mark.parametrize("n_tokens", [10, 48, 100, 100_000])
@pytest.mark.parametrize("kind", ["clt", "sae"])
def test_statistics_are_moments_of_the_first_rows(n_tokens: int, kind: str, folder: Path) -> None:
    settings = config(folder, dictionary__kind=kind, run__batch=1, data__buffer_tokens=30)
    expected = list(batches(stream(settings)))
    source = stream(settings)
    found = source.statistics(n_tokens)
    assert found.n_tokens == min(n_tokens, len(expected))
    if found.n_tokens % 30 == 0 or found.n_tokens == len(expected):  # whole blocks: the shuffle has no effect
        x = torch.cat([batch.x_BSD for batch in expected[: found.n_tokens]]).double()
        y = torch.cat([batch.y_BSD for batch in expected[: found.n_tokens]]).double()
        torch.testing.assert_close(found.mean_x_SD, x.mean(0))
        torch.testing.assert_close(found.variance_x_S, (x - x.mean(0)).square().sum(-1).mean(0))
        torch.testing.assert_close(found.mean_square_y_S, y.square().sum(-1).mean(0))
        torch.testing.assert_close(found.variance_y_S, (y - y.mean(0)).square().sum(-1).mean(0))
    assert all(same(*pair) for pair in zip(expected, batches(source), strict=True))


@pytest.mark.few
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_statistics_do_not_move_the_stream(steps: int, folder: Path) -> None:
    settings = config(folder)
    expected = list(batches(stream(settings)))
    first = stream(settings).statistics(200)
    source = stream(settings)
    for _ in range(steps):
        source.next()
    state = source.state()
    again = source.statistics(200)
    assert source.state() == state
    assert torch.equal(first.mean_x_SD, again.mean_x_SD) or steps >= 3  # sums of other chunks round differently
    torch.testing.assert_close(first.variance_y_S, again.variance_y_S)
    assert all(same(*pair) for pair in zip(expected[steps:], batches(source), strict=True))


# held-out text


def test_held_out_text_is_not_trained_on(folder: Path) -> None:
    settings = config(folder, run__batch=1, data__held_out=0.3)
    held = held_out_activations(settings, data_cases.parts(), data_cases.tokenizer(), 10_000)
    trained = torch.cat([batch.x_BSD[:, 2] for batch in batches(stream(settings))])
    # position 0 and 1 of a sequence aside, equal rows would need equal text before them
    assert len(held.x_BSD) > 50
    close = torch.cdist(held.x_BSD[:, 2], trained).min(dim=1).values < 1e-6
    assert int(close.sum()) < 0.2 * len(close)
    some = held_out_activations(settings, data_cases.parts(), data_cases.tokenizer(), 7)
    assert torch.equal(some.x_BSD, held.x_BSD[:7])
    assert torch.equal(some.y_BSD, held.y_BSD[:7])


def test_held_out_tokens_are_packed_sequences(folder: Path) -> None:
    settings = config(folder, data__held_out=0.5, evaluation__tokens=40, evaluation__replacement_tokens=20)
    found = held_out_tokens(settings, data_cases.tokenizer())
    assert [tuple(ids.shape) for ids in found] == [(16,)] * 3
    assert all(ids.dtype == torch.int64 and int(ids[0]) == data_cases.BOS for ids in found)
    few = held_out_tokens(config(folder, data__held_out=0.01, data__context_length=64), data_cases.tokenizer())
    assert len(few) == 1
    assert 1 < len(few[0]) < 64
    settings = config(folder, data__held_out=0.01, data__context_length=64)
    rows_of_few = held_out_activations(settings, data_cases.parts(), data_cases.tokenizer(), 100)
    assert rows_of_few.n_tokens == sum(int(i) not in (data_cases.BOS, data_cases.EOS) for i in few[0][1:])


# bad input


def test_an_empty_data_set_is_an_error(folder: Path) -> None:
    for documents in ([], ["", ""], ["abc"]):
        write_jsonl(folder / "data.jsonl", documents)
        for epochs, advice in ((1, r"set data\.epochs to null to repeat it, or"), (None, "or")):
            found = r"give 0 tokens to train on, less than one run\.batch of 16 \(\d doc.*"
            with pytest.raises(InputError, match=rf"{found} Give more data, {advice} lower"):
                stream(config(folder, data__epochs=epochs)).next()
            with pytest.raises(InputError, match="give 0 tokens"):
                stream(config(folder, data__epochs=epochs)).statistics(100)
    write_jsonl(folder / "data.jsonl", [])
    with pytest.raises(InputError, match="nothing to evaluate on"):
        held_out_tokens(config(folder), data_cases.tokenizer())
    with pytest.raises(InputError, match="nothing to evaluate on"):
        held_out_activations(config(folder), data_cases.parts(), data_cases.tokenizer(), 5)


def test_too_few_tokens_for_a_batch_are_an_error(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", texts(4))
    with pytest.raises(InputError, match=r"give 118 tokens to train on, less than one run\.batch of 400.*data\.epochs"):
        stream(config(folder, run__batch=400, data__buffer_tokens=800)).next()
    assert stream(config(folder, run__batch=400, data__buffer_tokens=800, data__epochs=None)).next() is not None


def test_a_tokenizer_of_another_model_is_an_error(folder: Path) -> None:
    foreign = data_cases.tokenizer(data_cases.LETTERS + "ABC")
    write_jsonl(folder / "data.jsonl", ["zzz", "CCCCCCCCCCCCCCCCCCCCC"])
    with pytest.raises(CompatibilityError, match=r"token id 49, but the model's vocabulary is 0\.\.46"):
        open_stream(config(folder), data_cases.parts(), foreign, FeatureRanks()).next()


def test_an_activation_that_is_not_finite_stops_the_stream(folder: Path) -> None:
    parts = bind(tiny_model("gpt2", torch.float32), "gpt2")
    parts.layers[2].module.attn.c_proj.bias[0] = float("inf")  # type: ignore[union-attr, index]
    with pytest.raises(NumericalError, match="hook_resid_mid of layer 2"):
        open_stream(config(folder), parts, data_cases.tokenizer(), FeatureRanks()).next()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__context_length": 17}, "data.context_length is 16 there and 17 here"),
        ({"run__seed": 9}, "run.seed is 3 there and 9 here"),
        ({"run__batch": 12}, "run.batch is 16 there and 12 here"),
        ({"dictionary__output_hook": "mlp.hook_out"}, "output point is 'hook_mlp_out' there and 'mlp.hook_out' here"),
    ],
)
def test_a_position_of_other_data_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    state = json.loads(json.dumps(stream(config(folder)).state()))
    with pytest.raises(CompatibilityError, match=message):
        stream(config(folder, **change)).restore(state)
    with pytest.raises(CompatibilityError, match="model is"):
        stream(config(folder), "gpt2").restore(state)
    write_jsonl(folder / "data.jsonl", texts(21))
    with pytest.raises(CompatibilityError, match="documents is"):
        stream(config(folder)).restore(state)


def test_a_full_disk_is_an_error_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ResourceError, match=r"a buffer of 48 tokens needs .* GiB \(disk\): .*No space left on device"):
        stream(config(folder, data__buffer_place="disk")).next()


def test_a_buffer_that_does_not_fit_is_an_error() -> None:
    layout = RowLayout(("x", "y"), 30, 576, torch.float32)
    assert layout.row_bytes == 2 * 30 * 576 * 4
    with pytest.raises(ResourceError, match=r"needs .* GiB \(device\).*Lower data\.buffer_tokens"):
        Block(layout, 2**40, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has pinned memory")
def test_pinned_memory_needs_cuda(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'pinned', memory that CUDA copies from, but the model is on cpu"):
        stream(config(folder, data__buffer_place="pinned")).next()
