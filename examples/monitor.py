"""A monitor: watch a stream of texts with a probe and a feature, at a rate of false alarms that you chose.

    python examples/monitor.py

The probe asks whether a place lies in a US state. At the end a feature watches what the model writes, and steers it.
"""

from circuit_tracer import ReplacementModel
from circuit_tracer.demo import MODEL, TRANSCODER, world
from circuit_tracer.interventions import Sampling, set_to, steer
from circuit_tracer.probes.calibration import calibrated
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.fit import fit
from circuit_tracer.probes.generation import GenerationWatch
from circuit_tracer.probes.monitor import Monitor, Watching, feature_watch

model = ReplacementModel.from_pretrained(MODEL, TRANSCODER)
entities = world.entities()
examples = [
    Example(f"{city} is in", label=one.kind == "state", group=one.name) for one in entities for city in one.cities[:3]
]
probe = fit(model, examples, layer=2, draws=10, name="state").probe

# harmless texts like those to come: the threshold is set so that one in a hundred of them is flagged
harmless = [f"{city} is in" for one in entities if one.kind == "country" for city in one.cities[3:]]
[(probe, rate)] = calibrated(Monitor(model, [probe]), harmless, rate=0.01)
print(f"threshold {probe.threshold:.2f}: {rate.rate:.1%} of such texts, {rate.low:.1%} to {rate.high:.1%}")

stream = ["Oakland is in", "Munich is in", "the opposite of big is", "Dallas is in"]
for verdict in Monitor(model, [probe, feature_watch("0/78>1")], Watching(ahead=1)).watch(stream):
    flags = [f"{flag.probe} at {flag.text!r}" for flag in verdict.flags]
    print(f"{verdict.id}: {', '.join(flags) or 'nothing'}")

# while the model writes: once it has named a place in California, make it answer about Texas
watch = GenerationWatch(model, [feature_watch("0/236>1")], steer_when=["feature 0/236"])
result = steer(model, "the capital of the state containing", set_to((1, 194), 20.0), Sampling(6), watcher=watch)
print(f"unsteered{result.unsteered.text}, steered{result.steered.text} from token {watch.since} on")
