"""Jacobian products are the true MLP's derivative, norms included; directions are reproducible."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from circuit_tracer.errors import UnsupportedModelError
from circuit_tracer.models.model_pass import ModelPass, Points
from circuit_tracer.models.run import fast_attention
from circuit_tracer.models.sites import INPUT_HOOKS, OUTPUT_HOOKS
from circuit_tracer.training.data import jacobian
from circuit_tracer.training.data.jacobian import MLPDerivative, between
from tests.support import data_cases
from tests.support.tiny import ARCHITECTURES

IDS = torch.tensor([[1, 17, 5, 17, 40, 8, 22], [1, 9, 9, 2, 30, 31, 46]])
HOOKS = [(input_hook, output_hook) for input_hook in INPUT_HOOKS for output_hook in OUTPUT_HOOKS]


@pytest.mark.few
@pytest.mark.parametrize(("name", "hooks"), list(product(ARCHITECTURES, HOOKS)), ids=str)
def test_the_function_between_the_points_is_the_models(name: str, hooks: tuple[str, str]) -> None:
    parts = data_cases.parts(name)
    if hooks[0] == "ln2.hook_normalized" and parts.layers[0].mlp_norm is None:
        pytest.skip("no norm before the MLP")
    with fast_attention(parts):
        x, y = ModelPass(parts, Points((0, 1, 2), *hooks), IDS.shape[1]).run(IDS)
    for layer in range(3):
        torch.testing.assert_close(between(parts.layers[layer], *hooks)(x[layer]), y[layer], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_products_are_finite_differences(name: str) -> None:
    hooks = (
        "mlp.hook_in",
        "mlp.hook_out",
    )  # without norms, which transformers computes in float32 even in float64 models
    parts = data_cases.parts(name, torch.float64)
    x, v = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    function = between(parts.layers[1], *hooks)
    step = 1e-5
    expected = (function(x + step * v) - function(x - step * v)) / (2 * step)
    tolerance = 1e-7 if name != "gpt_oss" else 1e-2  # its router is in float32
    found = MLPDerivative(parts, Points((0, 1, 2), *hooks))(1, x, v)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.few
@pytest.mark.parametrize(("name", "hooks"), list(product(ARCHITECTURES, HOOKS)), ids=str)
def test_products_are_adjoint_to_gradients(name: str, hooks: tuple[str, str]) -> None:
    parts = data_cases.parts(name, torch.float64)
    if hooks[0] == "ln2.hook_normalized" and parts.layers[0].mlp_norm is None:
        pytest.skip("no norm before the MLP")
    x, v, u = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(between(parts.layers[1], *hooks)(x), x, u)
    found = MLPDerivative(parts, Points((0, 1, 2), *hooks))(1, x.detach(), v)
    torch.testing.assert_close((found * u).sum(1), (gradient * v).sum(1), rtol=1e-4, atol=1e-4)


def test_products_in_float32_are_those_in_float64() -> None:
    points = Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out")
    draw = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 6, 16, generator=draw)
    single = MLPDerivative(data_cases.parts("gemma3"), points)(2, x, v)
    double = MLPDerivative(data_cases.parts("gemma3", torch.float64), points)(2, x.double(), v.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_a_derivative_that_torch_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("Trying to use forward AD with an operator that does not support it")

    monkeypatch.setattr(jacobian.torch.func, "jvp", refuse)
    derivative = MLPDerivative(data_cases.parts(), Points((0,), "hook_resid_mid", "hook_mlp_out"))
    with pytest.raises(UnsupportedModelError, match=r"llama has no forward-mode derivative.*jacobian_weight to 0"):
        derivative(0, torch.ones(1, 16), torch.ones(1, 16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_carry_directions_and_their_products(tmp_path: Path, dtype: str) -> None:
    data_cases.write_jsonl(tmp_path / "data.jsonl", data_cases.texts(40))
    config = data_cases.config(tmp_path, sparsity__jacobian_weight=0.1, data__buffer_dtype=dtype)
    batches = list(data_cases.batches(data_cases.stream(config)))
    plain = list(data_cases.batches(data_cases.stream(data_cases.config(tmp_path, data__buffer_dtype=dtype))))
    for batch, without in zip(batches, plain, strict=True):
        assert batch.direction_BSD is not None
        assert batch.derivative_BSD is not None
        assert torch.equal(batch.x_BSD, without.x_BSD)
        assert without.direction_BSD is without.derivative_BSD is None
        derivative = MLPDerivative(data_cases.parts(), Points((0, 1, 2), "hook_resid_mid", "hook_mlp_out"))
        for layer in range(3):
            expected = derivative(layer, batch.x_BSD[:, layer], batch.direction_BSD[:, layer])
            tolerance = 1e-5 if dtype == "float32" else 0.2  # x itself is rounded on its way
            torch.testing.assert_close(batch.derivative_BSD[:, layer], expected, rtol=tolerance, atol=tolerance)
    x, direction = (
        torch.cat([getattr(batch, name) for batch in batches]).flatten(1) for name in ("x_BSD", "direction_BSD")
    )
    distance, partner = torch.cdist(x + direction, x).min(
        1
    )  # a row of the run, apart from those in the last, partial batch
    found = distance < 0.02 * x.norm(dim=1).mean()
    assert found.float().mean() > 0.9
    assert (partner != torch.arange(len(x)))[found].all()
    assert len(partner[found].unique()) > 0.9 * int(
        found.sum()
    )  # each is the partner of one; some rows are nearly equal
