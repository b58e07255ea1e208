"""Patch: where in the model is the difference between two prompts, and what does a cheap estimate of it miss?

    python examples/patch.py

Writes patching.csv and patching.svg, a heat map of layers by tokens.
"""

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.interventions import activation_patching, attribution_patching, logit_difference

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
clean, corrupted = PROMPT, PROMPT.replace("Dallas", "Oakland")
metric = logit_difference(model, "Austin", "Sacramento")
labels = load_labels()

# Activations of the clean run, one at a time, into the corrupted one. 1: the answer is as if all were clean.
table = activation_patching(model, clean, corrupted, metric, features=10)
table.to_csv("patching.csv")
table.draw("patching.svg")
print(f"{table.metric}: {table.base:.1f} corrupted, {table.donor:.1f} clean")
for row in table.largest(8):
    what = labels[row["layer"], row["unit"]] if row["site"] == "feature" else row["site"]
    print(f"  {row['effect']:+.3f}  layer {row['layer']}, {what} at {row['token'].strip()}")


def by_place(found):
    """Effects by what was patched."""
    return {tuple(row[name] for name in ("site", "layer", "position", "unit")): row["effect"] for row in found.rows()}


# The same from gradients, every place at once: cheap and first-order, so look at both before trusting it.
exact = by_place(table)
for steps in (1, 10):
    estimate = by_place(attribution_patching(model, clean, corrupted, metric, features=10, steps=steps))
    worst = max(exact.keys() & estimate.keys(), key=lambda place: abs(estimate[place] - exact[place]))
    print(
        f"from {steps} gradients, worst: {estimate[worst]:+.2f} for {exact[worst]:+.2f} ({worst[0]} of layer {worst[1]})"
    )
