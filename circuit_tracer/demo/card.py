"""The card of the demo model, written from its metrics."""

from __future__ import annotations

from typing import Any

_HEAD = """# The embedded demo: a small model, its tokenizer and its cross-layer transcoder

**A teaching fixture, made so on purpose, and no evidence about large models.** The training recipe was chosen so that the
model looks entities up in its MLPs and the transcoder's features cause the answers (first attention layer silent, embedding
rows of a small fixed norm). Without those measures a model like this one answers along other paths, and its features
describe the answer without causing it. What is easy to see here is not thereby true of models trained on text.

Model: Llama architecture, {n_layers} layers, d_model {d_model}, MLP {d_mlp}, {n_heads} heads, untied embeddings, a word-level
vocabulary (a name such as "New York City" is one token), bf16. It knows 50 US states and 40 countries with six cities each
(capital, abbreviation, language, currency), antonyms in English, French and Spanish, and successors of numbers, weekdays
and months; nothing else. Any other word is unknown to it.

Transcoder: {n_features} JumpReLU features a layer, `hook_resid_mid` to `hook_mlp_out`, bf16, circuit-tracer's native layout,
trained by this package's trainer (`circuit_tracer/training`) on every distinct context of its statements and on {copies} copies
of each in which the embeddings are moved a little, so that it is right about cities that it never saw.

Trained and measured by `circuit-tracer demo train -o FOLDER` (model seed {model_seed}, transcoder seed {transcoder_seed}; one
CPU core); `metrics.json` holds all numbers below. Position 0 is left out everywhere.
"""

_KINDS = """
## What the features stand for

Features are named by what they fire on (`circuit_tracer/demo/labels.py`): by an entity, a relation, a kind of word, an answer
that follows. {several} of {all} features that fire are of several answers to one relation, and called so ("say a capital:
Austin, Boise, Lima"); {mixed} are of no one kind, and called "mixed". In graphs of two-hop prompts, pruned as usual, they
carry these shares of the influence of all features:

| statements | mixed | several answers |
| --- | --- | --- |
{rows}
"""

_TESTS = """
## What the features cause

An entity's features are those active on at least 30 % of the prompts about its cities and at most 5 % of those about other
cities, found without the reserved cities: {mean_number:.1f} an entity on average; without any: {without}. In {covered} of
the two-hop prompts one of its entity's features is active at the city. Both thresholds were set with an earlier transcoder,
with both groups of cities in sight, and not changed since. The recipe of this one was chosen among 27 runs, nine of them
stopped early, that started from what some twenty runs for an earlier one had shown, all with the numbers of this page in
sight, those of the reserved cities among them, and the names of features were changed meanwhile: take these for a
description, not for an estimate of what another seed would give. A swap sets the true entity's features at the city to zero and
another entity's to their usual activation (their mean where they are active), or to twice that, all of them together; it
counts if the answer becomes the other entity's. The model learnt the reserved cities; the transcoder never saw them.

| swap | {relations} |
| --- |{rules}
{rows}

With a random other entity's features set to zero, {ablated} of the answers stay.

| prompt | answer | features of the entity at the city | after the swap |
| --- | --- | --- | --- |
{shown}
"""


def model_card(metrics: dict[str, Any]) -> str:
    """The README.md that stands beside the weights, all of its numbers from ``metrics``."""
    model, transcoder = metrics["recipe"]["model"], metrics["recipe"]["transcoder"]
    head = _HEAD.format(
        **{name: model[name] for name in ("n_layers", "d_model", "d_mlp", "n_heads")},
        n_features=transcoder["n_features"],
        copies=transcoder["copies"],
        model_seed=metrics["seeds"]["model"],
        transcoder_seed=metrics["seeds"]["transcoder"],
    )
    parts = (_answers, _reconstruction, _kinds, _comparison, _causes)
    return head + "".join(part(metrics) for part in parts)


def _answers(metrics: dict[str, Any]) -> str:
    kept, divergence = metrics["answer_kept_with_all_mlps_replaced"], metrics["kl_with_all_mlps_replaced"]
    lines = [
        "\n## What it knows\n",
        "Neither model nor transcoder was trained on the held-out two-hop statements; the transcoder saw no reserved city.\n",
        "| statements | right | answer unchanged with all MLPs replaced | KL of the replaced model, nats |",
        "| --- | --- | --- | --- |",
    ]
    for name, right in metrics["accuracy"].items():
        lines.append(f"| {name.replace('_', ' ')} | {right:.1%} | {kept[name]:.1%} | {divergence[name]:.4f} |")
    return "\n".join(lines) + "\n"


def _reconstruction(metrics: dict[str, Any]) -> str:
    lines = [
        "\n## How well the transcoder reconstructs\n",
        "NMSE and active features a token (L0) by layer, over all tokens, and NMSE with each distinct context counted once.\n",
        "| statements | NMSE | NMSE, each context once | L0 |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in metrics["reconstruction"].items():
        cells = [
            ", ".join(f"{value:.4f}" for value in found["nmse_by_layer"]),
            ", ".join(f"{value:.3f}" for value in found["nmse_by_layer_each_context_once"]),
            ", ".join(f"{value:.1f}" for value in found["l0_by_layer"]) + f" (sum {sum(found['l0_by_layer']):.1f})",
        ]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    never, total = metrics["features_never_active_by_layer"], metrics["recipe"]["transcoder"]["n_features"]
    lines.append(
        f"\nFeatures of {total} that never fire on the training statements, by layer: {', '.join(map(str, never))} "
        f"({sum(never) / (total * len(never)):.1%} of all)."
    )
    return "\n".join(lines) + "\n"


def _kinds(metrics: dict[str, Any]) -> str:
    found = metrics["kinds"]
    rows = [
        f"| {name.replace('_', ' ')} | {share['mixed']:.1%} | {share['several_answers']:.1%} |"
        for name, share in found["influence"].items()
    ]
    counts = {name: sum(found[f"{name}_by_layer"]) for name in ("mixed", "several_answers", "labelled")}
    return _KINDS.format(
        mixed=counts["mixed"], several=counts["several_answers"], all=counts["labelled"], rows="\n".join(rows)
    )


def _comparison(metrics: dict[str, Any]) -> str:
    """The sparse trainer beside plain dense training; empty while benchmarks/training/demo_trainers.py has not measured it."""
    trainers = metrics.get("trainers")
    if trainers is None:
        return ""
    lines = [
        "\n## Beside plain dense training\n",
        "Three transcoders of {n_features} features a layer, trained for {steps} steps of {batch} contexts".format(
            **trainers
        ),
        "(the shipped one is trained for longer), from the same weights, with the same contexts, batches, features and L0 in",
        "training; see `benchmarks/training/demo_trainers.py`. From planted weights (`circuit_tracer/demo/planting.py`) they",
        "reconstruct alike; AuxK, with the loss on dead features' pre-activations, leaves fewer features that never fire.",
        "L0 is equal over contexts as they are drawn in training; the column counts tokens of the statements, where frequent",
        "contexts weigh more. NMSE: mean of layers, each training context once. KL and answers kept: mean of the five groups",
        "of statements.\n",
        "| trainer | NMSE | KL | answers kept | never active | L0 a token | swaps of reserved cities, 1x, 2x |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in trainers["rows"].items():
        swaps = ", ".join(f"{share:.1%}" for share in found["swap_reserved_cities"].values())
        lines.append(
            f"| {name} | {found['nmse']:.4f} | {found['kl']:.4f} | {found['answers_kept']:.1%} | "
            f"{found['never_active']:.1%} | {found['l0']:.1f} | {swaps} |"
        )
    return "\n".join(lines) + "\n"


def _causes(metrics: dict[str, Any]) -> str:
    relations = list(metrics["swap_reserved_cities"]["1"])
    rows = []
    for which in ("swap_reserved_cities", "swap_other_cities"):
        for strength, shares in metrics[which].items():
            cells = " | ".join(f"{shares[name]:.1%}" for name in relations)
            rows.append(f"| {which[5:].replace('_', ' ')}, {strength}x usual | {cells} |")
    shown = [
        f"| {one['prompt']} | {one['answer']} | "
        + ", ".join(f"{name} at {value:.1f}" for name, value in one["active_features_of_entity"].items())
        + f" | {one['swapped_for']}: {one['answer_after_swap']['1']} |"
        for one in metrics["shown"]
    ]
    return _TESTS.format(
        mean_number=metrics["entity_features"]["mean_number"],
        without=", ".join(metrics["entity_features"]["entities_without"]) or "none",
        covered=f"{metrics['entity_features']['prompts_with_one_active']['two_hop']:.1%}",
        relations=" | ".join(relations),
        rules=" --- |" * len(relations),
        rows="\n".join(rows),
        ablated=f"{metrics['answer_kept_without_a_random_entitys_features']:.1%}",
        shown="\n".join(shown),
    )
