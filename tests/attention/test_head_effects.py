"""What a head writes (OV copying) and what the loss is without it, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer.attention import RandomTokens, ablate_heads, diagnose_heads
from circuit_tracer.attention.ov_copying import ov_copying
from circuit_tracer.errors import InputError
from circuit_tracer.models.parts import ModelParts, bind
from tests.support.induction import INDUCTION, PREVIOUS_TOKEN, VOCABULARY, induction_model
from tests.support.tiny import tiny_model

DRAWN = RandomTokens(10, 3)


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "gpt2", "gpt_neox", "cohere", "nemotron", "granite"])
def test_ov_copying_is_that_of_the_whole_circuit(name: str) -> None:
    """All eigenvalues of the V x V matrix, with every norm a matrix."""
    parts = bind(tiny_model(name), name)
    centre = torch.eye(16, dtype=torch.float64) - 1 / 16

    def matrix(norm: Any) -> Tensor:
        if norm is None:
            return torch.eye(16, dtype=torch.float64)
        gain = torch.diag(norm.parameters.gain)
        return gain @ centre if norm.parameters.centred else gain

    read = parts.model.get_input_embeddings().weight  # (V, D)
    write = parts.unembed.weight - parts.unembed.weight.mean(0)
    found = ov_copying(parts)
    d_head, group = parts.config.d_head, parts.config.n_heads // parts.config.n_key_value_heads
    for layer, one in enumerate(parts.layers):
        for head in range(parts.config.n_heads):
            value = one.value_weight[head // group * d_head :][:d_head]
            output = one.output_weight[:, head * d_head :][:, :d_head]
            made = matrix(one.attention_post_norm) @ output @ value @ matrix(one.attention_norm)
            values = torch.linalg.eigvals(write @ matrix(parts.final_norm) @ made @ read.T)
            expected = values.real.sum() / values.abs().sum()
            assert float(found[layer, head]) == pytest.approx(float(expected), abs=1e-6)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def losses_by_hand(parts: ModelParts, heads: list[tuple[int, int]], how: str) -> tuple[float, float]:
    """Losses on the first and the second copy, with hooks of torch and the model's own logits."""
    model, d_head = parts.model, parts.config.d_head
    ids = DRAWN.draw(parts, None).ids_NT
    means, hooks = {}, []
    for layer, one in enumerate(parts.layers):
        hooks.append(
            one.output.register_forward_pre_hook(
                lambda _, args, layer=layer: means.__setitem__(layer, args[0].mean((0, 1)))
            )
        )
    model(ids)
    for hook in hooks:
        hook.remove()

    def edit(layer: int, z: Tensor) -> Tensor:
        z = z.clone()
        for at, head in heads:
            if at == layer:
                columns = slice(head * d_head, (head + 1) * d_head)
                z[..., columns] = means[layer][columns] if how == "mean" else 0
        return z

    hooks = [
        one.output.register_forward_pre_hook(lambda _, args, layer=layer: (edit(layer, args[0]),))
        for layer, one in enumerate(parts.layers)
    ]
    logits = model(ids).logits
    for hook in hooks:
        hook.remove()
    log = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    block, length = 10, ids.shape[1]
    return tuple(float(-log[:, start : start + block - 1].mean()) for start in (length - 2 * block, length - block))  # type: ignore[return-value]


@pytest.mark.few
@pytest.mark.parametrize("how", ["zero", "mean"])
def test_losses_without_heads(model: Any, how: Any) -> None:
    parts = bind(model, "tiny")
    groups = [[(0, 1)], [(2, 3)], [(0, 0), (1, 2), (1, 3)], []]
    for batch_tokens in (1, 2048):
        found = ablate_heads(model, groups, random=DRAWN, how=how, batch_tokens=batch_tokens)
        assert (found.first, found.second) == pytest.approx(losses_by_hand(parts, [], how), rel=1e-5)
        expected = [losses_by_hand(parts, group, how) for group in groups]
        assert found.without.tolist() == pytest.approx([second for _, second in expected], rel=1e-5)
        assert found.first_without.tolist() == pytest.approx([first for first, _ in expected], rel=1e-5)
        assert float(found.first_change[-1]) == pytest.approx(0, abs=1e-12)
        assert float(found.change[-1]) == pytest.approx(0, abs=1e-12)


def test_the_column_is_the_change_of_single_heads(model: Any) -> None:
    heads = [(0, 2), (2, 0)]
    table = diagnose_heads(model, random=DRAWN, ablate=heads)
    found = ablate_heads(model, [[head] for head in heads], random=DRAWN)
    assert [float(table["ablation"][head]) for head in heads] == pytest.approx(found.change.tolist(), abs=1e-12)
    assert int(table["ablation"].isfinite().sum()) == 2
    assert (table.losses, table.ablated) == ({"first copy": found.first, "second copy": found.second}, "zero")


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_the_induction_model_needs_two_heads(how: Any) -> None:
    """Without either it knows nothing of the second copy; without any other nothing changes."""
    table = diagnose_heads(induction_model(), [0, 3, 4, 3, 4], random=RandomTokens(14, 3), ablate="all", how=how)
    blind = float(torch.tensor(float(VOCABULARY)).log())
    assert table.losses is not None
    assert table.losses["first copy"] == pytest.approx(blind, rel=1e-3)
    assert table.losses["second copy"] < 1e-4
    for head in table.order():
        change = float(table["ablation"][head])
        assert change > 0.9 * blind if head in (INDUCTION, PREVIOUS_TOKEN) else abs(change) < 1e-9, head


def test_groups_of_heads_that_do_not_exist() -> None:
    with pytest.raises(InputError, match=r"there is no head L3H0"):
        ablate_heads(tiny_model("llama"), [[(0, 0), (3, 0)]])
    with pytest.raises(InputError, match="expected a list"):
        ablate_heads(tiny_model("llama"), 5)  # type: ignore[arg-type]
    assert len(ablate_heads(tiny_model("llama"), [], random=DRAWN).without) == 0
