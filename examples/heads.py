"""Diagnose heads: what each attends to over many texts, and how much of the answers goes without it.

    python examples/heads.py

Writes heads.svg and heads.json.
"""

from circuit_tracer import ReplacementModel
from circuit_tracer.attention import diagnose_heads
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.interventions import HeadEdit, apply_each

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
asked = world.held_out()[:8]  # two-hop questions that the model was not trained on

# No text of the embedded world says anything twice, so that induction means nothing here: give texts, and ablate none.
table = diagnose_heads(model, [one.text for one in asked], ablate=0)
table.to_json("heads.json")
table.draw("heads.svg")
for row in table.rows("entropy", ascending=True):
    print(f"L{row['layer']}H{row['head']}  entropy {row['entropy']:.2f}, distance {row['distance']:.1f}")

# What these scores cannot say: whether the answers need the head.
heads = [(layer, head) for layer in range(table.n_layers) for head in range(table.n_heads)]
kept = dict.fromkeys(heads, 0)
edits = [[HeadEdit(*place, "mean")] for place in heads]
for one in asked:
    for place, outcome in zip(heads, apply_each(model, one.prompt, edits, watch="none"), strict=True):
        kept[place] += outcome.tokens(1)[0].text == one.answer
for (layer, head), right in kept.items():
    print(f"without L{layer}H{head}: {right} of {len(asked)} right")
