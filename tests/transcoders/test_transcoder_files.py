"""Tensor files: mapped, not read; damaged and foreign ones are errors with the file's name, never something else."""

from __future__ import annotations

import json
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from circuit_tracer.errors import CircuitTracerError, FileFormatError, InputError
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.transcoders import load_transcoder_from_hub
from circuit_tracer.transcoders.formats.beside import Setting, settings_beside
from circuit_tracer.transcoders.weight_rows import MappedRows, MemoryRows, by_slot
from tests.support.dictionaries import uniform


def test_mapped_rows_equal_indexing_for_every_view(tmp_path):
    whole = uniform(9, 4, 3)
    save_file({"pad": torch.zeros(3, dtype=torch.uint8), "w": whole}, tmp_path / "w.safetensors")
    mapped = open_tensor_file(tmp_path / "w.safetensors").tensor("w")
    index = torch.tensor([8, 0, 3, 3, 8])
    for view, expected in ((mapped, whole), (mapped[:, 1:], whole[:, 1:]), (mapped[:, 2].T, whole[:, 2].T)):
        at = index % expected.shape[0]
        store = MappedRows(view)
        assert store.shape == expected.shape
        assert torch.equal(store.rows(at), expected[at])
        assert torch.equal(store.block(1, 3), expected[1:3])
        assert torch.equal(store.whole(), expected)
    assert torch.equal(MappedRows(mapped[:, 1:]).rows(index, slot=2), whole[index, 3])
    assert MappedRows(mapped).rows(torch.empty(0, dtype=torch.int64)).shape == (0, 4, 3)
    for store in (MappedRows(mapped), MemoryRows(whole), _Rows(MappedRows(mapped))):
        assert torch.equal(torch.stack(list(by_slot(store, index)), 1), whole[index])


class _Rows:
    """A store of a kind that gives rows by `rows` alone."""

    def __init__(self, store: MappedRows) -> None:
        self.shape, self.device, self.rows = store.shape, store.device, store.rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_stored_dtypes_are_read_bit_for_bit(tmp_path, dtype):
    tensor = uniform(7, 3).to(dtype)
    save_file({"w": tensor}, tmp_path / "w.safetensors")
    store = MappedRows(open_tensor_file(tmp_path / "w.safetensors").tensor("w"))
    assert store.dtype == dtype
    assert torch.equal(store.whole(), tensor)
    assert MappedRows(tensor, dtype=torch.float64).rows(torch.tensor([1])).dtype == torch.float64


def test_whole_is_a_copy_that_may_be_written(tmp_path):
    save_file({"w": uniform(7, 3)}, tmp_path / "w.safetensors")
    file = open_tensor_file(tmp_path / "w.safetensors")
    MappedRows(file.tensor("w")).whole().zero_()
    assert file.tensor("w").any()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_members_are_read(tmp_path, compressed, order):
    arrays = {
        "a": np.asfortranarray(np.random.rand(4, 3)) if order == "F" else np.random.rand(4, 3),
        "b": np.float32(2),
    }
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **arrays)
    file = open_tensor_file(tmp_path / "x.npz")
    assert file.shapes == {"a": (4, 3), "b": ()}
    assert np.array_equal(file.tensor("a").numpy(), arrays["a"])
    assert file.scalar("b") == 2


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(FileFormatError, match="plain little-endian numbers"):
        open_tensor_file(tmp_path / "x.npz")


def test_missing_file_and_missing_tensor(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_tensor_file(tmp_path / "w.safetensors")
    save_file({"w": uniform(7, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileFormatError, match=r"no tensor 'v'; found w \(7, 3\)"):
        open_tensor_file(tmp_path / "w.safetensors").tensor("v")


def test_truncated_files_say_found_and_expected(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": uniform(7, 3)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(FileFormatError, match=f"need {len(content)} bytes, the file has {len(content) - 5}"):
        open_tensor_file(path)
    path.write_bytes(content[:20])
    with pytest.raises(FileFormatError, match=r"header needs .* bytes, the file has 20"):
        open_tensor_file(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"null",
        b'{"__metadata__": 3}',
        b'{"w": 3}',
        b'{"w": {"dtype": "F32"}}',
        b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    ],
)
def test_nonsense_headers_are_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(FileFormatError, match=r"w\.safetensors"):
        open_tensor_file(path)


def test_a_pickle_is_refused(tmp_path):
    torch.save({"w": uniform(7, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        open_tensor_file(tmp_path / "w.safetensors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from([".safetensors", ".npz"]), data=st.data())
def test_damaged_files_raise_our_errors_only(tmp_path, suffix, data):
    path = tmp_path / f"w{suffix}"
    tensors = {"w": uniform(3, 2), "b": uniform(3)}
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_file(tensors, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(CircuitTracerError):
        file = open_tensor_file(path)
        for name in file.entries:
            file.tensor(name).clone()


def test_description_of_many_tensors_is_short(tmp_path):
    save_file({f"t{i}": torch.zeros(1) for i in range(40)}, tmp_path / "w.safetensors")
    assert open_tensor_file(tmp_path / "w.safetensors").describe().endswith("and 28 more")


def test_cfg_json_must_be_an_object(tmp_path):
    save_file({"encoder.weight": uniform(7, 3)}, tmp_path / "sae.safetensors")
    for text in ("[]", "{"):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"cfg\.json"):
            settings_beside(tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"k": 3}))
    assert settings_beside(tmp_path / "sae.safetensors") == {"k": Setting(3, tmp_path / "cfg.json")}


def test_a_configuration_that_grows_by_aliases_is_refused_at_once_and_not_printed(tmp_path):
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "model_kind: *a9"]))
    began = time.perf_counter()
    with pytest.raises(FileFormatError, match=r"config\.yaml.*aliases are not read") as caught:
        load_transcoder_from_hub(tmp_path)
    assert time.perf_counter() - began < 2
    assert len(str(caught.value)) < 400


WRONG_CONFIGURATIONS = {
    "a long text": "model_kind: " + "x" * 50_000,
    "a long list": "model_kind: {a: [" + "1, " * 20_000 + "]}",
    "wrong types": "model_kind: 3\nfeature_input_hook: [a]",
    "a fraction": "k: 1.5",
}


@pytest.mark.parametrize("text", WRONG_CONFIGURATIONS.values(), ids=WRONG_CONFIGURATIONS)
def test_a_configuration_of_wrong_types_is_refused_shortly(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(FileFormatError) as caught:
        load_transcoder_from_hub(tmp_path)
    assert len(str(caught.value)) < 1500
