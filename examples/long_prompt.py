"""A long prompt: plan what a trace takes, stop it, go on with it, and keep the edges that matter.

    python examples/long_prompt.py

Writes part.safetensors, what the interrupted trace had done.
"""

import warnings

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, TRANSCODER

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
prompt = " and ".join(f"the capital of the state containing {city} is" for city in ("Oakland", "Miami", "Dallas"))
whole = attribute(prompt, model, batch_size=64)
print(f"{whole.n_pos} tokens, {len(whole.selected_features)} features with a row of their own")
print(f"planned: {whole.provenance['memory_plan']}")


def impatient(stage: str, done: int, total: int) -> None:
    """Stands for Ctrl-C, or for a job that is out of time."""
    if stage == "features" and done >= total // 2:
        raise KeyboardInterrupt


with warnings.catch_warnings(record=True) as said:
    part = attribute(prompt, model, batch_size=64, progress=impatient)
print(said[-1].message)
part.save("part.safetensors")
again = attribute(prompt, model, batch_size=64, resume="part.safetensors")
print(f"the same to the bit: {bool((again.edges.weight == whole.edges.weight).all())}")

few = attribute(prompt, model, max_feature_nodes=200, keep_edge_mass=0.95)
print(f"200 features, 95 % of each row's mass: {len(few.edges):,} of {len(whole.edges):,} edges")
print(f"what was left out stays with its row: the sums hold to {few.residual:.0e}")
