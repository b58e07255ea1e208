"""Which lines each command prints with `--json`, and their JSON Schema. A command that prints others fails its tests."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from circuit_tracer.cli import answers as a
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.many.comparison.schema import Comparison

# By a command's words. A line is of one of the types; any command may end with `Failed`.
LINES: dict[str, tuple[type, ...]] = {
    "demo": (a.DemoTold,),
    "demo train": (a.Metrics,),
    "demo features": (a.Written,),
    "attribute": (a.Traced,),
    "plan": (a.Planned,),
    "prune": (a.Pruned,),
    "run": (a.RunState,),
    "aggregate": (a.Aggregated,),
    "compare": (Comparison,),
    "fingerprints": (a.FingerprintTable, a.Predicted),
    "report": (a.Reported,),
    "info": (
        a.GraphFacts,
        a.ViewerFacts,
        a.ModelFacts,
        a.TranscoderFacts,
        a.AutoencoderFacts,
        a.NeuronFacts,
        a.RunFacts,
        a.HubFacts,
    ),
    "view": (a.Written,),
    "serve": (a.Serving,),
    "start-server": (a.Serving,),
    "features build": (a.Written,),
    "features label": (a.Labelled,),
    "features fetch-labels": (a.Labelled,),
    "features export": (a.Exported,),
    "explain": (a.Explained,),
    "story": (a.Told,),
    "heads": (a.HeadScores,),
    "probe fit": (a.ProbeMade,),
    "probe score": (a.TextScore, a.ProbeReport),
    "probe explain": (a.ProbeExplained,),
    "group": (a.Grouped,),
    "monitor watch": (a.Verdict, a.Unread, a.Watched),
    "monitor calibrate": (a.Calibrated,),
    "intervene": (a.Intervened,),
    "steer": (a.SteeredText,),
    "patch": (a.Patched,),
    "validate": (ValidationReport,),
    "train": (a.Trained, a.TrainingPlan, a.RatesFound, a.TrainingSettings),
    "evaluate": (a.Evaluated,),
    "convert": (a.Written,),
    "push": (a.Pushed,),
    "upload": (a.Uploaded,),
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
    kinds: tuple[Any, ...] = (*LINES[command], a.Failed)
    return TypeAdapter(reduce(or_, kinds)).json_schema(schema_generator=_Printed, mode="serialization")


@cache
def schema_of_all() -> dict[str, Any]:
    """One JSON Schema of every line there is, with all types by name in ``$defs``."""
    kinds: tuple[Any, ...] = (*(kind for lines in LINES.values() for kind in lines), a.Failed)
    return TypeAdapter(reduce(or_, kinds)).json_schema(schema_generator=_Printed, mode="serialization")
