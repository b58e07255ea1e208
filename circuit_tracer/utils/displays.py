"""The tables and the chart of circuit-tracer's notebooks, under its names; drawn with rich, in a terminal and in Jupyter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from circuit_tracer.graph.targets import CustomTarget


def display_topk_token_predictions(
    sentence: str,
    original_logits: Tensor,
    new_logits: Tensor,
    tokenizer: Any,
    k: int = 5,
    key_tokens: Sequence[tuple[str, int]] | None = None,
) -> None:
    """The k most probable next tokens before and after an intervention, and the probabilities of `key_tokens` (text, id).

    Logits are ((1,) P, V); the last position counts.
    """
    before, after = _probabilities(original_logits), _probabilities(new_logits)
    rows = []
    for name, probabilities in (("before", before), ("after", after)):
        top = torch.topk(probabilities, k)
        rows += [(name, repr(tokenizer.decode([int(i)])), f"{float(p):.3f}") for p, i in zip(*top, strict=True)]
    _show(sentence, ("", "token", "probability"), rows)
    if key_tokens:
        changes = [(repr(text), f"{float(before[i]):.3f}", f"{float(after[i]):.3f}") for text, i in key_tokens]
        _show("key tokens", ("token", "before", "after"), changes)


def display_generations_comparison(
    original_text: str, pre_intervention_gens: Sequence[str], post_intervention_gens: Sequence[str]
) -> None:
    """Continuations of a prompt without and with an intervention."""
    rows = [("without", text.removeprefix(original_text)) for text in pre_intervention_gens]
    rows += [("with", text.removeprefix(original_text)) for text in post_intervention_gens]
    _show(original_text, ("intervention", "continuation"), rows)


def display_token_probs(logits: Tensor, token_ids: Sequence[int], labels: Sequence[str], title: str = "") -> None:
    """Probability and logit of chosen tokens at the last position of logits ((1,) P, V)."""
    probabilities, last = _probabilities(logits), logits.reshape(-1, logits.shape[-1])[-1]
    rows = [
        (label, f"{float(probabilities[i]):.3g}", f"{float(last[i]):.4f}")
        for i, label in zip(token_ids, labels, strict=True)
    ]
    _show(title, ("token", "probability", "logit"), rows)


def display_top_features_comparison(
    feature_sets: Mapping[str, Sequence[tuple[int, int, int]]],
    scores_sets: Mapping[str, Sequence[float]] | None = None,
    neuronpedia_model: str | None = None,
    neuronpedia_set: str = "gemmascope-transcoder-16k",
) -> None:
    """Features (layer, position, index) of several graphs, one table each; with a model's name, their Neuronpedia pages."""
    for name, features in feature_sets.items():
        scores = scores_sets.get(name) if scores_sets else None
        rows = []
        for rank, (layer, position, index) in enumerate(features):
            page = f"https://www.neuronpedia.org/{neuronpedia_model}/{layer}-{neuronpedia_set}/{index}"
            score = f"{scores[rank]:.4f}" if scores is not None else ""
            rows.append((str(rank + 1), f"({layer}, {position}, {index})", score, page if neuronpedia_model else ""))
        _show(name, ("rank", "layer, position, feature", "score", "page"), rows)


def display_attribution_config(
    token_pairs: Sequence[tuple[str, int]], target_pairs: Sequence[tuple[str, CustomTarget]]
) -> None:
    """Tokens with their ids, and targets with their labels and weights."""
    _show("tokens", ("token", "id"), [(repr(text), str(i)) for text, i in token_pairs])
    rows = [(kind, target.token_str, f"{target.prob:.5f}") for kind, target in target_pairs]
    _show("targets", ("kind", "label", "weight"), rows)


def display_ablation_chart(
    groups: Mapping[str, Mapping[str, float]],
    logit_diffs: Mapping[str, float] | None = None,
    title: str = "",
    colors: Sequence[str] | None = None,
) -> None:
    """Probabilities of tokens in several conditions as bars; logit differences, if given, as a dashed line."""
    import matplotlib.pyplot as plt

    tokens = list(next(iter(groups.values())))
    width = 0.8 / len(tokens)
    figure, axis = plt.subplots(figsize=(max(6.0, 1.5 * len(groups)), 4))
    for slot, token in enumerate(tokens):
        places = [group + (slot - (len(tokens) - 1) / 2) * width for group in range(len(groups))]
        color = colors[slot] if colors else None
        axis.bar(places, [values[token] for values in groups.values()], width, label=token, color=color)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set(ylabel="probability", title=title)
    axis.legend()
    if logit_diffs is not None:
        line = axis.twinx()
        line.plot(range(len(groups)), [logit_diffs[name] for name in groups], "k--o")
        line.set_ylabel("logit difference")
    figure.tight_layout()
    plt.show()


def _probabilities(logits: Tensor) -> Tensor:
    return torch.softmax(logits.reshape(-1, logits.shape[-1])[-1].float(), dim=-1)


def _show(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=Text(title))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
