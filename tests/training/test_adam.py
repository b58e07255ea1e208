"""Adam on blocks is torch's Adam; bfloat16 weights are rounded without bias, alike for every block and shard."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from circuit_tracer.training.config.schema import OptimizerSection
from circuit_tracer.training.step.adam import Adam
from circuit_tracer.training.step.dictionary import UNSET, Dictionary, row_norms

LAYERS, FEATURES, WIDTH = 3, 10, 7
SETTINGS = OptimizerSection(beta1=0.8, beta2=0.99, eps=1e-6)


def dictionary(dtype: torch.dtype, owned: slice | None = None) -> Dictionary:
    return Dictionary.initial(
        "skip", LAYERS, FEATURES, WIDTH, owned=owned, own={"log_threshold": UNSET}, dtype=dtype, seed=4
    )


def gradients(weights: dict[str, Tensor], step: int, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    wide = {name: torch.promote_types(tensor.dtype, torch.float32) for name, tensor in weights.items()}
    return {
        name: size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(wide[name])
        for name, tensor in sorted(weights.items())
    }


def rate(step: int) -> float:
    return 1e-2 / (1 + step)


def hand_over(adam: Adam, grads: dict[str, Tensor], block: int) -> None:
    """As a training step does: decoders in blocks of rows, all else at once."""
    for name, grad in grads.items():
        base, _, source = name.partition(".")
        if base == "W_dec":
            for start in range(0, len(grad), block):
                rows = slice(start, min(start + block, len(grad)))
                adam.decoder_gradient(int(source), rows, grad[rows])
        else:
            adam.gradient(name, grad)


def trained(model: Dictionary, block: int, steps: int = 50, size: float = 1.0) -> Adam:
    adam = Adam(model, SETTINGS, seed=9)
    whole = dictionary(model.W_enc[0].dtype).tensors()
    for step in range(steps):
        grads = gradients(whole, step, size)
        own = {name: grad[model.owned] if "." in name else grad for name, grad in grads.items()}
        adam.begin(step, rate(step))
        hand_over(adam, own, block)
    return adam


@pytest.mark.few
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("block", [1, 3, FEATURES], ids=lambda block: f"block{block}")
def test_fifty_steps_are_those_of_torch(dtype: torch.dtype, block: int) -> None:
    found = trained(dictionary(dtype), block)
    expected = dictionary(dtype).tensors()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in expected.items()}
    faster = [name.startswith("log_threshold") for name in parameters]  # three times as fast
    groups = [
        {"params": [each for each, fast in zip(parameters.values(), faster, strict=True) if fast == which]}
        for which in (False, True)
    ]
    optimizer = torch.optim.Adam(groups, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps)
    for step in range(50):
        for name, grad in gradients(expected, step).items():
            parameters[name].grad = grad
        for group, times in zip(optimizer.param_groups, (1, 3), strict=True):
            group["lr"] = times * rate(step)
        optimizer.step()
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    for name, parameter in parameters.items():
        torch.testing.assert_close(found.weights[name], parameter.detach(), rtol=tolerance, atol=tolerance)
        state = optimizer.state[parameter]
        torch.testing.assert_close(found.first[name], state["exp_avg"], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.second[name], state["exp_avg_sq"], rtol=tolerance, atol=tolerance)


each_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.float64], ids=["bfloat16", "float32", "float64"]
)


@each_dtype
def test_norms_follow_the_rows(dtype: torch.dtype) -> None:
    model = dictionary(dtype)
    before = [norms.clone() for norms in model.norms]
    trained(model, block=3, steps=2)
    for norms, decoder, old in zip(model.norms, model.W_dec, before, strict=True):
        assert torch.equal(norms, row_norms(decoder))
        assert not torch.equal(norms, old)


@each_dtype
def test_moments_are_float32_or_wider_by_default(dtype: torch.dtype) -> None:
    adam = trained(dictionary(dtype), block=3, steps=1)
    wide = torch.promote_types(dtype, torch.float32)
    assert {moment.dtype for moments in (adam.first, adam.second) for moment in moments.values()} == {wide}
    small = [weight.dtype for name, weight in adam.weights.items() if not name.startswith(("W_enc", "W_dec"))]
    assert set(small) == {wide}


@pytest.mark.few
@each_dtype
@pytest.mark.parametrize("parts", [2, 5], ids=lambda parts: f"{parts}shards")
def test_blocks_and_shards_give_the_same_weights(dtype: torch.dtype, parts: int) -> None:
    whole = trained(dictionary(dtype), block=FEATURES)
    size = FEATURES // parts
    shards = [trained(dictionary(dtype, slice(r * size, (r + 1) * size)), block=r + 1) for r in range(parts)]
    for name, weight in whole.weights.items():
        shared = "." not in name
        joined = shards[0].weights[name] if shared else torch.cat([shard.weights[name] for shard in shards])
        # the last bits may differ where a processor's vectors end
        tolerance = 16 * torch.finfo(weight.dtype).eps
        torch.testing.assert_close(joined, weight, rtol=tolerance, atol=tolerance)
        if weight.dtype is torch.bfloat16:  # rounded under other keys, half of them would differ
            assert (joined == weight).float().mean() > 0.95, name


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_narrow_moments_are_rounded_alike_in_blocks_and_shards(moments: str) -> None:
    settings = SETTINGS.model_copy(update={"moments": moments})

    def run(owned: slice, block: int) -> Adam:
        model = dictionary(torch.bfloat16, owned)
        adam, whole = Adam(model, settings, seed=9), dictionary(torch.bfloat16).tensors()
        for step in range(5):
            adam.begin(step, rate(step))
            grads = gradients(whole, step)
            hand_over(adam, {name: grad[owned] if "." in name else grad for name, grad in grads.items()}, block)
        return adam

    whole, halves = run(slice(0, FEATURES), FEATURES), [run(slice(0, 5), 2), run(slice(5, FEATURES), 3)]
    kept = {"bfloat16": torch.bfloat16, "int8": torch.uint8}[moments]
    for name, weight in whole.weights.items():
        assert whole.first[name].dtype is whole.second[name].dtype is (kept if name.startswith("W_") else torch.float32)
        if weight.dtype is torch.bfloat16:
            for part, found in whole.moments(name).items():
                joined = torch.cat([half.moments(name)[part] for half in halves])
                # under other random bits every second number would differ; a last bit may change a decision
                assert (joined == found).float().mean() > 0.95, f"{name}.{part}"


def test_rounding_repeats_under_its_seed_and_differs_under_another() -> None:
    first, second, other = dictionary(torch.bfloat16), dictionary(torch.bfloat16), dictionary(torch.bfloat16)
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        adam = Adam(model, SETTINGS, seed)
        adam.begin(0, 1e-4)
        hand_over(adam, gradients(model.tensors(), 0), 4)
    assert torch.equal(first.W_dec[0], second.W_dec[0])
    assert not torch.equal(first.W_dec[0], other.W_dec[0])


def test_updates_too_small_for_bfloat16_add_up() -> None:
    """A constant gradient moves every weight by the rate a step: 1/50 of bfloat16's spacing at 1, never seen if rounded."""
    n, steps = 4096, 200
    model = Dictionary.initial("sae", 1, n, 4, dtype=torch.bfloat16)
    model.W_enc[0].fill_(1.0)
    adam = Adam(model, SETTINGS, seed=0)
    for step in range(steps):
        adam.begin(step, 2**-7 / 50)
        adam.gradient("W_enc.0", torch.full((n, 4), -1.0))
    moved = model.W_enc[0].double() - 1
    expected = steps * 2**-7 / 50
    assert float(moved.mean()) == pytest.approx(expected, rel=0.02)
    assert float(moved.std()) < 2**-7 * math.sqrt(steps)
