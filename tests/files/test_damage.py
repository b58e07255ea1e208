"""Files that this package wrote are read as they were written, or not at all."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from benchmarks.bit_flips import flips
from circuit_tracer.errors import CircuitTracerError, FileFormatError, NumericalError
from circuit_tracer.features.labels import Label, read_labels, write_labels
from circuit_tracer.files.checksums import BLOCK, verified, write_tensors
from circuit_tracer.files.digests import ChangedFileWarning, digest_of, read_sealed, sealed, unsealed, write_sealed
from circuit_tracer.files.tensors import open_tensor_file
from circuit_tracer.graph import Graph
from circuit_tracer.graph.files.read_json import load_viewer_json
from circuit_tracer.graph.files.viewer_json import create_graph_files
from circuit_tracer.transcoders import load_clt, load_transcoder_from_hub, load_transcoder_set
from circuit_tracer.transcoders.loading import save_transcoders
from circuit_tracer.transcoders.weight_rows import MappedRows
from tests.support.dictionaries import random_clt, random_set
from tests.support.graph_cases import random_graph
from tests.support.written_files import WRITTEN, equal

FEW, MANY = 40, 400
SLOW_TO_READ = ("checkpoint", "native graph", ".pt graph", "node-link graph", "GraphML graph")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    """Puts the files of a kind, which are made once, into a folder."""
    known: dict[str, Path] = {}

    def copied(kind: str, folder: Path) -> Path:
        if kind not in known:
            known[kind] = tmp_path_factory.mktemp("made")
            WRITTEN[kind].make(known[kind])
        return Path(shutil.copytree(known[kind], folder, dirs_exist_ok=True))

    return copied


# ---- every kind of file


@pytest.mark.few
@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.filterwarnings("ignore:No key type for id")  # networkx, of damaged GraphML
def test_a_flipped_bit_is_noticed_or_changes_nothing(
    kind: str, made: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    found = list(flips(kind, FEW // 2 if kind in SLOW_TO_READ else FEW, made(kind, tmp_path), seed=1))
    assert [each for each in found if each[0] not in ("detected", "harmless")] == []
    assert Counter(outcome for outcome, _ in found)["detected"] > 0


@pytest.mark.slow("hundreds of readings of every kind of file")
@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.filterwarnings("ignore:No key type for id")
def test_hundreds_of_flipped_bits_are_noticed_or_change_nothing(
    kind: str, made: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    assert [each for each in flips(kind, MANY, made(kind, tmp_path)) if each[0] not in ("detected", "harmless")] == []


# A log that ends early is what a kill leaves, in the middle of a line or behind one.
@pytest.mark.few
@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind != "log of a run"])
@pytest.mark.filterwarnings("ignore:No key type for id")
def test_files_that_are_cut_grown_emptied_or_zeroed_are_noticed(
    kind: str, made: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    written = WRITTEN[kind]
    made(kind, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expected = written.read(tmp_path)
    for path in written.paths(tmp_path)[-2:]:
        whole, half = before[path], len(before[path]) // 2
        changes = {
            "cut": whole[: -max(1, len(whole) // 7)],
            "grown": whole + b"\0\0",  # which gzip passes over, as torch does zeros between its records
            "emptied": b"",
            "zeroed": whole[:half] + b"\0" * 64 + whole[half + 64 :],
        }
        for how, content in changes.items():
            path.write_bytes(content)
            try:
                found = written.read(tmp_path)
            except CircuitTracerError:
                found = None
            assert found is None or (how in ("grown", "zeroed") and equal(found, expected)), (how, path.name)
            for each, content in before.items():  # reading may write
                each.write_bytes(content)


# ---- tensors


def _tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "W": torch.randn(900, 40, generator=draw),
        "b": torch.randn(900, generator=draw).bfloat16(),
        "k": torch.tensor(3),
        "none": torch.zeros(0, 4),
        "key": torch.arange(5).to(torch.uint64),
        "flag": torch.tensor([True, False]),
    }


def test_tensors_come_back_bit_for_bit_and_other_programs_read_them(tmp_path: Path) -> None:
    tensors, path = _tensors(), tmp_path / "t.safetensors"
    write_tensors(path, tensors, {"note": "ü"})
    file = open_tensor_file(path)
    assert equal({name: file.read(name) for name in tensors}, tensors)
    assert file.metadata["note"] == "ü"
    with safe_open(path, "pt") as theirs:
        assert equal({name: theirs.get_tensor(name) for name in tensors}, tensors)
    write_tensors(tmp_path / "again", tensors, {"note": "ü"}, "t.safetensors")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def _damaged(path: Path, row: int) -> MappedRows:
    """Rows of W of a file whose row ``row`` is damaged, and large enough to be read lazily."""
    write_tensors(path, {"W": torch.randn(2**13, 64)})
    data = bytearray(path.read_bytes())
    data[len(data) - 2**13 * 64 * 4 + row * 64 * 4 + 7] ^= 16
    path.write_bytes(data)
    return MappedRows(open_tensor_file(path).tensor("W"))


def test_rows_are_compared_when_they_are_read_and_others_are_not(tmp_path: Path) -> None:
    rows = _damaged(tmp_path / "w.safetensors", 5000)
    assert rows.rows(torch.tensor([3, 8000, 3])).shape == (3, 64)
    assert len(rows.block(0, 4000)) == 4000
    for read in (
        lambda: rows.rows(torch.tensor([17, 5000])),
        lambda: rows.rows(torch.tensor([5000 + BLOCK // 256 - 1 - 5000 % (BLOCK // 256)])),  # the last row of its block
        lambda: rows.block(4000, 6000),
        lambda: rows.whole(),
    ):
        for _ in range(2):  # damage is not forgotten
            with pytest.raises(FileFormatError, match=r"w\.safetensors is damaged: bytes 1277952 to 1294336 of 'W'"):
                read()


def test_views_of_a_mapped_tensor_know_its_checksums(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w", {"W": torch.randn(700, 5, 128)})
    data = bytearray((tmp_path / "w").read_bytes())
    data[-1] ^= 1  # of W[-1, -1, -1]
    (tmp_path / "w").write_bytes(data)
    W = open_tensor_file(tmp_path / "w").tensor("W")
    verified(W[:500])
    for view in (W, W[600:], W.permute(2, 1, 0), W[:, 4].T, W[:, :, 127], W.unflatten(0, (7, 100))[6]):
        with pytest.raises(FileFormatError, match="not what was written"):
            verified(view)
    slots = MappedRows(W)
    assert slots.rows(torch.tensor([3]), slot=4).shape == (1, 128)
    with pytest.raises(FileFormatError, match="not what was written"):
        slots.rows(torch.tensor([699]), slot=4)
    with torch.inference_mode(), pytest.raises(FileFormatError, match="not what was written"):
        MappedRows(W[:, 4]).rows(torch.tensor([699]))


def test_a_file_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_tensors(), tmp_path / "t.safetensors")
    file = open_tensor_file(tmp_path / "t.safetensors")
    assert file.digest is None
    assert equal(file.read("W"), _tensors()["W"])


# ---- files that belong together


def test_swapped_layers_and_those_of_another_training_are_noticed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_transcoders(random_set(), tmp_path / name)
        save_transcoders(random_clt(), tmp_path / f"clt {name}")
    one, clt = tmp_path / "one", tmp_path / "clt one"
    shutil.copy(tmp_path / "two" / "layer_1.safetensors", one)
    with pytest.raises(FileFormatError, match=r"config\.yaml, together with the layers' files .* remove its digest"):
        load_transcoder_from_hub(one)
    shutil.copy(one / "layer_0.safetensors", one / "layer_1.safetensors")
    for load in (
        lambda: load_transcoder_from_hub(one),
        lambda: load_transcoder_set(
            {layer: one / f"layer_{layer}.safetensors" for layer in range(3)}, None, "mlp.hook_in", "mlp.hook_out"
        ),
    ):
        with pytest.raises(FileFormatError, match=r"layer_1\.safetensors was written as layer_0\.safetensors"):
            load()
    shutil.copy(tmp_path / "clt two" / "W_dec_2.safetensors", clt)
    for load in (lambda: load_clt(clt), lambda: load_transcoder_from_hub(clt)):
        with pytest.raises(FileFormatError, match="is not what was written"):
            load()


def test_who_changes_a_dictionary_says_so_by_removing_the_digest(tmp_path: Path) -> None:
    save_transcoders(random_set(), tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "scan": "mine"}))
    with pytest.raises(FileFormatError, match="if you changed it yourself, remove its digest"):
        load_transcoder_from_hub(tmp_path)
    del config["digest"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "scan": "mine"}))
    assert load_transcoder_from_hub(tmp_path)[0].scan == "mine"


@pytest.mark.parametrize("kind", ["checkpoint", "activation cache", "features, unfinished"])
def test_a_file_of_another_run_or_number_is_noticed(kind: str, tmp_path: Path) -> None:
    written = WRITTEN[kind]
    written.make(tmp_path)
    first, second = [path for path in written.paths(tmp_path) if path.suffix == ".safetensors"][:2]
    mine = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(FileFormatError, match=r"was written as|was not written with"):
        written.read(tmp_path)
    first.write_bytes(mine)
    file = open_tensor_file(first)
    marks = {name: "other" if name in ("belongs_to", "build") else value for name, value in file.metadata.items()}
    write_tensors(first, {name: file.read(name) for name in file.entries}, marks)
    with pytest.raises(FileFormatError, match="was not written with"):
        written.read(tmp_path)


# ---- graphs


def test_a_graph_whose_rows_do_not_add_up_is_not_loaded_unless_it_must_be(tmp_path: Path) -> None:
    graph = random_graph(dtype=torch.float32)
    assert graph.balance is not None
    graph.balance.bias[0] += 1.0  # a graph that was made wrong, and written whole
    graph.save(tmp_path / "g.safetensors")
    with pytest.raises(NumericalError, match=r"the sum rule does not hold.*g\.safetensors is damaged, or was changed"):
        Graph.load(tmp_path / "g.safetensors")
    assert Graph.load(tmp_path / "g.safetensors", max_residual=1.0).residual == graph.residual


@pytest.mark.parametrize("name", ["balance.bias", "activation_values", "logit_probabilities", "targets.weight"])
def test_numbers_of_a_graph_that_are_not_finite_are_refused(name: str, tmp_path: Path) -> None:
    path = random_graph(dtype=torch.float32).save(tmp_path / "g.safetensors")
    file = open_tensor_file(path)
    tensors = {each: file.read(each) for each in file.entries}
    tensors[name][0] = float("nan")
    write_tensors(path, tensors, file.metadata)
    with pytest.raises((NumericalError, FileFormatError), match="finite"):
        Graph.load(path)


def test_a_graph_file_of_the_first_version_has_no_checksums_and_a_later_one_must(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    graph = random_graph(dtype=torch.float32)
    file = open_tensor_file(graph.save(tmp_path / "g.safetensors"))
    header = json.loads(file.metadata["circuit_tracer_graph"])
    for version in (1, 2):
        metadata = {"circuit_tracer_graph": json.dumps({**header, "version": version})}
        save_file({name: file.read(name) for name in file.entries}, tmp_path / f"{version}.safetensors", metadata)
    assert equal(Graph.load(tmp_path / "1.safetensors").edges, graph.edges)
    with pytest.raises(FileFormatError, match="has checksums, and it has none"):
        Graph.load(tmp_path / "2.safetensors")


# ---- documents


def test_a_digest_is_of_values_not_of_text(tmp_path: Path) -> None:
    document: dict[str, Any] = {"b": [1.0, 0.1, -3, None], "a": {"x": "é\u2028", "y": 1e-7}}
    path = tmp_path / "d.json"
    write_sealed(path, document)
    assert read_sealed(path, "") == document
    found = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(found.items())), indent=3, ensure_ascii=False).replace("1.0", "1"))
    assert read_sealed(path, "") == document
    for changed in ({**found, "c": 1}, {**found, "b": [1, 0.1, -3, 0]}, {**found, "a": {}}):
        with pytest.raises(FileFormatError, match="is not what was written"):
            unsealed(changed, "it")


def test_a_document_that_needs_a_digest_is_refused_without_and_any_with_a_damaged_name() -> None:
    document = {"a": 1}
    assert unsealed(document, "it") == document
    with pytest.raises(FileFormatError, match=r"it is damaged: it has no digest\. Make it again\."):
        unsealed(document, "it", "Make it again.")
    with pytest.raises(FileFormatError, match="it has the key 'dmgest', which was 'digest'"):
        unsealed({**document, "dmgest": sealed(document)["digest"]}, "it")
    assert unsealed({**document, "contest": 1}, "it") == {**document, "contest": 1}


def test_half_a_character_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_sealed(tmp_path / "d.json", {"text": "a\ud800b"}, ensure_ascii=False)
    assert read_sealed(tmp_path / "d.json", "") == {"text": "a?b"}
    assert digest_of({"a": 1.0, "b": [2.0]}) == digest_of({"b": [2], "a": 1})


def test_what_people_write_into_a_graph_or_its_labels_is_read_with_a_word(tmp_path: Path) -> None:
    path = create_graph_files(random_graph(), "g", tmp_path)
    document = json.loads(path.read_text())
    document["qParams"]["supernodes"] = [["by hand", document["nodes"][0]["node_id"]]]
    document["nodes"][0]["clerp"] = "mine"
    path.write_text(json.dumps(document))
    with pytest.warns(ChangedFileWarning, match="by hand or by damage") as said:
        found = load_viewer_json(path)
    assert len(said) == 2
    assert found["qParams"]["supernodes"][0][0] == found["nodes"][0]["clerp"].replace("mine", "by hand")
    document["links"][0]["weight"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match="nodes or links differ"), pytest.warns(ChangedFileWarning):
        load_viewer_json(path)
    labels = write_labels(tmp_path, {(0, 1): Label("a", "me")})
    labels.write_text(labels.read_text().replace('"a"', '"b"'))
    with pytest.warns(ChangedFileWarning):
        assert read_labels(labels) == {(0, 1): "b"}
