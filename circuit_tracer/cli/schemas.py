"""Which lines each command prints with `--json`, and their JSON Schema. A command that prints others fails its tests."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from circuit_tracer.cli.answers import info, lines, many, probes, read, share, testing, trace, training
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.many.comparison.schema import Comparison

# By a command's words. A line is of one of the types; any command may end with `Failed`.
LINES: dict[str, tuple[type, ...]] = {
    "demo": (trace.DemoTold,),
    "demo train": (trace.Metrics,),
    "demo features": (lines.Written,),
    "attribute": (trace.Traced,),
    "plan": (trace.Planned,),
    "prune": (trace.Pruned,),
    "run": (many.RunState,),
    "aggregate": (many.Aggregated,),
    "compare": (Comparison,),
    "fingerprints": (many.FingerprintTable, many.Predicted),
    "report": (many.Reported,),
    "info": (
        info.GraphFacts,
        info.ViewerFacts,
        info.ModelFacts,
        info.TranscoderFacts,
        info.AutoencoderFacts,
        info.NeuronFacts,
        info.RunFacts,
        info.HubFacts,
    ),
    "view": (lines.Written,),
    "serve": (read.Serving,),
    "start-server": (read.Serving,),
    "features build": (lines.Written,),
    "features label": (read.Labelled,),
    "features fetch-labels": (read.Labelled,),
    "features export": (read.Exported,),
    "explain": (read.Explained,),
    "story": (read.Told,),
    "heads": (read.HeadScores,),
    "probe fit": (probes.ProbeMade,),
    "probe score": (probes.TextScore, probes.ProbeReport),
    "probe explain": (probes.ProbeExplained,),
    "group": (read.Grouped,),
    "monitor watch": (probes.Verdict, probes.Unread, probes.Watched),
    "monitor calibrate": (probes.Calibrated,),
    "intervene": (testing.Intervened,),
    "steer": (testing.SteeredText,),
    "patch": (testing.Patched,),
    "validate": (ValidationReport,),
    "train": (training.Trained, training.TrainingPlan, training.RatesFound, training.TrainingSettings),
    "evaluate": (training.Evaluated,),
    "convert": (lines.Written,),
    "push": (share.Pushed,),
    "upload": (share.Uploaded,),
}
WITHOUT = {"mcp": "its standard output carries the protocol, whose messages are JSON already"}


class _Printed(GenerateJsonSchema):
    """As `options.dump` prints: a number that is not finite is null; and nothing stands there that the type does not name."""

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": ["number", "null"]}

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().dataclass_schema(schema)}

    def model_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": False, **super().model_schema(schema)}


@cache
def schema(command: str) -> dict[str, Any]:
    """The JSON Schema of a command's lines, such as "attribute" or "probe fit"."""
    kinds: tuple[Any, ...] = (*LINES[command], lines.Failed)
    return TypeAdapter(reduce(or_, kinds)).json_schema(schema_generator=_Printed, mode="serialization")


@cache
def schema_of_all() -> dict[str, Any]:
    """One JSON Schema of every line there is, with all types by name in ``$defs``."""
    kinds: tuple[Any, ...] = (*(kind for each in LINES.values() for kind in each), lines.Failed)
    return TypeAdapter(reduce(or_, kinds)).json_schema(schema_generator=_Printed, mode="serialization")
