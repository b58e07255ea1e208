"""Exported dictionaries load in circuit-tracer 0.5.0 and compute there what they compute here.

Its answers on stored dictionaries are recorded (`record_export_peer.py`). With the environment variable CIRCUIT_TRACER_PEER, an
interpreter that has circuit-tracer 0.5.0 (benchmarks/peer/setup_peer.sh makes one), it is asked again about fresh, larger ones.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from circuit_tracer.files.checksums import CHECKSUMS, FILE_NAME, HEADER_DIGEST
from tests.support.export_peer_cases import DICTIONARIES, FOLDER, INPUTS, OUTPUTS, REFUSALS, REFUSED, outcomes, refusals
from tests.training.record_export_peer import inputs

SCRIPT = Path(__file__).with_name("record_export_peer.py")
# float32 on both sides, in other orders of addition
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def agree(folder: Path) -> dict[str, float]:
    """Assert that this package and circuit-tracer's answers in `folder` agree; the largest difference by name."""
    recorded = load_file(folder / OUTPUTS)
    found = outcomes(folder, load_file(folder / INPUTS)["x_LPD"])
    assert found.keys() == recorded.keys()
    worst = {}
    for name, expected in recorded.items():
        torch.testing.assert_close(found[name], expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
        worst[name] = float((found[name] - expected).abs().max() / expected.abs().max())
        if name.endswith("activations"):
            assert torch.equal(found[name] > 0, expected > 0)
            assert all(int((layer > 0).sum()) > 0 for layer in expected)
    return worst


def test_circuit_tracer_computed_the_same() -> None:
    agree(FOLDER)


def test_circuit_tracer_refuses_what_it_would_take_for_relu() -> None:
    """Cross-layer TopK, which loads here."""
    said = json.loads((FOLDER / REFUSALS).read_text())
    assert said == dict.fromkeys(REFUSED, "Unknown model kind: topk_cross_layer_transcoder")
    assert refusals(FOLDER) == {}


@pytest.mark.few
@pytest.mark.parametrize("name", [*DICTIONARIES, *REFUSED])
def test_stored_dictionaries_are_what_is_exported_today(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same files, tensors and shapes: what circuit-tracer read then, it reads now."""
    monkeypatch.setattr("tests.training.record_export_peer.DICTIONARIES", [name])
    monkeypatch.setattr("tests.training.record_export_peer.REFUSED", [])
    inputs(tmp_path)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
        path.name for path in (FOLDER / name).iterdir()
    )
    assert without_digest(tmp_path / name) == without_digest(FOLDER / name)
    for path in sorted((FOLDER / name).glob("*.safetensors")):
        stored, fresh = load_file(path), load_file(tmp_path / name / path.name)
        assert {key: (t.shape, t.dtype) for key, t in stored.items()} == {
            key: (t.shape, t.dtype) for key, t in fresh.items()
        }
        with safe_open(path, "pt") as one, safe_open(tmp_path / name / path.name, "pt") as other:
            ours = {CHECKSUMS, HEADER_DIGEST, FILE_NAME}  # of the numbers, and nothing to circuit-tracer
            notes, fresh_notes = (
                {key: text for key, text in file.metadata().items() if key not in ours} for file in (one, other)
            )
            assert notes == fresh_notes


def without_digest(folder: Path) -> list[str]:
    lines = (folder / "config.yaml").read_text().splitlines()
    return [line for line in lines if not line.startswith("digest: ")]


@pytest.mark.skipif("CIRCUIT_TRACER_PEER" not in os.environ, reason="CIRCUIT_TRACER_PEER names no interpreter")
def test_circuit_tracer_computes_the_same_now(tmp_path: Path) -> None:
    inputs(tmp_path, features=512, width=64, batch=128)
    peer = os.environ["CIRCUIT_TRACER_PEER"]
    # from a folder, and with a path, without a circuit_tracer of its own
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = subprocess.run(
        [peer, str(SCRIPT), "outputs", str(tmp_path)],
        cwd=tmp_path,
        env=own,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert asked.returncode == 0, asked.stderr
    assert json.loads((tmp_path / REFUSALS).read_text()).keys() == set(REFUSED)
    for name, difference in agree(tmp_path).items():
        print(f"{name}: {difference:.1e} of the largest value")
