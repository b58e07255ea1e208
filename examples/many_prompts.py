"""Many prompts: trace a file of them into a folder, stop and go on, and say what the graphs have in common.

    python examples/many_prompts.py

Writes prompts.jsonl and runs/questions. Run it again: nothing is traced twice.
"""

import json
from pathlib import Path

from circuit_tracer.demo import MODEL, TRANSCODER, load_labels, world
from circuit_tracer.many import read_rows
from circuit_tracer.many.aggregate import aggregate
from circuit_tracer.many.runs.run import run

asked = [one for one in world.two_hops() if one.entity in ("Texas", "Ohio", "France", "Spain")]
lines = [{"prompt": one.prompt, "label": one.relation, "answer": one.answer} for one in asked]
Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

rows = read_rows("prompts.jsonl")
part = run(rows[:20], "runs/questions", {"opening": {"transcoders": TRANSCODER, "model": MODEL}})
whole = run(rows, "runs/questions")  # twenty are there; the model and the settings are the run's own
print(f"{len(part.ids)} of {len(rows)} rows, then {len(whole.ids)}")

right = [each["top_token"] == row.extra["answer"] for row, each in zip(whole.rows, whole.table, strict=True)]
print(f"answered right: {sum(right)} of {len(right)}")
worst = max(each["residual"] for each in whole.table)
print(f"the worst row of any graph misses its sum by {worst:.0e} of it")

found = aggregate(whole, names=load_labels())
features = found.features
often = sorted(range(len(features["item"])), key=lambda row: -features["frequency"][row])[:3]
for row in often:
    print(f"{features['frequency'][row]:.0%} of the graphs keep {features['item'][row]}, {features['name'][row]}")
