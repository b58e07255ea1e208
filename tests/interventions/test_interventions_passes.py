"""Passes with features set: activations, what is read, freezing, generation, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer import ReplacementModel
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.interventions import activations_of
from circuit_tracer.transcoders.base import Transcoders
from tests.support.left_behind import left_behind
from tests.support.tiny import ARCHITECTURES, tiny_model, tiny_transcoder

IDS = torch.tensor([1, 17, 4, 33, 17, 9])


class Letters:
    """The least a tokenizer must do to generate."""

    bos_token_id, pad_token_id, eos_token_id, all_special_ids = 1, 0, 2, [0, 1, 2]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in self.all_special_ids))


def replacement(architecture: str = "llama", dtype: torch.dtype = torch.float64, **transcoder: Any) -> ReplacementModel:
    return ReplacementModel.from_model(
        tiny_model(architecture, dtype), tiny_transcoder(dtype=dtype, **transcoder), Letters(), architecture
    )


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_clean_pass_is_the_models_own(architecture: str) -> None:
    model = replacement(architecture, torch.float32)
    logits, activations = model.get_activations(IDS)
    expected = model.hf_model(input_ids=IDS[None]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert activations.shape == (3, 6, 20)
    assert not activations[:, 0].any()
    assert activations[:, 1:].any()


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_sparse_activations_equal_dense_ones(kind: str, activation: str) -> None:
    model = replacement(kind=kind, activation=activation)
    for apply in (True, False):
        _, dense = model.get_activations(IDS, apply_activation_function=apply)
        _, sparse = model.get_activations(IDS, sparse=True, apply_activation_function=apply)
        assert sparse.is_sparse
        torch.testing.assert_close(sparse.to_dense(), dense)


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
def test_chosen_activations_equal_those_of_the_whole_layer(activation: str) -> None:
    transcoder = tiny_transcoder(activation=activation)
    x = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position, index = (axis.flatten() for axis in torch.meshgrid(torch.arange(6), torch.arange(20), indexing="ij"))
    for layer in range(3):
        found = activations_of(transcoder, layer, x, position, index)
        torch.testing.assert_close(found, transcoder.encode_layer(x, layer)[position, index])


def test_setting_features_to_what_they_are_changes_nothing(model: ReplacementModel) -> None:
    logits, activations = model.get_activations(IDS)
    same = [(layer, p, f, activations[layer, p, f]) for layer, p, f in [(0, 2, 3), (1, 4, 7), (2, 5, 0)]]
    for options in ({}, {"constrained_layers": range(3)}, {"freeze_attention": False}):
        found, again = model.feature_intervention(IDS, same, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found, logits)
        torch.testing.assert_close(again, activations)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_neox", "gpt_oss"])
def test_an_iterative_intervention_is_what_a_plain_hook_does(architecture: str) -> None:
    model = replacement(architecture, kind="plt", output_hook="mlp.hook_out")
    _, activations = model.get_activations(IDS)
    found, _ = model.feature_intervention(IDS, [(1, 3, 5, 4.0)], freeze_attention=False, return_activations=False)
    rows = model.transcoders.decoder_rows(1, torch.tensor([5]), 1)

    def add(module: Any, args: Any, output: Any) -> Any:
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed.view(6, -1)[3] += (4.0 - activations[1, 3, 5]) * rows[0]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.parts.layers[1].mlp.register_forward_hook(add)
    expected = model.hf_model(input_ids=IDS[None]).logits
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # transformers' norms are in float32


def test_only_the_encoder_rows_of_set_features_are_read(
    model: ReplacementModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("encoded a whole layer")

    monkeypatch.setattr(Transcoders, "encode_layer", refuse)
    monkeypatch.setattr(Transcoders, "encode_positions", refuse)
    for options in ({}, {"constrained_layers": range(3)}):
        _, activations = model.feature_intervention(
            IDS, [(0, slice(1, None), 5, 4.0)], return_activations=False, **options
        )
        assert activations is None


def test_forms_of_the_same_intervention(model: ReplacementModel) -> None:
    expected, _ = model.feature_intervention(IDS, [(1, 5, 3, 2.0)])
    one = torch.tensor
    for place in [
        (1, -1, 3, 2),
        (one(1), one(5), one(3), one(2.0)),
        (1, slice(5, None), 3, 2.0),
        (1, one([5]), 3, one([2.0])),
    ]:
        found, _ = model.feature_intervention(IDS, [(1, 5, 3, -7.0), place])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
def test_an_empty_slice_sets_nothing(activation: str) -> None:
    model = replacement(activation=activation)
    expected, _ = model.get_activations(IDS)
    found, _ = model.feature_intervention(IDS, [(0, slice(3, 3), 5, 4.0)])
    torch.testing.assert_close(found, expected)


def test_held_layers_keep_their_outputs() -> None:
    model = replacement("gemma3", kind="plt", output_hook="hook_mlp_out")
    seen: dict[str, torch.Tensor] = {}
    _, freeze = model.setup_intervention_with_freeze(IDS, constrained_layers=[1])
    for name, embedding in (("clean", IDS), ("other", torch.tensor([1, 5, 6, 7, 8, 9]))):
        with freeze.applied():
            norm = model.parts.layers[1].mlp_post_norm
            assert norm is not None
            keep = norm.module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
            model.hf_model(input_ids=embedding[None])
            keep.remove()
    torch.testing.assert_close(seen["other"], seen["clean"])
    torch.testing.assert_close(seen["clean"][0], freeze.network.transcoder_output(1))


def test_hooks_are_gone_afterwards(model: ReplacementModel) -> None:
    before = model.hf_model(input_ids=IDS[None]).logits
    model.feature_intervention(IDS, [(0, 1, 2, 9.0)])
    with pytest.raises(InputError):
        model.feature_intervention(IDS, [(0, 1, 200, 9.0)])
    assert torch.equal(model.hf_model(input_ids=IDS[None]).logits, before)
    assert not left_behind(model.hf_model)


def test_zero_softcap() -> None:
    model = replacement("gemma2")
    capped, _ = model.get_activations(IDS)
    with model.zero_softcap():
        free, _ = model.get_activations(IDS)
        assert model.hf_model.config.final_logit_softcapping is None
    cap = model.hf_model.config.final_logit_softcapping
    torch.testing.assert_close(capped, torch.tanh(free / cap) * cap)
    again, _ = model.get_activations(IDS)
    assert torch.equal(again, capped)


def test_bfloat16_models_answer_in_float32() -> None:
    model = replacement("gpt_oss", torch.bfloat16)
    logits, activations = model.feature_intervention(IDS, [(0, 2, 3, 2.0)], constrained_layers=range(3))
    assert logits.dtype == torch.float32
    assert activations is not None
    assert torch.isfinite(logits).all()


# ---- generation

OPEN = [(0, slice(2, None), 6, 3.0), (1, slice(4, None), 2, 1.0), (1, 3, 4, 2.0)]


@pytest.mark.few
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_repeated_intervention(architecture: str) -> None:
    model = replacement(architecture)
    text, logits, activations = model.feature_intervention_generate(
        IDS, OPEN, freeze_attention=False, max_new_tokens=4, do_sample=False, stop_at_eos=False
    )
    ids = IDS
    for step in range(4):
        expected, expected_activations = model.feature_intervention(ids, OPEN, freeze_attention=False)
        torch.testing.assert_close(logits[step], expected[0, -1], rtol=1e-6, atol=1e-6)
        assert activations is not None
        torch.testing.assert_close(activations[:, : len(ids)], expected_activations, rtol=1e-6, atol=1e-6)
        ids = torch.cat([ids, logits[step].argmax()[None]])
    assert activations is not None
    assert activations.shape == (3, 9, 20)
    assert text == model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def test_the_first_generated_token_is_that_of_the_intervention(model: ReplacementModel) -> None:
    expected, _ = model.feature_intervention(IDS, OPEN, constrained_layers=range(3))
    _, logits, activations = model.feature_intervention_generate(
        IDS, OPEN, constrained_layers=range(3), return_activations=False, do_sample=False
    )
    torch.testing.assert_close(logits[0], expected[0, -1])
    assert activations is None


def test_sparse_activations_of_a_generation(model: ReplacementModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False}
    _, _, dense = model.feature_intervention_generate(IDS, OPEN, **options)
    _, _, sparse = model.feature_intervention_generate(IDS, OPEN, sparse=True, **options)
    assert dense is not None
    assert sparse is not None
    torch.testing.assert_close(sparse.to_dense(), dense)


def test_generation_stops_at_the_end_token(model: ReplacementModel) -> None:
    _, logits, _ = model.feature_intervention_generate(IDS, [], max_new_tokens=5, do_sample=False, stop_at_eos=False)
    second = int(logits[1].argmax())
    for end in (second, [second], [46, second], torch.tensor([second]), torch.tensor(second)):
        _, stopped, _ = model.feature_intervention_generate(
            IDS, [], max_new_tokens=5, do_sample=False, eos_token_id=end
        )
        assert len(stopped) == 1 + (int(logits[0].argmax()) != second)


def test_transformer_lens_arguments_that_have_no_effect(model: ReplacementModel) -> None:
    def text(**options: Any) -> str:
        return model.feature_intervention_generate(IDS, OPEN, do_sample=False, stop_at_eos=False, **options)[0]

    for options in ({"prepend_bos": False}, {"prepend_bos": True}, {"padding_side": "left"}, {"return_type": "str"}):
        assert text(**options) == text()


def test_sampling(model: ReplacementModel) -> None:
    def sampled(seed: int, **options: Any) -> str:
        torch.manual_seed(seed)
        return model.feature_intervention_generate(IDS, OPEN, stop_at_eos=False, verbose=False, **options)[0]

    greedy = sampled(0, do_sample=False)
    assert sampled(3) == sampled(3)
    assert len({sampled(seed, temperature=10.0, max_new_tokens=6) for seed in range(4)}) > 1
    assert sampled(1, top_k=1) == sampled(2, top_p=1e-6) == sampled(4, temperature=1e-6) == greedy
    assert len(greedy.split()) >= 10


def test_a_repeated_token_pays_the_frequency_penalty(model: ReplacementModel) -> None:
    torch.manual_seed(0)
    text, _, _ = model.feature_intervention_generate(
        IDS, [], max_new_tokens=20, freq_penalty=1e4, temperature=0.1, stop_at_eos=False
    )
    new = text.split()[5:]
    assert len(set(new)) == len(new)


BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "no layer": ([(3, 1, 2, 1.0)], {}, "layers 0 to 2"),
    "no position": ([(0, 6, 2, 1.0)], {}, "position 6"),
    "no feature": ([(0, 1, 20, 1.0)], {}, "feature 20"),
    "negative feature": ([(0, 1, -1, 1.0)], {}, "feature -1"),
    "not finite": ([(0, 1, 2, float("nan"))], {}, "finite"),
    "three fields": ([(0, 1, 2)], {}, "(layer, position, feature, value)"),
    "mask for position": ([(0, torch.ones(6, dtype=torch.bool), 2, 1.0)], {}, "integer"),
    "shapes that do not fit": ([(0, torch.tensor([1, 2]), torch.tensor([1, 2, 3]), 1.0)], {}, "fit together"),
    "too many values": ([(0, 1, 2, torch.tensor([1.0, 2.0]))], {}, "fit together"),
    "no such constrained layer": ([(0, 1, 2, 1.0)], {"constrained_layers": range(2, 5)}, "2 to 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_interventions_say_what_is_wrong(model: ReplacementModel, case: str) -> None:
    interventions, options, expected = BAD[case]
    with pytest.raises(CircuitTracerError) as error:
        model.feature_intervention(IDS, interventions, **options)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"use_past_kv_cache": False}, "cache"),
        ({"temperature": -1.0}, "temperature"),
        ({"beams": 3}, "known are"),
        ({"return_type": "lines"}, "return_type is 'lines'"),
        ({"max_new_tokens": 100}, "context of 64"),
    ],
)
def test_bad_generation_options(model: ReplacementModel, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        model.feature_intervention_generate(IDS, OPEN, **options)


def test_generation_needs_a_tokenizer() -> None:
    model = ReplacementModel.from_model(tiny_model("llama"), tiny_transcoder(), None, "llama")
    with pytest.raises(InputError, match="tokenizer"):
        model.feature_intervention_generate(IDS, OPEN)
