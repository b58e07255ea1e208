"""The benchmark of long prompts runs to its end whatever one prompt does, and its record says what was not as it should be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables.results import long_prompts as table
from benchmarks.tracing import long_prompts


def traced(_: Any, __: Path, prompt: str, expanded: int) -> dict[str, Any]:
    """A prompt of 50 tokens takes too long, one of 100 does not end, one of 4,000 takes too much memory."""
    tokens = int(prompt.removeprefix("long-"))
    if tokens == 100:
        raise SystemExit(
            "python -m benchmarks.tracing.trace_once --model /somewhere\nended with status 1\nResourceError: no"
        )
    seconds = expanded * tokens * (2 + tokens / 2) / 1e5 * (1.5 if tokens == 50 else 1)
    bytes_held = 2e9 if tokens == 4000 else 1e9
    names = ("planned", "actual", "resident_peak")
    of_rows = {"active": 10 * tokens, "expanded": expanded, "tokens": tokens, "tflop": 1.0, "seconds": seconds}
    return of_rows | dict.fromkeys(names, bytes_held) | {"stages": {"rows": seconds}, "parts": {"attention": seconds}}


def test_a_prompt_that_fails_ends_no_other_and_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    words = [
        "--model",
        str(tmp_path),
        "--transcoders",
        "clt",
        "--per-layer",
        "plt",
        "--memory",
        "1.5GB",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["long_prompts", *words, "--results", str(tmp_path / "found.json")])
    monkeypatch.setattr(long_prompts, "traced", traced)
    monkeypatch.setattr(long_prompts, "matrix_product_rate", lambda: 1e11)
    with pytest.raises(SystemExit) as ended:
        long_prompts.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [line["tokens"] for line in found["growth"]] == [25, 50, 250, 500, 1000]
    assert [line["tokens"] for kind in ("longest", "per_layer") for line in found[kind]] == [4000, 1000]
    of_50, of_100, of_4000 = found["failed"]
    assert of_50.startswith("50 tokens")
    assert of_100 == "long-100 (growth) did not end: ResourceError: no"
    assert of_4000 == "4000 tokens: 2.00 GB of 1.5GB"
    assert str(ended.value).splitlines() == found["failed"]
    assert any(of_4000 in line for line in table(found))
