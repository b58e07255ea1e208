"""What `circuit-tracer demo` leaves behind where only the package and what it needs are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from circuit_tracer.demo.show import main


@pytest.mark.slow("the demo's story with its interventions: 5 s")
def test_without_matplotlib_there_is_all_but_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = main(tmp_path)
    assert {Path(name).name for name in shown.files} == {f"demo.{end}" for end in ("html", "md", "json", "safetensors")}
    assert all(Path(name).is_file() for name in shown.files)
    assert capsys.readouterr().out.endswith("needs matplotlib: pip install 'circuit-tracing[plot]'\n")
