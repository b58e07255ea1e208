"""Cached activations are those of the model, bitwise; a cache is continued, refused or reported, never silently wrong."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError, ResourceError
from circuit_tracer.models.model_pass import ModelPass
from circuit_tracer.training.data import ActivationBatch, BatchStream, cache
from tests.support import data_cases
from tests.support.data_cases import batches, config, same, stream, texts, write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data.jsonl", texts(30))
    return tmp_path


def all_same(found: list[ActivationBatch], expected: list[ActivationBatch]) -> bool:
    return len(found) == len(expected) and all(same(*pair) for pair in zip(found, expected, strict=True))


def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(ModelPass, "run", refuse)


def manifest(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "cache" / "manifest.json").read_text())
    return read


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs": {"data__epochs": 2},
    "bfloat16": {"data__buffer_dtype": "bfloat16"},
    "disk": {"data__buffer_place": "disk"},
    "jacobian": {"sparsity__jacobian_weight": 0.1, "data__epochs": 2},
    "sae": {"dictionary__kind": "sae"},
}


@pytest.mark.few
@pytest.mark.parametrize(
    ("variant", "shard_bytes"), [*((variant, 4000) for variant in VARIANTS), ("two epochs", 2**30)]
)
def test_a_cache_changes_no_batch(
    variant: str, shard_bytes: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = VARIANTS[variant]
    monkeypatch.setattr(cache, "SHARD_BYTES", shard_bytes)
    expected = list(batches(stream(config(folder, **changes))))
    cached = config(folder, **changes, data__cache=folder / "cache")
    assert all_same(list(batches(stream(cached))), expected)
    assert manifest(folder)["complete"]
    without_model(monkeypatch)
    assert all_same(list(batches(stream(cached))), expected)


def test_a_cache_serves_other_batches_and_buffers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"run__batch": 10, "data__buffer_tokens": 70, "run__seed": 8, "data__epochs": 3}
    expected = list(batches(stream(config(folder, **changes))))
    list(batches(stream(config(folder, data__cache=folder / "cache"))))
    without_model(monkeypatch)
    assert all_same(list(batches(stream(config(folder, **changes, data__cache=folder / "cache")))), expected)


@pytest.mark.few
@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_partial_cache_is_continued(steps: int, folder: Path) -> None:
    expected = list(batches(stream(config(folder))))
    settings = config(folder, data__cache=folder / "cache")
    first = stream(settings)
    for _ in range(steps):
        first.next()
    state, rows = json.loads(json.dumps(first.state())), sum(shard["rows"] for shard in manifest(folder)["shards"])
    assert rows >= steps * 16
    assert not manifest(folder)["complete"]
    assert all_same(list(batches(stream(settings))), expected)
    resumed = stream(settings)
    resumed.restore(state)
    assert all_same(list(batches(resumed)), expected[steps:])


@pytest.mark.slow("takes 1.6 s")
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_cached_stream_resumes_at_every_step(epochs: int, folder: Path) -> None:
    settings = config(folder, data__cache=folder / "cache", data__epochs=epochs)
    whole, expected, states = stream(settings), [], []
    while (batch := whole.next()) is not None:
        expected.append(batch)
        states.append(json.loads(json.dumps(whole.state())))
    for step, state in enumerate(states, 1):
        resumed = stream(settings)
        resumed.restore(state)
        ahead = 3 if step % 4 else None  # the whole rest now and then
        assert all_same(list(islice(batches(resumed), ahead)), expected[step:][:ahead])


def test_a_kill_while_a_shard_is_written_loses_only_that_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(batches(stream(config(folder))))
    settings = config(folder, data__cache=folder / "cache")
    source = stream(settings)
    for _ in range(3):
        source.next()
    with monkeypatch.context() as patch:
        patch.setattr(cache.CachedRows, "_write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            source.next()
    assert len(list((folder / "cache").glob("*.safetensors"))) == len(manifest(folder)["shards"]) + 1
    assert all_same(list(batches(stream(settings))), expected)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_statistics_come_from_the_cache_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stream(config(folder)).statistics(200)
    settings = config(folder, data__cache=folder / "cache")
    list(batches(stream(settings)))
    without_model(monkeypatch)
    assert torch.equal(stream(settings).statistics(200).mean_y_SD, expected.mean_y_SD)


def filled(folder: Path, **changes: Any) -> BatchStream:
    source = stream(config(folder, data__cache=folder / "cache", **changes))
    source.next()
    return source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__context_length": 12}, "data.context_length is 16 there and 12 here"),
        ({"data__held_out": 0.2}, "data.held_out is 0.1 there and 0.2 here"),
        ({"data__buffer_dtype": "bfloat16"}, "data.buffer_dtype is 'float32' there and 'bfloat16' here"),
        ({"dictionary__input_hook": "mlp.hook_in"}, "input point is 'hook_resid_mid' there and 'mlp.hook_in' here"),
        ({"dictionary__kind": "plt", "dictionary__layers": [0, 2]}, r"layers is \[0, 1, 2\] there and \[0, 2\] here"),
        ({"sparsity__jacobian_weight": 0.5}, "seed of directions is None there and 3 here"),
    ],
)
def test_a_cache_of_other_rows_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    filled(folder)
    with pytest.raises(CompatibilityError, match=rf"the cache .*{message}.*Choose another data\.cache"):
        filled(folder, **change)


def test_a_cache_of_another_model_or_text_is_refused(folder: Path) -> None:
    filled(folder)
    with pytest.raises(CompatibilityError, match="model is"):
        stream(config(folder, data__cache=folder / "cache"), "mistral")
    write_jsonl(folder / "data.jsonl", texts(29))
    with pytest.raises(CompatibilityError, match="documents is"):
        filled(folder)


def test_a_cache_that_lost_rows_does_not_resume(folder: Path) -> None:
    source = filled(folder)
    for _ in range(3):
        source.next()
    state = source.state()
    (folder / "cache" / "manifest.json").unlink()
    with pytest.raises(CompatibilityError, match=r"stood at row 48, but the cache .* holds 0 rows"):
        stream(config(folder, data__cache=folder / "cache")).restore(state)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99, "settings": {}, "shards": [], "complete": true}'])
def test_a_broken_manifest_is_refused(text: str, folder: Path) -> None:
    filled(folder)
    (folder / "cache" / "manifest.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"manifest\.json is not the manifest of a cache.*Remove the folder"):
        filled(folder)


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    filled(folder)
    read = manifest(folder)
    read["shards"][0]["file"] = "../elsewhere.safetensors"
    (folder / "cache" / "manifest.json").write_text(json.dumps(read))
    with pytest.raises(FileFormatError, match="not the manifest"):
        filled(folder)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_shard_is_named(damage: str, folder: Path) -> None:
    filled(folder)
    shard = folder / "cache" / "rows-000000.safetensors"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"rows-000000\.safetensors is damaged or missing"):
        filled(folder)


def test_a_full_disk_keeps_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(batches(stream(config(folder))))
    source = filled(folder)
    for _ in range(2):
        source.next()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_tensors", full)
        with pytest.raises(ResourceError, match=r"could not write .*rows-00000\d.*No space left.*free some space"):
            source.next()
    assert [path.name for path in (folder / "cache").iterdir() if path.suffix == ".part"] == []
    assert all_same(list(batches(stream(config(folder, data__cache=folder / "cache")))), expected)


def test_a_folder_that_cannot_be_written_is_an_error(folder: Path) -> None:
    (folder / "cache").write_text("a file")
    with pytest.raises(InputError, match="cannot write into the folder"):
        filled(folder)


def test_a_cached_empty_data_set_is_an_error(folder: Path) -> None:
    write_jsonl(folder / "data.jsonl", ["a"])
    for _ in range(2):
        with pytest.raises(InputError, match="give 0 tokens"):
            filled(folder)


def test_the_tokenizer_is_part_of_the_data(folder: Path) -> None:
    from circuit_tracer.fingerprint import tokenizer_fingerprint

    prints = {tokenizer_fingerprint(t) for t in (data_cases.tokenizer(), data_cases.tokenizer(bos=False), None)}
    assert len(prints) == 3
