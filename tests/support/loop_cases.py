"""Small runs of the training loop on batches from memory: every kind and activation, with features that die and come back.

Letters: S source layers, B tokens, D width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.training.config.schema import SparsitySection, TrainingConfig
from circuit_tracer.training.data.batch import ActivationBatch
from circuit_tracer.training.feature_ranks import FeatureRanks
from circuit_tracer.training.run import checkpoint
from circuit_tracer.training.run.events import NullListener, StepReport
from circuit_tracer.training.run.loop import Loop
from circuit_tracer.training.run.state import TrainingState
from circuit_tracer.training.sparsity import RULES, rule_of
from circuit_tracer.training.step.normalisation import Normalisation

LAYERS, WIDTH, FEATURES, BATCH, STEPS = 3, 6, 16, 20, 6
KINDS = ("clt", "plt", "skip", "sae")
ACTIVATIONS = tuple(RULES)
# (kind, activation) of every rule and the dictionaries that it serves
SERVED = [
    (kind, name)
    for kind, name in product(KINDS, ACTIVATIONS)
    if kind in rule_of(SparsitySection(activation=name)).kinds
]
# of the keys that only some rules read
CHOSEN = {"active": 1.0, "active_at_start": 3.0, "band_probability": 0.7, "experts": 4}
PENALISED = "relu"  # the rule that a penalty keeps sparse here; jumprelu is steered


@dataclass(frozen=True)
class Run:
    """What a run is made of; its string is the test's id."""

    kind: str = "clt"
    activation: str = "batch_topk"
    dtype: str = "float32"
    jacobian: bool = False
    moments: str = "float32"
    steps: int = STEPS
    seed: int = 5
    features: int = FEATURES
    width: int = WIDTH
    batch: int = BATCH
    optimizer: tuple[tuple[str, Any], ...] = ()  # further keys of that section
    accumulate: int = 1
    prefixes: tuple[int, ...] = ()  # and one is drawn at each step

    def __str__(self) -> str:
        narrow = "" if self.moments == "float32" else f"-{self.moments}-moments"
        nested = "-matryoshka" if self.prefixes else ""
        return f"{self.kind}-{self.activation}-{self.dtype}{narrow}{'-jacobian' if self.jacobian else ''}{nested}"

    def config(self, out: Path | str = "unused", **changes: Any) -> TrainingConfig:
        """Its configuration; every loss has a weight, features are dead after two silent steps. Changes: section__key."""
        sparsity: dict[str, Any] = {
            "activation": self.activation,
            "aux_active": 4,
            "pre_activation_weight": 0.01,
            "dead_after_tokens": 2 * self.batch,
            "jacobian_weight": 0.1 if self.jacobian else 0.0,
        }
        sparsity |= {key: value for key, value in CHOSEN.items() if key in RULES[self.activation].reads}
        if self.prefixes:
            sparsity |= {"prefixes": list(self.prefixes), "prefixes_drawn": 1}
        if self.activation == PENALISED:
            sparsity["penalty"] = 0.5
        tree: dict[str, dict[str, Any]] = {
            "model": {"name": "memory"},
            "data": {"path": "memory", "buffer_tokens": self.batch},
            "dictionary": {"kind": self.kind, "features": self.features},
            "sparsity": sparsity,
            "optimizer": {
                "warmup_steps": 2, "learning_rate": 0.02, "moments": self.moments, **dict(self.optimizer),
            },
            "evaluation": {},
            "run": {
                "out": str(out), "tokens": self.steps * self.batch, "batch": self.batch, "accumulate": self.accumulate,
                "seed": self.seed, "log_every": 1, "checkpoint_every_steps": 10**6,
            },
        }  # fmt: skip
        if self.dtype == "bfloat16":
            tree["dictionary"]["dtype"] = self.dtype
        for key, value in changes.items():
            section, name = key.split("__")
            tree[section][name] = value
        config = TrainingConfig.model_validate(tree)
        if self.dtype == "float64":  # which no file can ask for
            dictionary = config.dictionary.model_copy(update={"dtype": "float64"})
            config = config.model_copy(update={"dictionary": dictionary})
        return config

    def stream(self, n_batches: int | None = None, ranks: FeatureRanks | None = None) -> MemoryStream:
        """Its batches, or only the first of them; of each the share of a rank."""
        return MemoryStream(self, n_batches, (ranks or FeatureRanks()).tokens(self.batch))

    def space(self) -> Normalisation:
        """Means and scales of its batches."""
        sample = [MemoryStream(self).batch(number) for number in range(3)]
        x_BSD, y_BSD = torch.cat([one.x_BSD for one in sample]), torch.cat([one.y_BSD for one in sample])
        mean_x_SD = x_BSD.mean(0)
        mean_y_SD = mean_x_SD if self.kind == "sae" else y_BSD.mean(0)  # one tensor for both, as data with one have
        variance_x_S = (x_BSD - mean_x_SD).square().sum(2).mean(0)
        return Normalisation.from_moments(
            mean_x_SD, variance_x_S, mean_y_SD, (y_BSD - mean_y_SD).square().sum(2).mean(0)
        )

    def state(self, ranks: FeatureRanks | None = None, config: TrainingConfig | None = None) -> TrainingState:
        """Its start; every fifth feature is out of reach of all tokens, so that it dies."""
        scale_S = torch.zeros(LAYERS) if self.jacobian else None
        state = TrainingState.initial(
            config or self.config(), self.space(), scale_S, torch.device("cpu"), ranks or FeatureRanks()
        )
        numbers_f = torch.arange(self.features)[state.dictionary.owned]
        for bias_f in state.dictionary.b_enc:
            bias_f[numbers_f % 5 == 0] = -9.0
        return state

    def loop(
        self,
        folder: Path,
        n_batches: int | None = None,
        ranks: FeatureRanks | None = None,
        background: bool = False,
        **changes: Any,
    ) -> Loop:
        """A loop at the start, or at the last checkpoint in ``folder`` if there is one."""
        ranks, config, facts = ranks or FeatureRanks(), self.config(folder, **changes), {"fact": str(self)}
        loop = Loop(
            config,
            self.state(ranks, config),
            self.stream(n_batches, ranks),
            ranks,
            Recorder(),
            folder,
            facts,
            background=background,
        )
        last = checkpoint.latest(folder)
        if last is not None:
            checkpoint.load_(loop.state, last)
            loop.stream.restore(last.content["data"])
            loop.saved = last.folder
        return loop


class MemoryStream:
    """Batches by number: inputs around a mean, outputs a bent function of them."""

    def __init__(self, run: Run, n_batches: int | None = None, share: slice = slice(None)) -> None:
        self.run, self.n_batches, self.share, self.number = run, n_batches, share, 0

    def batch(self, number: int) -> ActivationBatch:
        """Batch ``number``, whatever was asked for before."""
        run, width = self.run, self.run.width
        wide = torch.float64 if run.dtype == "float64" else torch.float32
        fixed = torch.Generator().manual_seed(run.seed)
        mean_SD = 2 * torch.randn(LAYERS, width, generator=fixed)
        mix_SDD = torch.randn(LAYERS, width, width, generator=fixed) / width**0.5
        draw = torch.Generator().manual_seed(1000 * run.seed + number + 1)
        x_BSD = (3 * torch.randn(run.batch, LAYERS, width, generator=draw).relu() + mean_SD).to(wide)
        mix_SDD = mix_SDD.to(wide)
        if run.kind == "sae":
            return ActivationBatch(x_BSD, x_BSD)
        y_BSD = torch.einsum("bsd,sde->bse", x_BSD, mix_SDD).sin() * 0.3 + 0.1
        if not run.jacobian:
            return ActivationBatch(x_BSD, y_BSD)
        direction_BSD = torch.randn(run.batch, LAYERS, width, generator=draw).to(wide)
        slope_BSD = 0.3 * torch.einsum("bsd,sde->bse", x_BSD, mix_SDD).cos()
        derivative_BSD = slope_BSD * torch.einsum("bsd,sde->bse", direction_BSD, mix_SDD)
        return ActivationBatch(x_BSD, y_BSD, direction_BSD, derivative_BSD)

    def next(self) -> ActivationBatch | None:
        """The next batch."""
        if self.number == self.n_batches:
            return None
        self.number += 1
        made = self.batch(self.number - 1)
        if made.y_BSD is made.x_BSD:
            return ActivationBatch(made.x_BSD[self.share], made.x_BSD[self.share])
        return ActivationBatch(
            **{name: tensor[self.share] for name, tensor in vars(made).items() if tensor is not None}
        )

    def state(self) -> dict[str, Any]:
        """How many were handed out."""
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        """Go there."""
        self.number = state["number"]


@dataclass
class Recorder(NullListener):
    """Keeps what a run reports."""

    reports: list[StepReport] = field(default_factory=list)

    def progress(self, report: StepReport) -> None:
        """Keep it."""
        self.reports.append(report)


def numbers(report: StepReport) -> dict[str, Any]:
    """A report without what depends on the clock."""
    return {key: value for key, value in asdict(report).items() if key not in ("tokens_per_second", "seconds_left")}


def reports(loop: Loop) -> list[dict[str, Any]]:
    """What a loop has reported."""
    assert isinstance(loop.listener, Recorder)
    return [numbers(report) for report in loop.listener.reports]


def tensors(state: TrainingState) -> dict[str, Tensor]:
    """All that a state holds, by name."""
    found = dict(state.shared_tensors())
    for source in range(state.dictionary.n_layers):
        found |= {f"{name}.{source}": tensor for name, tensor in state.layer_tensors(source).items()}
    return found


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not bitwise the same, NaN equal to NaN."""
    return sorted(
        {*left} ^ {*right}
        | {
            name
            for name in {*left} & {*right}
            if left[name].shape != right[name].shape
            or left[name].dtype != right[name].dtype
            or not torch.equal(_bytes(left[name]), _bytes(right[name]))
        }
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


RUNS = [
    *(Run(kind, activation) for kind, activation in SERVED),
    *(Run("clt", activation, "bfloat16") for kind, activation in SERVED if kind == "clt"),
    Run("sae", "switch", "bfloat16"),
    Run("clt", "batch_topk", prefixes=(4, 9)),
    Run("sae", "jumprelu", prefixes=(5,)),
    Run("skip", "topk", "bfloat16", moments="int8"),
    Run("plt", "batch_topk", moments="bfloat16"),
    *(Run(kind, activation, jacobian=True) for kind, activation in [("clt", "batch_topk"), ("skip", "jumprelu")]),
]
