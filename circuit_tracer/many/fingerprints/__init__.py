"""Fingerprints: a graph as a documented vector, and what can be predicted from it, beside the baselines.

evidence = gather(((row.id, graph) for row, graph in run.graphs()), model)
print("\\n".join(predict(evidence, run.values("wrong"), run.values("topic")).lines()))
"""

from __future__ import annotations

from circuit_tracer.many.fingerprints.evidence import Evidence, gather
from circuit_tracer.many.fingerprints.matrix import Matrix, matrix
from circuit_tracer.many.fingerprints.names import NAMES, names
from circuit_tracer.many.fingerprints.of_run import FOLDER, evidence_of, matrix_of, write_fingerprints, write_prediction
from circuit_tracer.many.fingerprints.predict import Prediction, Score, predict, split
from circuit_tracer.many.fingerprints.vector import fingerprint

__all__ = [
    "FOLDER",
    "NAMES",
    "Evidence",
    "Matrix",
    "Prediction",
    "Score",
    "evidence_of",
    "fingerprint",
    "gather",
    "matrix",
    "matrix_of",
    "names",
    "predict",
    "split",
    "write_fingerprints",
    "write_prediction",
]
