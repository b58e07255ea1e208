"""How well the transcoders rebuild the model on a prompt is measured, and said loudly where they do not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuit_tracer import Graph, ReplacementModel, attribute
from circuit_tracer.attribution.normalised_error import FEW, nmse_of
from circuit_tracer.cli.summary import as_text
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
from circuit_tracer.graph.balance import Reconstruction, ReconstructionWarning
from circuit_tracer.graph.summary import summarise
from circuit_tracer.transcoders import load_transcoder_from_hub
from tests.support.tiny import tiny_model

IDS = torch.tensor([1, 17, 4, 33, 17, 9])


def residual_autoencoder(folder: Path) -> Any:
    """What a residual stream's autoencoder does, in files of Gemma Scope 1: it gives back its large input."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    encoder = torch.cat([directions, -directions])  # (F, D)
    folder.mkdir()
    for layer in range(3):
        np.savez(
            folder / f"layer_{layer}.npz", W_enc=encoder.T.numpy(), W_dec=encoder.numpy() * 10, b_enc=np.zeros(32),
            b_dec=np.zeros(16), threshold=np.full(32, 1e-3),
        )  # fmt: skip
    with pytest.warns(UserWarning, match="autoencoders"):
        return load_transcoder_from_hub(folder)[0]


def test_an_autoencoder_taken_for_a_transcoder_is_said_loudly(tmp_path: Path) -> None:
    model = ReplacementModel.from_model(
        tiny_model("llama", torch.float32), residual_autoencoder(tmp_path / "set"), None, "llama"
    )
    with pytest.warns(
        ReconstructionWarning, match=r"NMSE is above 1 in layers 0 \(.*\), 1 .*, 2 .* of 3.*autoencoder"
    ) as seen:
        graph = attribute(IDS, model, max_feature_nodes=5)
    assert len(seen) == 1
    text = str(seen[0].message)
    read = Graph.load(graph.save(tmp_path / "graph.safetensors"))
    assert read.provenance["warnings"] == [text]
    assert f"warning    {text}" in as_text(summarise(read))
    assert text in graph.to_json("slug", tmp_path).read_text()


@pytest.mark.parametrize(
    "prompt", [PROMPT, "the", "the capital", "Dallas Dallas Dallas Dallas", "Monday Monday Monday"]
)
def test_a_good_dictionary_raises_no_alarm(prompt: str, demo: ReplacementModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = attribute(prompt, demo, max_feature_nodes=4)
    assert graph.provenance["warnings"] == []
    assert graph.reconstruction is not None
    assert graph.reconstruction.nmse.max() < 1


@pytest.fixture(scope="module")
def demo() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu")


def test_nmse_of_known_reconstructions() -> None:
    y = torch.tensor([[3.0, 1.0], [1.0, -1.0], [3.0, -1.0], [1.0, 1.0]])
    assert nmse_of(y, torch.zeros_like(y)) == 0
    assert nmse_of(y, y - y.mean(0)) == pytest.approx(1)  # the mean
    assert nmse_of(y, y) == pytest.approx(24 / 8)  # nothing, which is worse
    for few in range(1, FEW):
        assert nmse_of(y[:few], y[:few]) == pytest.approx(1)  # nothing: the mean of so few fits too well
    alike = torch.full((5, 2), 2.0)
    assert nmse_of(alike, alike * 0.05) == pytest.approx(0.01)
    silent = torch.zeros(5, 2)
    assert nmse_of(silent, silent) == 0
    assert nmse_of(silent, alike) > 1e6
    assert torch.isfinite(nmse_of(silent, alike))


def test_the_warning_names_layers_and_is_none_where_nothing_was_measured() -> None:
    def warning(*nmse: float) -> str | None:
        return Reconstruction(torch.tensor(nmse), torch.zeros(len(nmse))).warning

    assert warning(0.2, 1.0, float("nan")) is None
    assert "in layer 1 (3.25) of 3" in str(warning(0.1, 3.25, 1.0))
    assert "7 (9) and 4 more of 12" in str(warning(*[9.0] * 12))
