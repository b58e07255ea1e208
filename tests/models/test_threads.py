"""A model is shared by the threads of a process, a run is not: calls side by side give what each gives alone, to the bit."""

from __future__ import annotations

import contextvars
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from circuit_tracer import ReplacementModel
from circuit_tracer.errors import InputError, UnsupportedModelError
from circuit_tracer.models.run import ModelRun, Stop, Visit
from circuit_tracer.models.surroundings import NARROW, fitting_threads
from tests.support.left_behind import left_behind
from tests.support.model_calls import CALLS, activations, bare, equal, intervention, trace
from tests.support.tiny import tiny_model, tiny_transcoder

IDS = torch.tensor([3, 17, 5, 17, 40, 8])
PROMPTS = (IDS, torch.tensor([1, 4, 9, 9, 30, 11, 2, 33, 21]), torch.tensor([5, 6, 7, 8]))
QUICK = [
    name for name in CALLS if name not in ("validation", "patching")
]  # those are made of the others, and take long


def replacement(architecture: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> ReplacementModel:
    model = tiny_model(architecture, dtype)
    model.set_attn_implementation(attention)
    transcoder = tiny_transcoder(dtype=dtype, activation="jump_relu", skip=True)
    return ReplacementModel.from_model(model, transcoder, None, architecture)


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return replacement("gemma2", attention="eager")


@contextmanager
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def beside(works: list[Callable[[], None]]) -> None:
    """Each in a thread of its own; the first error of any is raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    with often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def mixed(
    model: ReplacementModel, names: list[str], n_threads: int, n_calls: int, n_prompts: int = len(PROMPTS)
) -> None:
    """Threads that call what they like on prompts that they like."""
    keys = [(name, number) for name in names for number in range(n_prompts)]
    alone = {key: CALLS[key[0]](model, PROMPTS[key[1]]) for key in keys}
    own = model.hf_model.config._attn_implementation, model.hf_model.config._experts_implementation

    def work(seed: int) -> None:
        for name, number in random.Random(seed).choices(keys, k=n_calls):
            assert equal(CALLS[name](model, PROMPTS[number]), alone[name, number]), (name, number)

    beside([lambda seed=seed: work(seed) for seed in range(n_threads)])  # type: ignore[misc]
    assert not left_behind(model.hf_model)
    assert (model.hf_model.config._attn_implementation, model.hf_model.config._experts_implementation) == own


@pytest.mark.parametrize(
    ("architecture", "dtype", "attention"),
    [
        pytest.param("llama", torch.float32, "sdpa", id="llama-sdpa"),
        pytest.param("gemma2", torch.float32, "eager", id="gemma2-eager-softcap-windows"),
        pytest.param("gpt_oss", torch.float64, "eager", id="gpt_oss-experts-in-float64"),
    ],
)
def test_calls_side_by_side_give_what_they_give_alone(architecture: str, dtype: torch.dtype, attention: str) -> None:
    mixed(replacement(architecture, dtype, attention), QUICK, n_threads=4, n_calls=3, n_prompts=1)


@pytest.mark.slow("eight threads on every kind of model")
@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("mistral", "sdpa"),
        ("gemma2", "eager"),  # transformers has no fused attention with a softcap, or with sinks
        ("gemma3", "sdpa"),
        ("gpt2", "eager"),
        ("gpt_neox", "sdpa"),
        ("phi3", "eager"),
        ("gpt_oss", "eager"),
    ],
)
def test_every_call_side_by_side_on_every_kind_of_model(architecture: str, attention: str) -> None:
    mixed(replacement(architecture, attention=attention), list(CALLS), n_threads=8, n_calls=8, n_prompts=2)


def test_the_bare_model_is_as_it_was_while_a_run_is_in_the_middle(model: ReplacementModel) -> None:
    """No matter of luck: the other thread makes its pass while this one stands inside a layer."""
    alone, found, settings = bare(model, IDS), [], []

    def other() -> None:
        config = model.hf_model.config
        settings.append((config._attn_implementation, config.final_logit_softcapping))
        found.append(bare(model, IDS))
        found.append(activations(model, IDS))

    def middle(layer: int, x: Tensor) -> Tensor:
        if layer == 1:
            beside([other])
        return 2 * x

    with model.zero_softcap():
        ModelRun(model.parts, {"mlp.hook_out": middle})(IDS)
    assert settings == [("eager", 30.0)]
    assert equal(found[0], alone)
    assert equal(found[1], activations(model, IDS))


@pytest.mark.parametrize("error", [Stop, ValueError, KeyboardInterrupt])
def test_what_ends_one_run_leaves_the_others_right(model: ReplacementModel, error: type[BaseException]) -> None:
    alone = trace(model, IDS)

    def broken(layer: int, x: Tensor) -> Tensor:
        if layer == 1:
            raise error
        return 3 * x

    def ends() -> None:
        for _ in range(8):
            with suppress(error):
                ModelRun(model.parts, {"hook_resid_mid": broken})(IDS)
            with pytest.raises(InputError):
                model.feature_intervention(IDS, [(0, 1, 10**6, 1.0)])

    def goes_on() -> None:
        for _ in range(4):
            assert equal(trace(model, IDS), alone)

    beside([ends, goes_on, ends])
    assert not left_behind(model.hf_model)
    assert model.hf_model.config._attn_implementation == "eager"


class Own(Exception):
    """The user's."""


@pytest.mark.parametrize("error", [Stop, Own])
@pytest.mark.parametrize("own", [True, False], ids=["of-a-run", "of-the-bare-model"])
def test_an_error_leaves_the_model_though_a_run_begins_and_ends_meanwhile(error: type[Exception], own: bool) -> None:
    """As it passes a module, torch goes through the module's hooks, in Python; this thread stands in the first of two."""
    parts, met = replacement("llama").parts, []

    def other() -> None:
        with ModelRun(parts, {"hook_resid_pre": lambda *_: None, "hook_resid_post": lambda *_: None}).active():
            met.append(1)

    def broken(*_: Any) -> None:
        raise error

    layer = parts.layers[1]
    for hook in (lambda *_: beside([other]), lambda *_: None):
        layer.module.register_forward_hook(hook, always_call=True)
    if not own:
        layer.mlp.register_forward_pre_hook(broken)
    before = left_behind(parts.model)
    run = ModelRun(parts, {("mlp.hook_out", 1): broken}, own_attention=False).active() if own else nullcontext()
    with run, pytest.raises(error):
        parts.model(input_ids=IDS[None])
    assert met == [1]
    assert left_behind(parts.model) == before


def test_hooks_of_a_module_that_is_called_after_their_run_do_nothing(model: ReplacementModel) -> None:
    """Another thread may be about to call what stood in the module's place when the run ended."""
    module, seen = model.parts.layers[0].mlp, []
    visits: dict[str, Visit] = {"mlp.hook_out": lambda _, x: seen.append(x), "mlp.hook_in": lambda _, x: seen.append(x)}
    x = torch.ones(1, 2, module.gate_proj.in_features)
    with ModelRun(model.parts, visits, norms=None).active():
        called = module._compiled_call_impl
        inside = called(x)
        assert len(seen) == 2
        assert torch.equal(contextvars.Context().run(called, x), inside)
    assert torch.equal(called(x), inside)
    assert len(seen) == 2


def test_a_context_that_outlives_a_run_is_its_own_again(model: ReplacementModel) -> None:
    alone = bare(model, IDS)
    with ModelRun(model.parts, {"mlp.hook_out": lambda _, x: 2 * x}).active():
        inside = contextvars.copy_context()  # as asyncio does for a task that is begun here
        assert not equal(inside.run(bare, model, IDS), alone)
    assert equal(inside.run(bare, model, IDS), alone)
    with ModelRun(model.parts, {"mlp.hook_out": lambda _, x: 2 * x}).active():
        assert equal(inside.run(bare, model, IDS), alone)


def test_a_run_can_end_in_another_context_than_it_began_in(model: ReplacementModel) -> None:
    """As one does that a generator holds, which a server goes on with in whatever thread is free."""
    alone = bare(model, IDS)

    def generator() -> Iterator[None]:
        with ModelRun(model.parts, {"mlp.hook_out": lambda _, x: 2 * x}).active():
            yield

    begun = generator()
    contextvars.Context().run(next, begun)
    contextvars.Context().run(begun.close)
    assert not left_behind(model.hf_model)
    assert equal(bare(model, IDS), alone)


def test_the_user_may_set_the_attention_while_runs_are_under_way() -> None:
    model = replacement("llama")
    alone = trace(model, IDS)

    def sets() -> None:
        for _ in range(20):
            for name in ("sdpa", "eager"):
                model.hf_model.set_attn_implementation(name)

    def traces() -> None:
        for _ in range(3):
            assert equal(trace(model, IDS), alone)

    beside([sets, traces])
    assert model.hf_model.config._attn_implementation == "eager"


@pytest.mark.slow("imports torch's compiler")
def test_compiled_insides_are_refused() -> None:
    model = replacement("llama")
    whole = torch.compile(model.hf_model, backend="eager")
    assert equal([whole(input_ids=IDS[None]).logits], [model.hf_model(input_ids=IDS[None]).logits])
    trace(model, IDS)
    model.hf_model.model.layers[1].compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"layers\.1 of llama is compiled"):
        trace(model, IDS)


@pytest.mark.slow("imports torch's compiler")
@pytest.mark.parametrize("first", ["compiled-before", "compiled-meanwhile"])
def test_runs_do_not_make_torch_compile_the_whole_model_again(first: str) -> None:
    from torch._dynamo.testing import CompileCounter

    model, counter = replacement("llama"), CompileCounter()
    whole = torch.compile(model.hf_model, backend=counter, fullgraph=True)
    elsewhere = contextvars.Context()

    def answer() -> list[Tensor]:
        with torch.no_grad():
            return [whole(input_ids=IDS[None], use_cache=False).logits]

    expected = [model.hf_model(input_ids=IDS[None]).logits]
    if first == "compiled-before":
        assert equal(answer(), expected)
    for _ in range(3):
        with ModelRun(model.parts, {"mlp.hook_out": lambda _, x: 2 * x}).active():
            assert equal(elsewhere.run(answer), expected)
        assert equal(answer(), expected)
    assert counter.frame_count == 1


def test_a_module_that_is_compiled_while_a_run_is_under_way_is_refused() -> None:
    """Its call takes the place of what the run has there, and stays."""
    model = replacement("llama")
    module, run = model.parts.layers[1].mlp, ModelRun(model.parts, {"mlp.hook_out": lambda _, x: 2 * x})
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp of llama is compiled"), run.active():
        module._compiled_call_impl = module._call_impl  # all that Module.compile does, but for the compiler
    assert module._compiled_call_impl == module._call_impl


# ---- what surrounds a call


@contextmanager
def setting(name: str, value: Any) -> Iterator[None]:
    get, put = getattr(torch, f"get_{name}"), getattr(torch, f"set_{name}")
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def default_device(kind: str) -> Iterator[None]:
    torch.set_default_device(kind)
    try:
        yield
    finally:
        torch.set_default_device(None)  # the one that was asked for would stay in the way of every operation


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast-bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast-float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference-mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "default-float64": lambda: setting("default_dtype", torch.float64),
    "default-bfloat16": lambda: setting("default_dtype", torch.bfloat16),
    "default-device-meta": lambda: default_device("meta"),
    "device-meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomalies": torch.autograd.detect_anomaly,
}


SURROUNDED = ("trace_of_few", "held_intervention", "edits", "sampled", "patching")


@pytest.fixture(scope="module")
def numbers(model: ReplacementModel) -> dict[str, list[Tensor]]:
    return {name: CALLS[name](model, IDS) for name in SURROUNDED}


@pytest.mark.few
@pytest.mark.parametrize(("name", "call"), list(product(SURROUNDINGS, SURROUNDED)))
def test_what_surrounds_a_call_does_not_change_its_numbers(
    model: ReplacementModel, numbers: dict[str, list[Tensor]], name: str, call: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anomaly detection says that it is slow
        with SURROUNDINGS[name]():
            found = CALLS[call](model, IDS)
    assert equal(found, numbers[call])
    assert not any(tensor.is_inference() for tensor in found)


def test_autocast_around_a_whole_session_changes_nothing() -> None:
    alone = intervention(replacement("llama"), IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert equal(intervention(replacement("llama"), IDS), alone)


@pytest.mark.parametrize(("d_model", "alone"), [(NARROW, True), (NARROW + 1, False), (None, False)])
def test_narrow_models_get_one_thread_of_torch_and_others_what_was_set(d_model: int | None, alone: bool) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with suppress(ValueError), fitting_threads(d_model):
            assert torch.get_num_threads() == (1 if alone else 2)
            raise ValueError
        assert torch.get_num_threads() == 2, "also after an error"
    finally:
        torch.set_num_threads(before)
