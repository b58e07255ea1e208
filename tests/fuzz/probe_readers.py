"""Readers of probes, and of the examples that they learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.probes.examples import read_examples
from circuit_tracer.probes.probe import Probe
from tests.fuzz.reader import D, Reader, bare


def _write_examples(folder: Path) -> None:
    records = [
        {"text": "a b", "label": 1, "group": "x"},
        {"messages": [{"role": "user", "content": "q"}], "label": 0},
        {"text": "naïve", "spans": [[0, 2], {"start": 3, "end": 5}], "group": 7},
    ]
    (folder / "e.jsonl").write_text("\n".join(map(json.dumps, records)))


def _examples(folder: Path) -> Any:
    return [
        (each.text, each.messages, each.label, each.spans, each.group) for each in read_examples(folder / "e.jsonl")
    ]


def _write_probe(folder: Path) -> None:
    card = {"data": {"examples": 3}, "model": {"name": "m", "fingerprint": "0", "version": 1}}
    weight = torch.linspace(-1, 1, D + 2)
    Probe("p", "hook_resid_post", 1, weight, 0.5, 0.25, "max", ((0, 3), (1, 6)), card).save(folder / "p.safetensors")


def _probe(folder: Path) -> Any:
    return vars(Probe.load(folder / "p.safetensors"))


PROBE_READERS: tuple[Reader, ...] = (
    Reader("examples of a probe", _write_examples, _examples),
    bare(Reader("probe", _write_probe, _probe)),
)
