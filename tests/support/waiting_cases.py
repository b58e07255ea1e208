"""What is counted of waiting for a GPU: traces, short and long, and tokens that are written with features changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.demo import MODEL, PROMPT, TRANSCODER
from circuit_tracer.interventions import FeatureAt, Sampling, scale, steer
from circuit_tracer.interventions.steering.generate import generate_held
from tests.support.tiny import tiny_model, tiny_transcoder
from tests.support.waits import Counted, counting, on_device

Run = Callable[[ReplacementModel], Any]
LONG = 560  # tokens: patterns are made again, rows lose their smallest edges
FEATURE = (0, 7, 78)


def embedded() -> ReplacementModel:
    """The default model."""
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER, device="cpu")


def small() -> ReplacementModel:
    """A random one that takes long prompts."""
    model = tiny_model("llama", torch.float32, max_position_embeddings=1024)
    transcoders = tiny_transcoder(dtype=torch.float32, n_features=8, activation="topk")
    return ReplacementModel.from_model(model, transcoders, None, "small")


def trace(model: ReplacementModel) -> Any:
    """The demo's prompt, in several blocks of rows."""
    return attribute(PROMPT, model, max_feature_nodes=100, batch_size=16)


def rounds(model: ReplacementModel) -> Any:
    """As many rows as are chosen in several rounds."""
    return attribute(_ids(40), model, max_feature_nodes=250, batch_size=64, max_residual=1.0)


def long_trace(model: ReplacementModel) -> Any:
    """Of more than 512 tokens."""
    return attribute(_ids(LONG), model, max_feature_nodes=40, max_n_logits=3, max_residual=1.0)


def _ids(count: int) -> torch.Tensor:
    return torch.arange(count) * 7919 % 44 + 3


def steered(model: ReplacementModel, tokens: int) -> Any:
    """A text with a feature scaled at every token."""
    sampling = Sampling(max_new_tokens=tokens, stop_at_eos=False)
    return steer(model, PROMPT, scale(FeatureAt(*FEATURE), 2.0, at="all"), sampling, compare=False)


def generated(model: ReplacementModel, tokens: int) -> Any:
    """A text with a feature held from a position on."""
    layer, position, feature = FEATURE
    changes: list[Any] = [(layer, slice(position, None), feature, 3.0)]
    return generate_held(
        model, PROMPT, changes, max_new_tokens=tokens, do_sample=False, stop_at_eos=False, return_activations=False
    )


def of_second(run: Run) -> Callable[[ReplacementModel, Counted], Counted]:
    """Of a second run: what is made once a model was made in the first."""

    def found(model: ReplacementModel, counted: Counted) -> Counted:
        run(model)
        counted.clear()
        run(model)
        return counted.copy()

    return found


def of_token(write: Callable[[ReplacementModel, int], Any]) -> Callable[[ReplacementModel, Counted], Counted]:
    """Of one token, behind those that come first."""

    def found(model: ReplacementModel, counted: Counted) -> Counted:
        seen = []
        for tokens in (1, 2, 3):
            counted.clear()
            write(model, tokens)
            seen.append(counted.copy())
        return seen[2] - seen[1]

    return found


CASES: dict[str, tuple[Callable[[], ReplacementModel], Callable[[ReplacementModel, Counted], Counted]]] = {
    "trace": (embedded, of_second(trace)),
    "trace, several rounds": (small, of_second(rounds)),
    "long trace": (small, of_second(long_trace)),
    "steered token": (embedded, of_token(steered)),
    "generated token": (embedded, of_token(generated)),
}


def count(*names: str) -> dict[str, Counted]:
    """Some of the cases, or all; each model is made once."""
    chosen = {name: CASES[name] for name in names or CASES}
    models = {build: build() for build in dict.fromkeys(build for build, _ in chosen.values())}
    with counting() as counted:
        there = {build: on_device(model) for build, model in models.items()}
        return {name: run(there[build], counted) for name, (build, run) in chosen.items()}
