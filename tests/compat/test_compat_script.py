"""A script written for circuit-tracer 0.5 runs unchanged, on its own import paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PEER = Path(__file__).parents[1] / "interventions" / "peer"

# what circuit-tracer's README and notebooks do, in their words
SCRIPT = """
import torch

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.attribution.targets import CustomTarget, LogitTarget
from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph
from circuit_tracer.utils import create_graph_files
from circuit_tracer.utils.demo_utils import get_top_features, get_topk, get_unembed_vecs
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

transcoders, config = load_transcoder_from_hub(TRANSCODER, dtype=torch.float32, lazy_encoder=False, lazy_decoder=True)
model = ReplacementModel.from_pretrained_and_transcoders(MODEL, transcoders, dtype=torch.float32, backend="transformerlens")
model = ReplacementModel.from_pretrained(MODEL, TRANSCODER, dtype=torch.float32)
prompt = "the capital of Texas is"

graph = attribute(
    prompt=prompt, model=model, max_n_logits=10, desired_logit_prob=0.95, batch_size=256, max_feature_nodes=8192,
    offload=None, verbose=False,
)
graph.to_pt("graph.pt")
graph = Graph.from_pt("graph.pt")
node_mask, edge_mask, cumulative_scores = prune_graph(graph, node_threshold=0.8, edge_threshold=0.98)
assert edge_mask.shape == graph.adjacency_matrix.shape
result = prune_graph(graph)
assert torch.equal(result.node_mask, node_mask) and torch.equal(result.edge_mask, edge_mask)
replacement, completeness = compute_graph_scores(graph)
assert 0 < replacement < 1 and 0 < completeness < 1
create_graph_files(graph_or_path="graph.pt", slug="texas", scan=None, output_path="graph_files", node_threshold=0.8,
                   edge_threshold=0.98)

weights = torch.zeros(graph.adjacency_matrix.shape[0])
weights[-len(graph.logit_targets):] = graph.logit_probabilities
influence = compute_node_influence(graph.adjacency_matrix, weights)
features, scores = get_top_features(graph, n=5)
torch.testing.assert_close(torch.tensor(scores), influence[: len(graph.selected_features)].topk(5).values.float())

logits, activations = model.get_activations(prompt, sparse=True)
layer, position, feature = features[0]
interventions = [(layer, position, feature, 2 * activations[layer, position, feature])]
new_logits, new_activations = model.feature_intervention(prompt, interventions)
assert len(get_topk(logits, model.tokenizer, k=3)) == 3 and new_logits.shape == logits.shape
steering = [(layer, slice(position, None), feature, 5.0)]
text, _, _ = model.feature_intervention_generate(prompt, steering, do_sample=False, verbose=False, max_new_tokens=3)
assert text.startswith(prompt)

first, second = get_unembed_vecs(model, [9, 10], "transformerlens")
targets = [CustomTarget("Austin - Dallas", 1.0, first - second)]
difference = attribute(prompt, model, attribution_targets=targets)
assert difference.logit_targets == [LogitTarget("Austin - Dallas", model.cfg.d_vocab)]
named = attribute(prompt, model, attribution_targets=["Austin", "Dallas"])
assert [target.vocab_idx for target in named.logit_targets] == [9, 10]
numbered = attribute(prompt, model, attribution_targets=torch.tensor([9, 10]))
assert numbered.logit_token_ids.tolist() == [9, 10]
"""

PATHS = """
import circuit_tracer.attribution.attribute, circuit_tracer.attribution.targets, circuit_tracer.graph
import circuit_tracer.replacement_model, circuit_tracer.utils.tl_nnsight_mapping
from circuit_tracer.transcoder import SingleLayerTranscoder, TranscoderSet, load_transcoder_set
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt, load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import (
    load_gemma_scope_2_transcoder, load_gemma_scope_transcoder, load_transcoder,
)
from circuit_tracer.utils import create_graph_files, get_default_device
from circuit_tracer.utils.caching import (
    empty_cache, get_cache_dir, get_cached_path, is_cached, load_transcoders_from_cache, save_transcoders_to_cache,
)
from circuit_tracer.utils.create_graph_files import create_graph_files as same
from circuit_tracer.utils.decode_url_features import Feature, decode_url_features
from circuit_tracer.utils.demo_utils import cleanup_cuda, extract_supernode_features
from circuit_tracer.utils.hf_utils import load_transcoders
from circuit_tracer.utils import create_graph_files as again

assert create_graph_files is same is again, "the function is not hidden by the module of its name"
import circuit_tracer.transcoders
assert CrossLayerTranscoder is circuit_tracer.transcoders.CrossLayerTranscoder
"""


def _run(script: str, folder: Path) -> None:
    names = (
        f"MODEL, TRANSCODER = {str(PEER / 'model')!r}, {str(PEER / 'clt')!r}\nimport torch; torch.set_num_threads(1)\n"
    )
    subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", names + script], cwd=folder, check=True)


@pytest.mark.slow("a whole tutorial: 6 s")
def test_a_script_for_circuit_tracer_runs_unchanged(tmp_path: Path) -> None:
    _run(PATHS + SCRIPT, tmp_path)
    assert (tmp_path / "graph_files" / "texas.json").is_file()
    assert (tmp_path / "graph_files" / "graph-metadata.json").is_file()


@pytest.mark.slow("takes 6.8 s")
def test_all_public_names_resolve() -> None:
    import circuit_tracer

    for name in circuit_tracer.__all__:
        assert getattr(circuit_tracer, name) is not None
    assert set(circuit_tracer.__all__) <= set(dir(circuit_tracer))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = circuit_tracer.no_such_name


def test_features_of_a_viewers_address() -> None:
    from circuit_tracer.errors import InputError
    from circuit_tracer.utils.decode_url_features import Feature, decode_url_features
    from circuit_tracer.utils.demo_utils import extract_supernode_features

    url = (
        "https://www.neuronpedia.org/gemma-2-2b/graph?slug=a&pinnedIds=27_22605_10%2CE_26865_9&supernodes="
        "%5B%5B%22state%22%2C%226_4012_7%22%2C%220_13727_7%22%5D%2C%5B%22state%22%2C%2219_1445_10%22%5D%5D"
    )
    groups, singles = decode_url_features(url)
    assert singles == [Feature(27, 10, 22605), Feature(-1, 9, 26865)]
    assert groups == {"state": [Feature(6, 7, 4012), Feature(0, 7, 13727)], "state (2)": [Feature(19, 10, 1445)]}
    assert extract_supernode_features(url) == groups
    assert decode_url_features("https://x.org/?slug=a") == ({}, [])
    with pytest.raises(InputError, match="layer_feature_position"):
        decode_url_features("https://x.org/?pinnedIds=nonsense")


def test_displays_of_the_notebooks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from circuit_tracer.attribution.targets import CustomTarget
    from circuit_tracer.utils import demo_utils as show

    class Letters:
        def decode(self, ids: list[int]) -> str:
            return "abc"[ids[0]]

    monkeypatch.setenv("COLUMNS", "120")
    before, after = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[5.0, 1.0, 2.0]]])
    show.display_topk_token_predictions("a [prompt]", before, after, Letters(), k=2, key_tokens=[("a", 0)])
    show.display_generations_comparison("once", ["once more"], ["once again"])
    show.display_token_probs(after, [0, 2], ["first", "third"], "some tokens")
    show.display_top_features_comparison({"one": [(1, 2, 3)]}, {"one": [0.5]}, neuronpedia_model="m")
    show.display_attribution_config([("a", 0)], [("difference", CustomTarget("a-b", 1.0, torch.ones(2)))])
    text = capsys.readouterr().out
    for expected in ("a [prompt]", "'c'", "0.665", "again", "third", "(1, 2, 3)", "/m/1-gemmascope", "a-b"):
        assert expected in text


def test_the_chart_of_the_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    from circuit_tracer.utils.demo_utils import display_ablation_chart

    display_ablation_chart(
        {"clean": {"a": 0.5, "b": 0.2}, "ablated": {"a": 0.1, "b": 0.6}}, {"clean": 1.0, "ablated": -2.0}
    )
    assert len(plt.gcf().axes[0].patches) == 4
    plt.close("all")
