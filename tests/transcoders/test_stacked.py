"""Transcoders stacked on one another, and adapters in a checkpoint of a fine-tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attribution.reference import reference_graph
from circuit_tracer.errors import CompatibilityError, FileFormatError, InputError
from circuit_tracer.files.checksums import write_tensors
from circuit_tracer.graph.files.native import load_graph
from circuit_tracer.interventions import FeatureAt, apply_edits, set_to
from circuit_tracer.transcoders import TranscoderSet, save_transcoders
from circuit_tracer.transcoders.stacked import Stacked, stacked
from tests.support.attention_cases import autoencoders
from tests.support.tiny import tiny_transcoder
from tests.support.tracing_cases import IDS, Case, assert_equal, assert_same_graph, build

HOOKS = {"input_hook": "mlp.hook_in", "output_hook": "mlp.hook_out"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "per layer on cross-layer": ({"kind": "clt"}, {"activation": "jump_relu"}, (0, 1, 2)),
    "topk on skip, some layers": ({"kind": "plt", "skip": True}, {"activation": "topk"}, (0, 2)),
}


def pair(how: str) -> tuple[Any, TranscoderSet]:
    below, above, layers = CASES[how]
    other = tiny_transcoder("plt", n_features=6, seed=3, **HOOKS, **above)
    own = TranscoderSet({layer: other[layer] for layer in layers}, *HOOKS.values())
    return tiny_transcoder(n_features=9, **HOOKS, **below), own


@pytest.mark.parametrize("how", CASES)
def test_a_stack_gives_what_its_parts_give_together(how: str) -> None:
    base, adapter = pair(how)
    both = Stacked([base, adapter])
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(both(x), base(x) + adapter.covering(3)(x))
    assert both.sections == (("transcoder", 0), ("adapter", 9))
    dense = both.encode(x)
    torch.testing.assert_close(dense[..., :9], base.encode(x))
    torch.testing.assert_close(dense[..., 9:], adapter.covering(3).encode(x))
    torch.testing.assert_close(both.encode_sparse(x, slice(0, 0))[0].to_dense(), dense)
    for layer in adapter.layers:
        rows, bias = both.encoder_rows(layer, torch.tensor([10, 3]))
        torch.testing.assert_close(rows[0], adapter.encoder_rows(layer, torch.tensor([1]))[0][0])
        torch.testing.assert_close(bias[1], base.encoder_rows(layer, torch.tensor([3]))[1][0])


@pytest.mark.few
@pytest.mark.parametrize("attention", [False, True], ids=["alone", "with attention"])
@pytest.mark.parametrize("how", CASES)
def test_graphs_of_a_stack_equal_the_reference(how: str, attention: bool, tmp_path: Path) -> None:
    base, adapter = pair(how)
    parts = build(Case("gemma2")).parts
    heads = autoencoders(parts, "attn.hook_z", (1,)) if attention else None
    model = ReplacementModel(parts, Stacked([base, adapter]), None, attention=heads)
    graph = attribute(IDS, model, max_n_logits=3)
    assert_same_graph(graph, reference_graph(model, IDS, max_n_logits=3))
    assert [part.name for part in graph.parts] == ["transcoder", "adapter", "attention"][: 2 + attention]
    graph.save(tmp_path / "g.safetensors")
    assert load_graph(tmp_path / "g.safetensors").parts == graph.parts
    rows = graph.active_features
    node = int(torch.nonzero((rows[:, 2] >= 9) & (rows[:, 2] < 15))[0])
    twice = set_to(FeatureAt(*rows[node].tolist()), 2 * float(graph.activation_values[node]))
    found = apply_edits(model, graph, twice, "constrained").features
    assert found is not None
    change = (found.pre_after - found.pre_before)[[found.of(*row) for row in rows.tolist()]]
    assert_equal(change.double(), graph.adjacency_matrix[: len(rows), node])


def test_dictionaries_of_other_places_are_not_stacked() -> None:
    with pytest.raises(CompatibilityError, match=r"adapter has output_hook hook_mlp_out, transcoder has mlp\.hook_out"):
        Stacked([tiny_transcoder("plt", **HOOKS), tiny_transcoder("plt", input_hook="mlp.hook_in")])
    with pytest.raises(InputError, match="give two or more"):
        Stacked([tiny_transcoder("plt")], ["alone"])


def checkpoint(folder: Path, adapter: TranscoderSet, left_out: str = "") -> Path:
    """A checkpoint as the adapters are published in, with one tensor of the model beside them."""
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 16)}
    for layer in adapter.layers:
        one, name = adapter[layer], f"model.layers.{layer}.mlp.transcoder_"
        tensors |= {f"{name}enc.weight": one.W_enc, f"{name}enc.bias": one.b_enc}
        tensors |= {f"{name}dec.weight": one.W_dec.T.contiguous(), f"{name}dec.bias": one.b_dec}
    folder.mkdir()
    kept = {name: tensor.detach() for name, tensor in tensors.items() if not left_out or left_out not in name}
    write_tensors(folder / "model.safetensors", kept, {}, "it")
    return folder


def test_adapters_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    base, adapter = tiny_transcoder("plt", **HOOKS), tiny_transcoder("plt", n_features=6, seed=3, **HOOKS)
    both = stacked(base, checkpoint(tmp_path / "tuned", adapter), dtype=None)
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(both(x), base(x) + adapter(x))
    with pytest.raises(FileFormatError, match=r"layer 0: of its adapter, transcoder_enc\.bias is missing"):
        stacked(base, checkpoint(tmp_path / "broken", adapter, "0.mlp.transcoder_enc.bias"))


def test_any_transcoders_can_be_an_adapter(tmp_path: Path) -> None:
    base, adapter = tiny_transcoder("plt", **HOOKS), tiny_transcoder("plt", n_features=6, seed=3, **HOOKS)
    save_transcoders(adapter, tmp_path)
    assert stacked(base, tmp_path, dtype=None).sections == (("transcoder", 0), ("adapter", 20))
