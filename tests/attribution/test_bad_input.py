"""What cannot be traced is refused with an error that names the value, what was expected, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import CustomTarget, FeatureTarget, LogitDifference
from circuit_tracer.errors import CompatibilityError, InputError, NumericalError
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.tracing_cases import IDS, Case, build

VECTOR = torch.ones(16, dtype=torch.float64)
CASE = Case("llama")


class Words:
    """A tokenizer of 47 words: w0 ... w46; anything else is split at spaces and unknown."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = 1, 0, 2, 4
    unk_token, all_special_ids = "w4", (0, 1, 2, 4)

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        assert not add_special_tokens

        class Encoding:
            input_ids = [int(w[1:]) if w[:1] == "w" and w[1:].isdigit() else 4 for w in text.split()]  # noqa: RUF012

        return Encoding

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{i}" for i in ids)


def model_with(tokenizer: Any = None, transcoders: Any = None, dtype: torch.dtype = torch.float64) -> ReplacementModel:
    chosen = tiny_transcoder(dtype=dtype) if transcoders is None else transcoders
    return ReplacementModel.from_model(tiny_model("llama", dtype), chosen, tokenizer, "llama")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "max_n_logits above the vocabulary": ({"max_n_logits": 48}, "max_n_logits is 48.*between 1 and .*47"),
    "no logits": ({"max_n_logits": 0}, "max_n_logits is 0.*between 1"),
    "negative logits": ({"max_n_logits": -3}, "max_n_logits is -3"),
    "probability -0.1": ({"desired_logit_prob": -0.1}, r"desired_logit_prob is -0.1.*\[0, 1\]"),
    "probability above 1": ({"desired_logit_prob": 1.5}, "desired_logit_prob is 1.5"),
    "probability NaN": ({"desired_logit_prob": float("nan")}, "desired_logit_prob is nan"),
    "batch size 0": ({"batch_size": 0}, "batch_size 0.*at least 1"),
    "update interval 0": ({"update_interval": 0}, "update_interval 0.*at least 1"),
    "negative budget": ({"max_feature_nodes": -1}, "max_feature_nodes -1.*at least 0"),
    "unknown offload": ({"offload": "cloud"}, "offload is 'cloud'.*'cpu' or 'disk'"),
    "position beyond the prompt": ({"position": 6}, "position 6 .*positions 0 to 5"),
    "position before the prompt": ({"position": -7}, "position -7 .*positions 0 to 5"),
    "left-out position beyond": ({"zero_positions": [0, 6]}, r"\[0, 6\].*6 tokens"),
    "left-out position negative": ({"zero_positions": [-1]}, r"\[-1\].*6 tokens"),
    "everything left out": ({"zero_positions": range(6)}, "prompt has 6 token.*at least 7"),
}
TARGETS: dict[str, tuple[Any, str]] = {
    "none at all": ([], "attribution_targets is empty"),
    "id above the vocabulary": ([47], r"47 .*0\.\.46"),
    "negative id": ([-1], r"-1 .*0\.\.46"),
    "ids in a tensor": (torch.tensor([3, 99]), r"99 .*0\.\.46"),
    "text without tokenizer": (["Austin"], "no tokenizer.*'Austin'.*ids"),
    "a truth value": ([True], "True is not"),
    "a fraction": ([0.5], "0.5 is not understood"),
    "a pair": ([("x", 1.0)], "not understood.*CustomTarget"),
    "vector too short": ([CustomTarget("x", 1.0, VECTOR[:15])], r"'x'.*\(16,\).*\(15,\)"),
    "matrix": ([CustomTarget("x", 1.0, VECTOR[None])], r"'x'.*\(16,\).*\(1, 16\)"),
    "vector with NaN": ([CustomTarget("x", 1.0, VECTOR * float("nan"))], "'x'.*finite"),
    "vector of zeros": ([CustomTarget("x", 1.0, VECTOR * 0)], "'x'.*not zero"),
    "weight NaN": ([CustomTarget("x", float("nan"), VECTOR)], "weight is nan; expected a finite"),
    "weight infinite": ([LogitDifference(1, 2, float("inf"))], "weight is inf; expected a finite"),
    "difference with an unknown id": ([LogitDifference(1, 470)], r"470 .*0\.\.46"),
    "layer beyond the model": ([FeatureTarget(3, 1, 0)], "layer 3.*3 layers"),
    "feature beyond the dictionary": ([FeatureTarget(0, 1, 10)], "index 10.*10 features"),
    "negative feature": ([FeatureTarget(0, 1, -1)], "index -1"),
    "feature beyond the prompt": ([FeatureTarget(0, 6, 0)], "position 6 .*positions 0 to 5"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(IDS, build(CASE), **options)


@pytest.mark.parametrize(("targets", "message"), TARGETS.values(), ids=TARGETS)
def test_targets_that_do_not_exist(targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(IDS, build(CASE), attribution_targets=targets)


def test_a_difference_of_a_token_with_itself_is_refused() -> None:
    with pytest.raises(InputError, match=r"difference of token 5 with itself"):
        attribute(IDS, build(CASE), attribution_targets=[LogitDifference(5, 5)])


def test_one_token_prompt() -> None:
    with pytest.raises(InputError, match=r"prompt has 1 token.*at least 2.*position\(s\) \[0\]"):
        attribute(IDS[:1], build(CASE))


def test_one_token_prompt_can_be_traced_when_nothing_is_left_out() -> None:
    graph = attribute(IDS[:1], build(CASE), zero_positions=[])
    assert graph.residual is not None
    assert graph.residual <= 1e-10


def test_empty_prompt() -> None:
    with pytest.raises(InputError, match="prompt has 0 token"):
        attribute(IDS[:0], build(CASE))
    with pytest.raises(InputError, match="0 token"):
        attribute(IDS[:0], build(CASE), zero_positions=[])


def test_prompt_beyond_the_context_length() -> None:
    with pytest.raises(InputError, match=r"prompt has 65 tokens.*context length is 64"):
        attribute(torch.ones(65, dtype=torch.int64), build(CASE))


def test_ids_outside_the_vocabulary() -> None:
    with pytest.raises(InputError, match=r"span 3\.\.47.*0\.\.46"):
        attribute(torch.tensor([3, 47]), build(CASE))
    with pytest.raises(InputError, match=r"span -1\.\.3.*0\.\.46"):
        attribute(torch.tensor([3, -1]), build(CASE))


def test_two_prompts_at_once() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 6\).*one by one"):
        attribute(IDS.repeat(2, 1), build(CASE))


def test_text_without_tokenizer() -> None:
    with pytest.raises(InputError, match=r"no tokenizer.*ids"):
        attribute("the capital", build(CASE))


@pytest.mark.parametrize(
    ("text", "message"), [("austin", "'austin'.*not one known token"), ("w5 w6", "'w5 w6' is 2 tokens")]
)
def test_target_strings_that_are_not_one_known_token(text: str, message: str) -> None:
    model = model_with(Words())
    with pytest.raises(InputError, match=message):
        attribute("w7 w8 w9", model, attribution_targets=[text])
    with pytest.raises(InputError, match=message):
        attribute("w7 w8 w9", model, attribution_targets=[LogitDifference("w5", text)])


def test_target_strings_that_are_known() -> None:
    graph = attribute("w7 w8 w9", model_with(Words()), attribution_targets=["w5", LogitDifference("w5", "w6"), "w4"])
    assert [target.token_str for target in graph.logit_targets] == ["w5", "w5 - w6", "w4"]
    assert graph.input_tokens.tolist() == [1, 7, 8, 9]


def test_no_active_feature() -> None:
    transcoders = tiny_transcoder(n_features=4)
    transcoders.b_enc = torch.full((3, 4), -1e3, dtype=torch.float64)
    with pytest.raises(InputError, match="no transcoder feature is active on any of the 5 "):
        attribute(IDS, model_with(transcoders=transcoders))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "b_dec"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_transcoder_weights_that_are_not_finite(name: str, bad: float) -> None:
    transcoders = tiny_transcoder(n_features=4)
    weight = getattr(transcoders, name).detach().clone()
    weight.flatten()[0] = bad
    setattr(transcoders, name, weight)
    with pytest.raises(NumericalError, match=r"NaN|finite"):
        attribute(IDS, model_with(transcoders=transcoders))


def test_decoder_rows_that_are_not_finite() -> None:
    transcoders = tiny_transcoder(n_features=4)
    decoders = [decoder.detach().clone() for decoder in transcoders.W_dec]
    decoders[0][:, -1] = float("nan")
    transcoders.W_dec = decoders
    with pytest.raises(NumericalError, match=r"NaN|finite"):
        attribute(IDS, model_with(transcoders=transcoders))


def test_skip_weights_that_are_not_finite() -> None:
    transcoders = tiny_transcoder("plt", n_features=4, skip=True)
    transcoders[1].W_skip = torch.full((16, 16), float("nan"), dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"NaN|finite"):
        attribute(IDS, model_with(transcoders=transcoders))


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"d_model": 24}, "transcoder expects d_model 24, model llama has 16"),
    "too many layers": ({"n_layers": 4}, "transcoder has a layer 3, model llama has 3 layers"),
    "unknown input hook": ({"input_hook": "hook_resid_pre"}, "input hook 'hook_resid_pre' is unknown.*hook_resid_mid"),
    "unknown output hook": ({"output_hook": "hook_attn_out"}, "output hook 'hook_attn_out' is unknown.*hook_mlp_out"),
}


@pytest.mark.parametrize("kind", ["clt", "plt"])
@pytest.mark.parametrize(("change", "message"), MISMATCHES.values(), ids=MISMATCHES)
def test_transcoders_of_another_model_are_refused_before_any_work(
    kind: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompatibilityError, match=message):
        model_with(transcoders=tiny_transcoder(kind, **change))


def test_a_cross_layer_transcoder_of_too_few_layers_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="cross-layer transcoder has 2 layers, model llama has 3"):
        model_with(transcoders=tiny_transcoder("clt", n_layers=2))


def test_a_hook_that_the_architecture_does_not_have() -> None:
    transcoders = tiny_transcoder(input_hook="ln2.hook_normalized")
    with pytest.raises(CompatibilityError, match="olmo2 has no norm before its MLP"):
        ReplacementModel.from_model(tiny_model("olmo2"), transcoders, None, "olmo2")


def test_model_weights_that_are_not_finite() -> None:
    language_model = tiny_model("llama")
    model = ReplacementModel.from_model(language_model, tiny_transcoder(), None, "llama")
    language_model.model.embed_tokens.weight.data[17, 3] = float("nan")
    with pytest.raises(NumericalError, match=r"layer 0 are not finite.*weights"):
        attribute(IDS, model)


def test_a_model_that_is_broken_everywhere_is_refused_when_it_is_wrapped() -> None:
    language_model = tiny_model("llama")
    language_model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="logits are not finite"):
        ReplacementModel.from_model(language_model, tiny_transcoder(), None, "llama")


def test_options_are_checked_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ran = build(CASE), []
    monkeypatch.setattr(model.hf_model.model, "forward", ran.append)
    for options, _ in OPTIONS.values():
        if "position" not in options:  # is checked with the targets
            with pytest.raises(InputError):
                attribute(IDS, model, **options)
    assert not ran


def test_tracing_works_inside_no_grad_and_inference_mode() -> None:
    model = build(CASE)
    expected = attribute(IDS, model)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            graph = attribute(IDS, model)
        assert torch.equal(graph.adjacency_matrix, expected.adjacency_matrix)
