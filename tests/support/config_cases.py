"""Configurations for tests: a small valid one, and any valid one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from circuit_tracer.training.config.schema import TrainingConfig

SMALL: dict[str, dict[str, Any]] = {
    "model": {"name": "some/model"},
    "data": {"path": "texts"},
    "dictionary": {"features": 64},
    "optimizer": {"warmup_steps": 0},
    "run": {"out": "runs/small", "tokens": 8192},
}


def small(**changes: Any) -> TrainingConfig:
    """The small configuration with values by dotted key, as `run__batch=3`."""
    raw = {section: dict(values) for section, values in SMALL.items()}
    for name, value in changes.items():
        section, key = name.split("__")
        raw.setdefault(section, {})[key] = value
    return TrainingConfig.model_validate(raw)


# whatever a file can hold: quotes, colons, line breaks, words that look like numbers, letters of any script
TEXT = st.one_of(
    st.sampled_from(
        [
            "yes",
            "null",
            "1e5",
            "0x1f",
            "- a",
            "a: b",
            "#",
            "'",
            '"',
            "~",
            "2024-01-01",
            "é∆",
            "1_000",
            " ",
            "\x85",
            "~0",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
DTYPES = st.sampled_from(["float32", "bfloat16"])


def _section(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=True, allow_subnormal=False)


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    """Any valid configuration."""
    kind, activation = (
        draw(st.sampled_from(["clt", "plt", "skip", "sae"])),
        draw(st.sampled_from(["batch_topk", "topk", "jumprelu", "relu"])),
    )
    features, batch = draw(st.integers(32, 2**17)), draw(st.integers(1, 2**14))
    steps = draw(st.integers(1, 10**6))
    sparsity, start_from = draw(_sparsity(activation, kind, steps * batch)), draw(st.none() | TEXT)
    if start_from is not None and sparsity.get("active_at_start") is None:
        sparsity.pop("anneal", None)
    return TrainingConfig.model_validate(
        {
            "model": {"name": draw(TEXT), **draw(_section(revision=st.none() | TEXT, dtype=DTYPES))}
            | draw(_section(device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]))),
            "data": {"buffer_tokens": batch * draw(st.integers(1, 50)), **draw(_data())},
            "dictionary": {"kind": kind, "features": features, **draw(_dictionary(kind))},
            "sparsity": {"activation": activation, **sparsity},
            "optimizer": {
                "warmup_steps": draw(st.none() | st.integers(0, steps // 2)),
                "decay": draw(st.floats(0, 0.5)),
            }
            | draw(_section(learning_rate=st.none() | _floats(0, 1), eps=_floats(0, 1), beta1=st.floats(0, 0.99)))
            | draw(_section(averaging=st.floats(0, 0.9), skip_above=st.just(0.0) | _floats(1, 100))),
            "evaluation": draw(
                _section(
                    every_steps=st.integers(0, steps),
                    prompts=st.lists(TEXT, max_size=3),
                    random_baseline=st.booleans(),
                    **({} if kind == "sae" else {"per_layer_baseline": st.none() | TEXT}),
                )
            ),
            "run": {"out": draw(TEXT), "tokens": steps * batch, "batch": batch, "start_from": start_from}
            | draw(_section(accumulate=st.sampled_from([1, batch])))
            | draw(_section(schedule_tokens=st.none() | st.integers(steps * batch, 2 * steps * batch)))
            | draw(_section(seed=st.integers(0, 2**63 - 1), wandb=st.none() | TEXT, tensorboard=st.booleans())),
        }
    )


@st.composite
def _data(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["huggingface", "text", "jsonl", "parquet", "tokens"]))
    own: dict[str, st.SearchStrategy[Any]] = {"epochs": st.none() | st.integers(1, 9), "held_out": _floats(0, 0.5)}
    if kind == "huggingface":
        own |= {"name": st.none() | TEXT, "split": TEXT}
    if kind not in ("text", "tokens"):
        own["field"] = TEXT
    own |= {"cache": st.none() | TEXT, "buffer_place": st.sampled_from(["device", "pinned", "disk"])}
    found = {"kind": kind, **draw(_section(**own))}
    if not draw(st.booleans()):
        return {**found, "path": draw(TEXT)}
    found.pop("name", None)
    part = st.fixed_dictionaries({"path": TEXT, "weight": _floats(0, 9)}, optional={"kind": st.just(kind)})
    return {**found, "mixture": draw(st.lists(part, min_size=1, max_size=3))}


def _dictionary(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    own: dict[str, st.SearchStrategy[Any]] = {"dtype": DTYPES}
    if kind == "sae":
        own["point"] = st.sampled_from(["hook_resid_pre", "hook_resid_post"])
    else:
        own["input_hook"] = st.sampled_from(["hook_resid_mid", "mlp.hook_in"])
    if kind != "clt":
        own["layers"] = st.none() | st.sets(st.integers(0, 99), min_size=1, max_size=5).map(sorted)
    return _section(**own)


@st.composite
def _sparsity(draw: st.DrawFn, activation: str, kind: str, tokens: int) -> dict[str, Any]:
    own: dict[str, st.SearchStrategy[Any]] = {}
    if tokens > 1:
        own["dead_after_tokens"] = st.none() | st.integers(1, tokens - 1)
    active = draw(st.integers(1, 32))
    required: dict[str, Any] = {"active": float(active) if activation == "topk" else active - 0.5}
    own["active_at_start"] = st.none() | st.floats(32, 32)
    own["anneal"] = _floats(0, 1)
    if activation in ("jumprelu", "relu") and draw(st.booleans()):
        required["penalty"] = draw(_floats(0, 100))
        own |= {"penalty_scale": _floats(0, 10), "penalty_warmup": st.floats(0, 1)}
    if activation == "jumprelu":
        own |= {"bandwidth": _floats(0, 1), "band_probability": _floats(0, 1)}
    if kind != "sae":
        own["jacobian_weight"] = st.floats(0, 1)
    if draw(st.booleans()):
        required["aux_active"] = draw(st.integers(1, 32))
        own["aux_weight"] = _floats(0, 1)
    own["pre_activation_weight"] = st.floats(0, 1)
    return required | draw(_section(**own))
