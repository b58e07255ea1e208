"""What a feature writes to the stream, by place: heads' outputs through their projection, others through a norm's gain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuit_tracer.features.logits import written_to_stream
from circuit_tracer.models.run import ModelRun, in_turn, read
from tests.support.autoencoders import autoencoded

IDS = torch.tensor([1, 17, 4, 33])


@pytest.mark.parametrize("place", ["attn.hook_z", "attn.hook_out", "hook_attn_out", "mlp.hook_out", "hook_mlp_out"])
def test_it_is_what_is_added_to_the_stream(place: str) -> None:
    model = autoencoded("llama", place)
    row, behind = model.transcoders[2].W_dec[4], "hook_mlp_out" if "mlp" in place else "hook_attn_out"  # type: ignore[index]

    def added(by: Tensor) -> Tensor:
        seen: dict[int, Tensor] = {}

        def change(layer: int, x_BPD: Tensor) -> Tensor | None:
            return x_BPD + by if layer == 2 else None

        def see(layer: int, x_BPD: Tensor) -> None:
            seen[layer] = x_BPD[0, -1]

        ModelRun(model.parts, {place: in_turn(change, see)} if place == behind else {place: change, behind: see})(IDS)
        return seen[2]

    written = written_to_stream(model.parts, model.transcoders, 2, torch.tensor([4]))[0]
    torch.testing.assert_close(written, added(row) - added(0 * row), rtol=1e-10, atol=1e-12)


def test_before_a_norm_it_is_the_gain() -> None:
    model = autoencoded("gemma2", "attn.hook_z")
    layer, row = model.parts.layers[2], model.transcoders[2].W_dec[4]  # type: ignore[index]
    assert layer.attention_post_norm is not None
    written = written_to_stream(model.parts, model.transcoders, 2, torch.tensor([4]))[0]
    out = read(model.parts, IDS, [("attn.hook_out", 2)])["attn.hook_out", 2][0, -1:]
    scale = layer.attention_post_norm.parameters.inverse_sigma(out)
    frozen = layer.attention_post_norm.parameters.freeze(scale)
    change = frozen.forward(out + layer.output_weight @ row) - frozen.forward(out)
    torch.testing.assert_close(written * scale, change[0], rtol=1e-10, atol=1e-12)
