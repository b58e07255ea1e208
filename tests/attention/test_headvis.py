"""The folder that HeadVis reads, and the picture."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer.attention import HeadTable, diagnose_heads, headvis, write_headvis
from circuit_tracer.attention.headvis import chosen_samples, sparse
from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import bind
from circuit_tracer.models.run import read
from tests.support.data_cases import texts, tokenizer
from tests.support.tiny import tiny_model

METRICS = [
    "self_attention_score",
    "prev_token_score",
    "pattern_entropy",
    "qk_distance",
    "qk_distance_variance",
    "induction_score",
]
NEEDED = {
    "model_name",
    "dataset_name",
    "n_sequences",
    "seq_len",
    "dtype",
    "attn_implementation",
}  # Neuronpedia's import


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("gpt_oss", torch.float32)  # sinks and windows


@pytest.fixture(scope="module")
def table(model: Any) -> HeadTable:
    return diagnose_heads(model, texts(40), tokenizer=tokenizer(), context_length=24, ablate=0)


@pytest.fixture(scope="module")
def folder(model: Any, table: HeadTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("headvis")
    return write_headvis(table, model, root, tokenizer=tokenizer(), dataset="some/Pile (small)", model_id="tiny-1b")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files(folder: Path, table: HeadTable) -> None:
    assert folder.parts[-3:] == ("tiny-1b", "headvis", "some-Pile-small")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    heads = {f"heads/L{layer}H{head}.json" for layer in range(3) for head in range(4)}
    others = {"config.json", "scatter_data.json", "server_config.json", "attributions/manifest.json"}
    assert names == heads | others
    assert load(folder / "server_config.json") == load(folder / "attributions/manifest.json") == {}
    config, rows = load(folder / "config.json"), load(folder / "scatter_data.json")
    assert set(METRICS) < set(config["metrics"]) == set(config["metric_descriptions"])
    assert "ablation_loss_change" not in config["metrics"], "no head was ablated"
    assert config["heads"] == [[row["layer"], row["head"]] for row in rows]
    assert (config["n_layers"], config["n_heads"], config["n_intervals"], config["has_umap"]) == (3, 4, 5, False)
    assert all(config["pipeline_config"][key] is not None for key in NEEDED)
    assert config["pipeline_config"]["n_sequences"] == len(table.sequences)
    for row in rows:
        assert row["induction_score"] == pytest.approx(float(table["induction"][row["layer"], row["head"]]), abs=1e-4)
        assert row["ablation_loss_change"] is None


@pytest.mark.parametrize("head", [(0, 1), (2, 3)], ids=["0.1", "2.3"])
def test_a_heads_sequences_hold_its_patterns(folder: Path, table: HeadTable, model: Any, head: tuple[int, int]) -> None:
    layer, number = head
    written = load(folder / "heads" / f"L{layer}H{number}.json")
    keys = {"sequence_id", "interval", "tokens", "attention_indices", "attention_values", "seq_len", "max_activation"}
    by_interval = Counter(each["interval"] for each in written["sequences"])
    assert by_interval == {1: 3, 2: 3, 3: 3, 4: 3, 5: 10}
    weights: Counter[str] = Counter()
    for each in written["sequences"]:
        assert each.keys() == keys
        ids = table.sequences[each["sequence_id"]]
        length = each["seq_len"]
        assert length == len(ids) == len(each["tokens"])
        pattern = read(bind(model, "m"), ids, [("attn.hook_pattern", layer)])["attn.hook_pattern", layer][0, number]
        kept = torch.zeros(length * length)
        kept[each["attention_indices"]] = torch.tensor(each["attention_values"])
        kept = kept.view(length, length)
        assert each["attention_indices"] == sorted(set(each["attention_indices"]))
        for query in range(length):
            strongest = pattern[query].sort(descending=True).values[: min(8, length)]
            strongest = strongest[strongest >= 0.005]
            shown = kept[query][kept[query] > 0].sort(descending=True).values
            torch.testing.assert_close(shown, strongest, rtol=0, atol=6e-5)
            torch.testing.assert_close(kept[query][kept[query] > 0], pattern[query][kept[query] > 0], rtol=0, atol=6e-5)
        assert each["max_activation"] == pytest.approx(float(pattern[1:, 1:].max()), abs=6e-5)
        for position, value in enumerate(kept.sum(0).tolist()):
            weights[each["tokens"][position]] += value
    top = written["top_key_tokens"]
    assert [row["weight"] for row in top] == sorted((row["weight"] for row in top), reverse=True)
    assert top[0]["weight"] == pytest.approx(weights[top[0]["token"]], abs=1e-2)
    distances = written["qk_distance_histogram"]
    assert distances["bin_edges"] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert sum(distances["bin_values"]) == pytest.approx(sum(weights.values()), rel=1e-3)
    assert sum(written["histogram"]["bin_values"]) == len(table.sequences)
    assert (len(written["histogram"]["bin_edges"]), written["statistics"]["n_samples"]) == (51, 22)
    mean = float(table.peaks[:, layer, number].double().mean())
    assert written["statistics"]["mean_max_activation"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.slow("takes 1.6 s")
def test_the_same_table_gives_the_same_bytes_in_groups_of_layers(
    folder: Path, table: HeadTable, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headvis, "ENTRIES", 1)
    given = {"tokenizer": tokenizer(), "dataset": "some/Pile (small)", "model_id": "tiny-1b"}
    again = write_headvis(table, model, tmp_path, **given)
    for path in folder.rglob("*.json"):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    other = write_headvis(table, model, tmp_path / "other", **given, seed=1)
    assert load(other / "heads/L0H0.json")["sequences"] != load(folder / "heads/L0H0.json")["sequences"]


def test_intervals_hold_as_many_sequences_each() -> None:
    peaks = np.random.default_rng(0).permutation(100) / 100
    found = chosen_samples(peaks, (0, 0), seed=0)
    for each in found:
        assert each.interval == int(peaks[each.sequence] * 5) + 1
    top = [each.sequence for each in found if each.interval == 5]
    assert peaks[top].tolist() == [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9]
    assert chosen_samples(peaks, (0, 0), 0) == found != chosen_samples(peaks, (0, 1), 0)
    assert [each.sequence for each in chosen_samples(np.full(4, 0.5), (0, 0), 0)] == [0, 1, 2, 3], "equal ones together"


def test_few_keys() -> None:
    entries = sparse(torch.tensor([[1.0, 0.0], [0.004, 0.996]]))
    assert (entries.indices, entries.values) == ([0, 3], [1.0, 0.996])


def test_another_model_is_refused(table: HeadTable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 layers of 4 heads, and the model has 2 of 4"):
        write_headvis(table, tiny_model("llama", num_hidden_layers=2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_picture(table: HeadTable, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    few = replace(table, scores={name: table[name] for name in ("induction", "ablation")})
    first = few.draw(tmp_path / "a.svg").read_bytes()
    assert first == few.draw(tmp_path / "b.svg").read_bytes()
    assert first.count(b'<g id="axes_') == 2, "a panel and its scale: a score that no head has takes none"
    assert few.draw(tmp_path / "c.png").stat().st_size > 5_000
