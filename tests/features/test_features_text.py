"""The text of tokens, the corpora, and the other forms of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from circuit_tracer.demo.tokenizer import build_tokenizer
from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.export import export_json, export_neuronpedia
from circuit_tracer.features.labels import Label, describe, label_from_records, load_labels, read_labels, write_labels
from circuit_tracer.graph.files.node_ids import cantor_unpair
from circuit_tracer.models.token_text import TokenTexts
from circuit_tracer.text.corpus import Corpus, ListedDocuments, SeparateDocuments
from circuit_tracer.text.special import SpecialTokens
from tests.support.feature_cases import Case, sequences


def byte_level() -> Any:
    """GPT-2's kind of tokenizer, with nothing but bytes."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "<s>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def metaspace() -> Any:
    """SentencePiece's kind, with pieces, spaces in front of words, and bytes."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "<unk>", "a", "▁", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace()] if hasattr(decoders, "ByteFallback") else [decoders.Metaspace()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def test_tokens_keep_their_spaces() -> None:
    words = build_tokenizer()
    text = TokenTexts(words)
    ids = words("the capital of Texas is").input_ids
    assert [text(token) for token in ids] == ["<s>", " the", " capital", " of", " Texas", " is"]
    pieces = metaspace()
    text = TokenTexts(pieces)
    assert [text(pieces.convert_tokens_to_ids(name)) for name in ("▁cat", "s", "<s>")] == [" cat", "s", "<s>"]


def test_bytes_that_are_no_character_are_escaped() -> None:
    tokenizer = byte_level()
    text = TokenTexts(tokenizer)
    assert [text(token) for token in tokenizer("é a").input_ids] == ["\\xc3", "\\xa9", " ", "a"]
    pieces = metaspace()
    assert TokenTexts(pieces)(pieces.convert_tokens_to_ids("<0xC3>")) == "\\xc3"
    assert TokenTexts(None)(7) == "<7>"


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_a_corpus_goes_on_where_it_was(packed: bool, tmp_path: Path) -> None:
    case = Case(packed=packed)

    def read(corpus: Corpus) -> list[list[int]]:
        return [ids.tolist() for ids in sequences(corpus)]

    whole = read(case.corpus(tmp_path))
    for count in (0, 1, 7):
        first = case.corpus(tmp_path)
        begun = [first.next().tolist() for _ in range(count)]  # type: ignore[union-attr]
        second = case.corpus(tmp_path)
        second.restore(json.loads(json.dumps(first.state())))
        assert begun + read(second) == whole


def test_a_document_is_cut_off_and_an_empty_one_passed_over() -> None:
    tokenizer = build_tokenizer()
    texts = ListedDocuments(["the capital of Texas is Austin", "", "the opposite of big is small"])
    corpus = SeparateDocuments(texts, tokenizer, SpecialTokens.of(tokenizer), 4)
    found = [tokenizer.convert_ids_to_tokens(ids) for ids in sequences(corpus)]
    assert found == [["<s>", "the", "capital", "of"], ["<s>", "the", "opposite", "of"]]
    with pytest.raises(InputError, match="needs a tokenizer"):
        SeparateDocuments(texts, None, SpecialTokens.of(None), 4).next()


def test_json_files_hold_the_same_records(tmp_path: Path) -> None:
    features = FeatureFolder(Case().build(tmp_path, "out"))
    assert export_json(features, tmp_path / "json", [(1, 3), (0, 5), (1, 3)]) == 2
    for path in (tmp_path / "json").iterdir():
        assert json.loads(path.read_text()) == features.get(cantor_unpair(int(path.stem)))
    with pytest.raises(InputError, match="no record of feature 99 of layer 1"):
        export_json(features, tmp_path / "json", [(1, 99)])


def test_records_follow_the_schema_of_features(tmp_path: Path) -> None:
    features = FeatureFolder(Case().build(tmp_path, "out"))
    for place in features:
        record = features.get(place)
        assert isinstance(record["index"], int)
        for name in ("top_logits", "bottom_logits"):
            assert all(isinstance(token, str) for token in record[name])
        for group in record["examples_quantiles"]:
            assert isinstance(group["quantile_name"], str)
            for example in group["examples"]:
                assert len(example["tokens"]) == len(example["tokens_acts_list"]) > example["train_token_ind"]
                assert all(isinstance(token, str) for token in example["tokens"])
                assert all(np.isfinite(value) for value in example["tokens_acts_list"])


def test_neuronpedia_batches_obey_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.features.export.FEATURES_A_BATCH", 8)
    features = FeatureFolder(Case().build(tmp_path, "out"))
    labels = {(0, 1): "x" * 900}
    bodies = [json.loads(p.read_text()) for p in export_neuronpedia(features, tmp_path / "np", "m", "s", labels=labels)]
    listed = [(int(body["source"].split("-")[0]), one["index"]) for body in bodies for one in body["features"]]
    assert listed == [place for place in features if features.get(place)["examples_quantiles"]]
    assert {body["source"] for body in bodies} == {"0-s", "1-s"}
    for body in bodies:
        assert body["modelId"] == "m"
        assert 1 <= len(body["features"]) <= 8
        for one in body["features"]:
            assert 0 <= one["density"] <= 1
            assert len(one["topLogits"]) <= 20
            assert one["activations"]
            assert all(len(a["tokens"]) == len(a["values"]) >= 1 and all(a["tokens"]) for a in one["activations"])
    explained = {one["index"]: one["explanations"] for body in bodies[:1] for one in body["features"]}
    assert explained[1] == [{"text": "x" * 512}]
    assert explained[2] == []


def test_labels_come_back_and_are_made_where_there_are_none(tmp_path: Path) -> None:
    folder = Case().build(tmp_path, "out")
    assert read_labels(folder) == {}
    write_labels(folder, {(0, 2): Label('a "quoted" label\n', "me", 0.5)})
    labels = label_from_records(folder)
    assert load_labels(folder) == labels
    assert labels[0, 2] == Label('a "quoted" label\n', "me", 0.5)
    features = FeatureFolder(folder)
    active = [place for place in features if features.get(place)["n_active"]]
    assert set(labels) >= set(active)
    assert all(label.source == "record" for place, label in labels.items() if place != (0, 2))


def test_a_label_names_what_a_feature_reads_and_says() -> None:
    example = {"tokens": [" a", " Dallas"], "tokens_acts_list": [0, 2.0], "train_token_ind": 1}
    rare = {**example, "tokens": [" a", "\n"], "tokens_acts_list": [0, 0.5]}
    record = {
        "examples_quantiles": [{"examples": [example, rare]}],
        "top_logits": [" Austin", " Houston"],
        "top_logit_values": [9.0, 1.0],
        "logit_spread": 1.0,
        "n_vocabulary": 100,
    }
    assert describe(record) == "“Dallas”, “⏎” → “Austin”"
    assert describe({**record, "top_logit_values": [2.0, 1.0]}) == "“Dallas”, “⏎”"
    assert describe({**record, "examples_quantiles": [], "top_logit_values": [2.0, 1.0]}) == ""


def test_plain_strings_are_labels_and_other_things_are_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"0": {"7": "seven"}}')
    assert read_labels(path) == {(0, 7): "seven"}
    for text in ('{"0": {"7": 8}}', "[]", '{"x": {}}'.replace("{}", '{"1": "a"}'), "{"):
        path.write_text(text)
        with pytest.raises(FileFormatError, match=r"no labels file|not readable JSON"):
            read_labels(path)
    with pytest.raises(InputError, match="no labels at"):
        read_labels(tmp_path / "nothing.json")
