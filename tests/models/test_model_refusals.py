"""A model is read for what it is: whatever is more than its weights, or looks ahead, is refused, however little it changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
import transformers
from torch import Tensor, nn

from circuit_tracer import Architecture, NormKind, register_architecture
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.errors import InputError, NumericalError, UnsupportedModelError
from circuit_tracer.models.architectures import ARCHITECTURES
from circuit_tracer.models.parts import bind
from circuit_tracer.models.verify import verify
from circuit_tracer.replacement_model import ReplacementModel
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = [3, 17, 5, 17, 40, 8]


class Adapted(nn.Linear):
    """A projection with an addition that is zero so far."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, dtype=base.weight.dtype)
        self.weight = base.weight
        self.low = nn.Parameter(torch.zeros(2, base.in_features, dtype=base.weight.dtype))
        self.high = nn.Parameter(torch.zeros(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.low.T @ self.high.T


class Wrapped(nn.Module):
    """The same, around the projection."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


class Same(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight


def attention(model: Any) -> Any:
    return model.model.layers[1].self_attn


def swap(path: str, kind: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    parent, _, name = path.rpartition(".")

    def change(model: Any) -> None:
        setattr(model.get_submodule(parent), name, kind(model.get_submodule(path)))

    return change


def reclassed(path: str) -> Callable[[Any], None]:
    """The module becomes one of a class of somebody's own."""

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        module.__class__ = type("Own", (type(module),), {"__module__": "somewhere"})

    return change


def replaced_forward(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        own = module.forward
        module.forward = lambda *args, **kwargs: own(*args, **kwargs)

    return change


VALUE, OUTPUT = "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.o_proj"
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "adapter-subclass": (swap(VALUE, Adapted), rf"{VALUE} .*Adapted.*merge_and_unload"),
    "adapter-wrapper": (swap(OUTPUT, Wrapped), rf"{OUTPUT} .*Wrapped"),
    "parametrised": (
        lambda m: nn.utils.parametrize.register_parametrization(attention(m).v_proj, "weight", Same()),
        VALUE,
    ),
    "parametrised-embedding": (
        lambda m: nn.utils.parametrize.register_parametrization(m.model.embed_tokens, "weight", Same()),
        "embed_tokens.*parametrised",
    ),
    "weight-norm": (lambda m: nn.utils.parametrizations.weight_norm(m.lm_head), "language-model head"),
    "pruned": (lambda m: nn.utils.prune.l1_unstructured(attention(m).o_proj, "weight", 0.0), rf"{OUTPUT}.*hook"),
    "hook-on-a-layer": (lambda m: m.model.layers[2].register_forward_hook(lambda *_: None), r"layers\.2 .*has a hook"),
    "hook-before-the-norm": (lambda m: m.model.norm.register_forward_pre_hook(lambda *_: None), "model.norm .*hook"),
    "hook-on-the-mlp": (lambda m: m.model.layers[0].mlp.register_forward_hook(lambda *_: None), "mlp .*hook"),
    "hook-on-the-model": (lambda m: m.model.register_forward_hook(lambda *_: None), "model .*has a hook"),
    "forward-of-a-layer": (replaced_forward("model.layers.0"), r"layers\.0 .*forward method has been replaced"),
    "forward-of-the-values": (replaced_forward(VALUE), rf"{VALUE} .*forward method"),
    "forward-of-a-norm": (replaced_forward("model.layers.0.input_layernorm"), "input_layernorm .*forward method"),
    "compiled": (lambda m: m.compile(), "forward method has been replaced"),
    "norm-of-its-own": (reclassed("model.norm"), r"model\.norm \(somewhere"),
    "attention-of-its-own": (reclassed("model.layers.1.self_attn"), r"self_attn \(somewhere"),
    "model-of-its-own": (reclassed(""), r"the model \(somewhere"),
    "not-causal": (lambda m: setattr(attention(m), "is_causal", False), "is_causal=False"),
    "bidirectional": (lambda m: setattr(m.config, "is_causal", False), "attends to later ones at layer 0"),
    "renormalised-embedding": (lambda m: setattr(m.model.embed_tokens, "max_norm", 1.0), "max_norm"),
    "no-head": (lambda m: setattr(m, "lm_head", None), "no language-model head"),
    "half-on-disk": (lambda m: m.model.layers[2].to("meta"), "not loaded"),
    "not-loaded": (lambda m: m.to("meta"), "not loaded"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_what_is_more_than_its_weights_is_refused(change: Callable[[Any], Any], says: str) -> None:
    model = tiny_model("llama")
    change(model)
    with pytest.raises(UnsupportedModelError, match=says):
        verify(bind(model, "llama"))


@pytest.mark.parametrize("name", ["q_proj", "k_proj"])
def test_what_only_shapes_patterns_may_be_anything(name: str) -> None:
    """Patterns, and MLPs, are taken as they come out of the model."""
    model = tiny_model("llama")
    layer = model.model.layers[1]
    setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))
    layer.mlp.up_proj = Adapted(layer.mlp.up_proj)
    layer.mlp.gate_proj.register_forward_hook(lambda _, __, output: 1.5 * output)
    graph = attribute(IDS, ReplacementModel.from_model(model, tiny_transcoder(), None, "x"))
    assert graph.residual is not None
    assert graph.residual <= 1e-10


def test_bidirectional_gemma_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="later tokens"):
        verify(bind(tiny_model("gemma3", use_bidirectional_attention=True), "gemma3"))


def test_attention_of_ones_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import AttentionInterface

    def mine(*arguments: Any, **named: Any) -> Any:
        return AttentionInterface._global_mapping["sdpa"](*arguments, **named)

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", mine)
    model = tiny_model("llama")
    model.set_attn_implementation("mine")
    with pytest.raises(UnsupportedModelError, match=r"'mine'.*set_attn_implementation"):
        bind(model, "llama")


@pytest.mark.parametrize("model", [None, "gpt2", nn.Linear(2, 2)], ids=["none", "text", "linear"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="a transformers causal LM is expected"):
        ReplacementModel.from_model(model, tiny_transcoder(), None, "x")


def test_wrappers_say_what_to_pass_instead() -> None:
    class Peft(nn.Module):
        def merge_and_unload(self) -> None:
            raise AssertionError("the user's model is not touched")

    for wrapper, says in ((nn.DataParallel(tiny_model("llama")), r"model\.module"), (Peft(), r"merge_and_unload\(\)")):
        with pytest.raises(UnsupportedModelError, match=says):
            ReplacementModel.from_model(wrapper, tiny_transcoder(), None, "x")


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_model_without_logits_is_refused(kind: str) -> None:
    model = getattr(transformers, kind)(tiny_model("llama").config).double()
    with pytest.raises(UnsupportedModelError, match=r"no part 'model.layers'|no language-model head"):
        ReplacementModel.from_model(model, tiny_transcoder(), None, "x")


def test_training_mode_is_left_and_it_is_said() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    model.model.layers[1].train()
    with pytest.warns(UserWarning, match="training mode"):
        replacement = ReplacementModel.from_model(model, tiny_transcoder(), None, "x")
    assert not any(module.training for module in model.modules())
    graph = attribute(IDS, replacement)
    assert graph.residual is not None
    assert graph.residual <= 1e-10


def test_weights_in_two_precisions_work_or_say_what_to_do() -> None:
    mixed = tiny_model("llama", torch.bfloat16)
    for name, parameter in mixed.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
    with pytest.raises(UnsupportedModelError, match=r"bfloat16 and float32.*model\.to\(torch\.bfloat16\)"):
        ReplacementModel.from_model(mixed, tiny_transcoder(dtype=torch.float32), None, "x")
    for low, high, residual in ((torch.bfloat16, torch.float32, 2e-2), (torch.float32, torch.float64, 1e-5)):
        runs = tiny_model("llama", low)
        runs.model.norm.to(high)
        runs.lm_head.to(high)
        graph = attribute(IDS, ReplacementModel.from_model(runs, tiny_transcoder(dtype=torch.float32), None, "x"))
        assert graph.residual is not None
        assert graph.residual <= residual


def test_logits_that_are_not_finite_are_said_to_be() -> None:
    model = tiny_model("llama")
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(NumericalError, match="logits are not finite"):
        ReplacementModel.from_model(model, tiny_transcoder(), None, "x")


def test_heads_are_counted_in_the_weights() -> None:
    """GPT-NeoX has no key-value heads of its own, whatever else stands in its configuration."""
    model = tiny_model("gpt_neox")
    model.config.num_key_value_heads = 2
    assert bind(model, "x").config.n_key_value_heads == 4


def test_an_architecture_is_registered_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuit_tracer.models.architectures.ARCHITECTURES", dict(ARCHITECTURES))
    model = tiny_model("llama")
    own = {"__module__": __name__, "_can_set_attn_implementation": classmethod(lambda cls: True)}
    model.__class__, model.config.model_type = type("Own", (type(model),), own), "own"

    def trace() -> float | None:
        return attribute(IDS, ReplacementModel.from_model(model, tiny_transcoder(), None, "own")).residual

    with pytest.raises(UnsupportedModelError, match=r"'own'.*not in the table.*register_architecture"):
        trace()
    register_architecture(Architecture("own", NormKind.RMS, package=__name__))
    residual = trace()
    assert residual is not None
    assert residual <= 1e-10
    with pytest.raises(InputError, match="'llama' is in the table already"):
        register_architecture(Architecture("llama", NormKind.LAYER))
    with pytest.raises(InputError, match="takes an Architecture"):
        register_architecture({"model_type": "x"})  # type: ignore[arg-type]
