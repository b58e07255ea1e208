"""The configuration of a training run: one typed, documented tree. Its keys are those of the file and of the command line.

Symbols in descriptions (training/README.md): S source layers, F features a layer, k active features a layer and token.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from circuit_tracer.errors import InputError
from circuit_tracer.text.source import CONTEXT_LENGTH, AnySource, Kind, Mixture, TextSource
from circuit_tracer.training.config.rules import contradictions
from circuit_tracer.training.sparsity import RULES, readers, rule_of

LONGEST_SILENCE = 10_000_000  # tokens: whoever is silent for longer is dead in a run of any length
WARM_START = 20  # steps of warm-up, at least, of weights that were trained before
EVALUATE_EVERY = 5000  # steps
CHECKPOINT_EVERY = (50, 5000)  # steps, at least and at most
EVALUATION_TOKENS = (4096, 65536)


def _whole(value: Any) -> Any:
    """1e9 in a file is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _at_home(path: Path) -> Path:
    """~ is the home folder; the name of a user that does not exist stays as it is."""
    return Path(os.path.expanduser(path))


Whole = Annotated[int, BeforeValidator(_whole)]
Location = Annotated[Path, Field(strict=False), AfterValidator(_at_home)]
Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16"]
DataKind = Literal[Kind, "activations"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Text = Annotated[str, Field(min_length=1)]
if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[tuple(RULES)]


class Section(BaseModel):
    """Values cannot change, unknown keys and wrong types are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """The language model."""

    name: Text = Field(description="Hugging Face id, folder or GGUF file of the model.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit on the hub; null: the newest.")
    dtype: Dtype = Field(default="float32", description="Number format that the model runs in.")
    device: Device = Field(default="auto", description="cpu, cuda, cuda:1, mps; auto: the best there is.")


class DataPart(Section):
    """One of several data sets. What is null is as `data` says."""

    path: Text
    weight: float = Field(gt=0)
    kind: Kind | None = None
    field: Text | None = None
    name: Text | None = None
    split: Text | None = None


class DataSection(Section):
    """The text, and how its activations are kept."""

    kind: DataKind = Field(
        default="huggingface",
        description="What `path` is: a data set of the hub, text, JSONL or parquet files, files of token ids, or activations "
        "that were made elsewhere (docs/how-to/activations.md).",
    )
    path: Text | None = Field(
        default=None,
        description="Id of a data set on the hub, or a file, folder, pattern such as data/*.jsonl, or address such as "
        "s3://bucket/data; of activations also tcp://host:port.",
    )
    mixture: list[DataPart] | None = Field(
        default=None,
        min_length=1,
        description="Several data sets instead of `path`, read together: each has a path and a weight, which is its share of "
        "the text, and may have its own kind, field, name and split.",
    )
    name: Text | None = Field(default=None, description="Configuration of a data set on the hub.")
    split: Text = Field(default="train", description="Split of a data set on the hub.")
    field: Text = Field(default="text", description="Field or column that holds the text.")
    context_length: Whole = Field(default=CONTEXT_LENGTH, ge=2, description="Tokens of a packed sequence.")
    epochs: Whole | None = Field(default=1, ge=1, description="Passes over the data; null: as many as the run needs.")
    held_out: float = Field(
        default=0.01,
        gt=0,
        le=0.5,
        description="Share of the documents that only evaluation sees, evenly spread; of text files these are pieces of some 8 "
        "KiB, so shuffle the lines of sorted text first.",
    )
    max_norm_ratio: float = Field(
        default=10.0,
        gt=1,
        description="Tokens whose input norm is above this many times the layer's median are left out.",
    )
    sequences_per_pass: Whole = Field(default=16, ge=1, description="Sequences that the model reads at a time.")
    buffer_tokens: Whole = Field(default=65536, ge=1, description="Tokens that are shuffled together.")
    buffer_place: Literal["device", "pinned", "disk"] = Field(
        default="device", description="Where they wait: beside the model, in the host's pinned memory, or in a file."
    )
    buffer_dtype: Dtype = Field(default="float32", description="Number format they wait in.")
    statistics_tokens: Whole = Field(default=65536, ge=2, description="Tokens that means and scales are measured on.")
    cache: Location | None = Field(
        default=None,
        description="Folder where activations are kept, so that the next run does not need the model; null: none.",
    )

    @property
    def source(self) -> AnySource:
        """Which documents are read. Raises InputError for activations, of which the text is not known."""
        self.require_text()
        if self.mixture is None:
            return TextSource(cast(Kind, self.kind), self.path or "", self.field, self.name, self.split)
        parts = [
            TextSource(
                one.kind or cast(Kind, self.kind), one.path, one.field or self.field, one.name, one.split or self.split
            )
            for one in self.mixture
        ]
        return Mixture(tuple((part, one.weight) for part, one in zip(parts, self.mixture, strict=True)))

    def require_text(self) -> None:
        """Raise InputError for activations that were made elsewhere."""
        if self.kind == "activations":
            raise InputError("this configuration reads activations (data.kind), not text: name a file of text instead")

    @property
    def where(self) -> str:
        """The path or paths, for messages."""
        return repr(self.path) if self.mixture is None else ", ".join(repr(one.path) for one in self.mixture)


AutoencoderPlace = Literal[
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "attn.hook_z", "attn.hook_out", "hook_attn_out", "mlp.hook_out",
    "hook_mlp_out",
]  # models/sites.py: AUTOENCODED # fmt: skip


class DictionarySection(Section):
    """What is trained (§1)."""

    kind: Literal["clt", "plt", "skip", "sae"] = Field(
        default="clt",
        description="Cross-layer transcoder, per-layer transcoder, the same with a skip matrix, or sparse autoencoder.",
    )
    features: Whole = Field(ge=1, description="F, features a layer.")
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Layers that get a dictionary; null: all of them, as a clt needs."
    )
    input_hook: Literal["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"] = Field(
        default="hook_resid_mid",
        description="Where transcoders read: before the MLP's norm, after it without its gain, or after it.",
    )
    output_hook: Literal["hook_mlp_out", "mlp.hook_out"] = Field(
        default="hook_mlp_out",
        description="Where transcoders write: after the norm that follows the MLP, if any, or before.",
    )
    point: AutoencoderPlace = Field(
        default="hook_resid_post",
        description="Where an sae reads and writes: before, in the middle of or after a layer; at heads' outputs, "
        "attn.hook_z; or at what attention or the MLP gives, before a norm behind it or as it is added to the stream.",
    )
    dtype: Dtype = Field(
        default="float32",
        description="Number format of the weights; bfloat16 is rounded stochastically.",
    )


class SparsitySection(Section):
    """What keeps features rare (§4, §5)."""

    activation: RuleName = Field(
        default="batch_topk",
        description=f"Which features count: {', '.join(row.keeps for row in RULES.values())}.",
    )
    active: float = Field(
        default=16.0, gt=0, description=f"k, active features a layer and token, on average ({readers('active')})."
    )
    active_at_start: float | None = Field(
        default=None,
        gt=0,
        description="k at the first step; null: 6 times `active`, at most half of the features (a quarter for jumprelu and "
        "relu, of an expert's with switch), and `active` with run.start_from.",
    )
    anneal: Share = Field(default=0.3, description="Share of the steps in which k falls to `active`.")
    rank_by: Literal["row", "target"] = Field(
        default="row",
        description="What an activation is multiplied with to be ranked: the norm of its whole decoder row, or its root mean "
        f"square over the layers written to, which gives late layers of a clt more features ({readers('rank_by')}).",
    )
    penalty: float | None = Field(
        default=None,
        gt=0,
        description="Weight of the penalty, which then decides how many are active; null: thresholds or biases are "
        f"steered so that `active` are ({readers('penalty')}).",
    )
    penalty_scale: float = Field(
        default=4.0,
        gt=0,
        description=f"c in tanh(c · decoder norm · activation) ({readers('penalty_scale')}).",
    )
    penalty_warmup: Share = Field(default=1.0, description="Share of the steps in which the penalty rises from zero.")
    bandwidth: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description=f"Width of the band around a threshold that moves it, as a share of it ({readers('bandwidth')}).",
    )
    band_probability: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Probability that a near miss inside the band is looked at; each then counts more.",
    )
    experts: Whole = Field(
        default=8, ge=2, description=f"N, parts of the features of which a token sees one ({readers('experts')})."
    )
    balance_weight: float = Field(
        default=0.1,
        ge=0,
        description=f"Weight of the loss that keeps experts equally busy ({readers('balance_weight')}).",
    )
    prefixes: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        min_length=1,
        description="Matryoshka: the first so many features of every layer reconstruct by themselves too; null: none.",
    )
    prefixes_drawn: Whole = Field(
        default=0, ge=0, description="So many prefixes more, of sizes drawn anew at every step; 0: none."
    )
    aux_active: Whole = Field(
        default=0, ge=0, description="Dead features a layer and token that learn from the error (AuxK); 0: none."
    )
    aux_weight: float = Field(default=1 / 32, gt=0, description="Weight of that loss.")
    pre_activation_weight: float = Field(
        default=3e-3, ge=0, description="Weight of the loss that lifts pre-activations of dead features."
    )
    dead_after_tokens: Whole | None = Field(
        default=None,
        ge=1,
        description="A feature silent for so many tokens is dead; null: a tenth of the run, at most 10 million.",
    )
    jacobian_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the loss that matches the MLP's derivative in the directions of other tokens.",
    )


class OptimizerSection(Section):
    """Adam and its schedule (§8)."""

    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Highest learning rate; null: by the sizes of the run; `train --find` measures it.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    moments: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32",
        description="Number format of Adam's two moments; the narrow ones are rounded stochastically, int8 in blocks of 256.",
    )
    place: Literal["device", "host"] = Field(
        default="device",
        description="Where Adam's moments lie: beside the weights, or in the host's memory where the device has too little.",
    )
    warmup_steps: Whole | None = Field(
        default=None,
        ge=0,
        description="Steps in which the learning rate rises from zero; null: 5 % of them, at most 1000; with "
        "run.start_from at least 20, also where the run has fewer.",
    )
    decay: Share = Field(default=0.2, description="Share of the steps, at the end, in which it falls to zero.")
    skip_above: float = Field(
        default=5.0,
        ge=0,
        description="A step whose error is above so many times the median of the last steps, or not finite, is skipped; 0: "
        "none is, and an error that is not finite ends the run.",
    )
    averaging: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the steps over which weights are averaged (exponentially) for the dictionary that is evaluated "
        "and written; 0: the last weights.",
    )


class EvaluationSection(Section):
    """What is measured on held-out text, and when."""

    every_steps: Whole | None = Field(
        default=None, ge=0, description="Evaluate after so many steps; 0: at the end only; null: every 5000."
    )
    tokens: Whole | None = Field(
        default=None,
        ge=1,
        description="Held-out tokens for reconstruction, density and dead features; null: a tenth of the run's, from 4096 to "
        "65536.",
    )
    replacement_tokens: Whole = Field(
        default=4096, ge=0, description="Held-out tokens that the model reads with its MLPs replaced; 0: none."
    )
    prompts: list[Text] = Field(
        default=[
            "The capital of France is",
            "Fact: the capital of the state containing Dallas is",
            "The opposite of small is",
            "Monday, Tuesday, Wednesday,",
            "When Mary and John went to the store, John gave a drink to",
        ],
        description="Prompts whose graphs are scored (replacement, completeness); []: none.",
    )
    held_out_prompts: Whole | None = Field(
        default=None,
        ge=0,
        description="Graphs of so many short prompts cut from held-out text are scored too; 0: none; null: 20, or fewer in "
        "a short run.",
    )
    faithfulness: bool = Field(
        default=True, description="Test edges and groups of features of these graphs by ablation in the model."
    )
    random_baseline: bool = Field(default=True, description="Measure a random dictionary too.")
    random_graphs: Whole | None = Field(
        default=None,
        ge=0,
        description="Graphs of so many of these prompts are scored for the random dictionary; null: all, or fewer in a short "
        "run.",
    )
    per_layer_baseline: Location | None = Field(
        default=None, description="Folder of per-layer transcoders to measure beside; null: none."
    )


class RunSection(Section):
    """How long, with what seed, and where to."""

    out: Location = Field(description="Folder for checkpoints, log, evaluation and the trained dictionary.")
    tokens: Whole = Field(ge=1, description="Tokens to train on.")
    schedule_tokens: Whole | None = Field(
        default=None,
        ge=1,
        description="Tokens that the schedules are made for, of a run that is to be extended up to there; null: `tokens`.",
    )
    start_from: Text | None = Field(
        default=None,
        description="What the weights start from: folder of a run, of a checkpoint, or folder or hub id of a dictionary; "
        "null: drawn.",
    )
    batch: Whole = Field(default=4096, ge=1, description="Tokens of a step.")
    accumulate: Whole = Field(
        default=1, ge=1, description="Parts of a batch that are computed one after the other, to save memory."
    )
    data_parallel: Whole = Field(
        default=1,
        ge=1,
        description="Groups of processes that share the tokens of a batch; the processes of a group share the features.",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**63, description="Seed of weights and of shuffling.")
    threads: Whole | None = Field(default=None, ge=1, description="CPU threads; null: as torch chooses.")
    log_every: Whole = Field(default=10, ge=1, description="Steps between two lines of the log.")
    checkpoint_every_steps: Whole | None = Field(
        default=None,
        ge=1,
        description="Steps between two checkpoints; null: a tenth of the run's, from 50 to 5000.",
    )
    tensorboard: bool = Field(default=False, description="Write OUT/tensorboard too (extra: tensorboard).")
    wandb: Text | None = Field(default=None, description="Log to this project of Weights & Biases too (extra: wandb).")
    export_dtype: Dtype | None = Field(
        default=None,
        description="Number format of the dictionary that is written at the end; null: that of its weights in training.",
    )
    export_loss: float = Field(
        default=0.05,
        gt=0,
        description="Most that NMSE may rise, in relation, from the dictionary as trained to its files; a run ends in an "
        "error above it, with the files kept.",
    )


class TrainingConfig(Section):
    """A whole run. Contradictions between its values are errors, a value that would have no effect is one too."""

    model: ModelSection
    data: DataSection
    dictionary: DictionarySection
    sparsity: SparsitySection = Field(default_factory=SparsitySection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    run: RunSection

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if problems := contradictions(self):
            raise ValueError("\n  ".join(problems))
        return self

    @property
    def steps(self) -> int:
        """Steps of the whole run; a last partial batch is dropped."""
        return self.run.tokens // self.run.batch

    @property
    def schedule_steps(self) -> int:
        """Steps that the schedules are made for."""
        return (self.run.schedule_tokens or self.run.tokens) // self.run.batch

    @property
    def export_dtype(self) -> Dtype:
        """Number format of the files: the one given, or that of the weights in training, which loses nothing."""
        return self.run.export_dtype or self.dictionary.dtype

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up: those given, or 5 % of the schedule, at most 1000.

        With weights of a dictionary at least `WARM_START`, however short the run is: Adam's first steps move every weight by
        the whole rate, which drawn weights bear.
        """
        given, least = self.optimizer.warmup_steps, WARM_START if self.run.start_from is not None else 0
        return max(least, min(1000, round(0.05 * self.schedule_steps))) if given is None else given

    @property
    def evaluate_every_steps(self) -> int:
        """Steps between evaluations: those given, or `EVALUATE_EVERY`; 0: none before the end."""
        given = self.evaluation.every_steps
        return EVALUATE_EVERY if given is None else given

    @property
    def checkpoint_every_steps(self) -> int:
        """Steps between checkpoints: those given, or a tenth of the run, within bounds."""
        given, (fewest, most) = self.run.checkpoint_every_steps, CHECKPOINT_EVERY
        return min(most, max(fewest, self.steps // 10)) if given is None else given

    @property
    def evaluation_tokens(self) -> int:
        """Held-out tokens of an evaluation: those given, or a tenth of the run, within bounds."""
        given, (fewest, most) = self.evaluation.tokens, EVALUATION_TOKENS
        return min(most, max(fewest, self.run.tokens // 10)) if given is None else given

    @property
    def dead_after_tokens(self) -> int:
        """Tokens of silence after which a feature is dead: those given, or the rule for the length of the run."""
        given = self.sparsity.dead_after_tokens
        return min(LONGEST_SILENCE, max(1, self.schedule_steps * self.run.batch // 10)) if given is None else given

    @property
    def active_at_start(self) -> float:
        """k at the first step: the one given, or the rule for `active` (never below it).

        `active` without annealing, and for a run that starts from a dictionary, which is sparse already.
        """
        active, given = self.sparsity.active, self.sparsity.active_at_start
        if self.sparsity.anneal == 0 or (given is None and self.run.start_from is not None):
            return active
        rule = rule_of(self.sparsity)
        most = rule.most_at_start * rule.searched * self.dictionary.features
        return max(active, min(6 * active, most)) if given is None else given
