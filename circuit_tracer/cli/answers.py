"""What commands print with `--json`: the types of their lines, where no type of the package says it already.

Nodes, features and graphs have the ids that they have everywhere. Numbers that are not finite are null. The table of commands
is in schemas.py, which tests and the documentation read; commands need none of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from circuit_tracer.circuits.story.story import Evidence
from circuit_tracer.circuits.supernodes import GroupingScore, Role
from circuit_tracer.graph.attention_scores import AttentionScore
from circuit_tracer.many.fingerprints.predict import Score
from circuit_tracer.many.report.behaviour import Behaviour
from circuit_tracer.many.report.findings import Finding
from circuit_tracer.many.report.halves import Halves
from circuit_tracer.many.report.report import Unexplained
from circuit_tracer.many.report.separation import Separator
from circuit_tracer.many.report.steering import Steered
from circuit_tracer.many.report.trust import Trust
from circuit_tracer.probes.evaluate import Share as ShareOfRows
from circuit_tracer.training.evaluation.results import ModelItself
from circuit_tracer.training.run.find import Trial
from circuit_tracer.viewer.server.head_messages import EdgeAnswer


class Line(BaseModel):
    """A line; it has these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Failure(Line):
    """What went wrong. kind: the class of the error; UsageError for options that there are not, Interrupted after Ctrl-C."""

    kind: str
    message: str


class Failed(Line):
    """The last line of a command that failed, which says the same on standard error, and ends with another status than 0."""

    error: Failure


class Written(Line):
    """Files that were written."""

    files: list[str]


class Target(Line):
    """What a graph explains. weight: for a token its probability."""

    text: str
    id: int
    position: int
    weight: float


class Summary(Line):
    """A graph in numbers. nmse, l0: of the transcoders, by layer. done, can_go_on: of a trace that was interrupted."""

    prompt: str
    model: str
    scan: str | list[str] | None
    n_tokens: int
    targets: list[Target]
    active_features: int
    feature_nodes: int
    nodes: int
    edges: int
    replacement_score: float
    completeness_score: float
    strict_completeness_score: float
    worst_residual: float | None
    nmse: list[float] = Field(default=[])
    l0: list[float] = Field(default=[])
    kind: str | None = None
    seconds: float | None = None
    interrupted: bool = False
    memory_plan: str | None = None
    neurons: dict[str, Any] | None = None
    warnings: list[str] = Field(default=[])
    done: str | None = None
    can_go_on: bool = False


class Traced(Summary, Written):
    """A graph that was traced. slug: its name, where it has one."""

    slug: str | None


class GraphFacts(Summary):
    """A graph file."""

    what: Literal["graph"]


class ViewerFacts(Line):
    """A graph as viewers read it. repairs: what would be mended."""

    what: Literal["graph file for viewers"]
    slug: str | None = None
    scan: str | None = None
    prompt: str | None = None
    interrupted: Any = None
    nodes: int
    links: int
    repairs: list[str]


class NeuronFacts(Line):
    """Neurons as a dictionary."""

    what: Literal["neurons of a model"]
    kind: str
    layers: int
    neurons_a_layer: int
    features_a_layer: int
    d_model: int
    reads: str
    writes: str
    fits: str
    note: str


class ModelFacts(Line):
    """A language model."""

    what: Literal["model"]
    n_layers: int
    d_model: int
    d_head: int
    n_heads: int
    d_mlp: int
    d_vocab: int
    tokenizer_name: str
    model_name: str
    original_architecture: str
    n_key_value_heads: int
    dtype: str
    parameters: int
    supported: bool


class TranscoderFacts(Line):
    """Transcoders of a folder. fits: the model that was asked about."""

    what: Literal["transcoders"]
    kind: str
    layers: int
    layers_with_transcoders: list[int] | None = None
    features_a_layer: int
    d_model: int
    activation: str
    reads: str
    writes: str
    skip_connection: bool
    dtype: str
    scan: str | list[str] | None
    model_name: str | None
    l0_taken: Any = None
    fits: str | None = None


class AutoencoderFacts(Line):
    """Autoencoders of a folder. use: what commands do with them."""

    what: Literal["sparse autoencoders"]
    layers_with_autoencoders: list[int]
    features_a_layer: int
    d_model: int
    activation: str
    reads_and_writes: str
    dtype: str
    model_name: str | None
    use: str
    l0_taken: Any = None
    fits: str | None = None


class RunFacts(Line):
    """The folder of a run over many prompts. done, failed, waiting: of its rows."""

    what: Literal["run over many prompts"]
    rows: int
    done: int
    failed: int
    waiting: int
    transcoders: str
    model: str | None
    dtype: str


class HubFacts(BaseModel):
    """Transcoders of the hub, with all that their configuration says."""

    model_config = ConfigDict(extra="allow")

    what: Literal["transcoders on the Hugging Face hub"]


class Planned(Line):
    """What a trace would take, in bytes. phases: by phase, what holds how much."""

    tokens: int
    active_features: int
    feature_nodes: int
    peak: int
    budget: int
    held: int
    keep_patterns: bool
    keep_decoder_rows: bool
    block_rows: int
    phases: dict[str, dict[str, int]]


class Pruned(Written):
    """What pruning left."""

    features: int
    features_before: int
    errors: int
    nodes: int
    edges: int
    edges_before: int
    replacement_score: float
    completeness_score: float


class RowError(Line):
    """A row of a run that failed."""

    id: str
    error: str


class RunState(Written):
    """How far a run is. errors: how many rows failed, by the kind of error; examples: a row of each."""

    run: str
    rows: int
    done: int
    failed: int
    waiting: int
    errors: dict[str, int]
    examples: list[RowError]


class CommonFeature(Line):
    """A feature and how common it is. item: layer/index."""

    item: str
    name: str
    frequency: float
    influence: float
    influence_low: float
    influence_high: float
    stability: float


class LabelFeature(Line):
    """A feature that speaks for a label. auc: of telling its graphs from others; q: p corrected for how many were tested."""

    label: str
    item: str
    name: str
    auc: float
    auc_low: float
    auc_high: float
    p: float
    q: float


class Family(Line):
    """Graphs that are alike. medoid: the one in their middle."""

    size: int
    medoid: str
    labels: dict[str, int]


class Aggregated(Written):
    """What a set of graphs has in common. common: curves over the share of graphs that something is in."""

    n_graphs: int
    n_features: int
    n_edges: int
    settings: dict[str, Any]
    features: list[CommonFeature]
    common: dict[str, list[float]]
    labels: list[LabelFeature]
    families: list[Family]


class FingerprintTable(Written):
    """A table of fingerprints: a row a graph."""

    rows: int
    numbers: int


class Predicted(Written):
    """How well fingerprints tell labels apart, beside their baselines."""

    positive: str
    rows: int
    positives: int
    groups: int
    folds: int
    without_label: int
    scores: list[Score]
    places: list[int]


@dataclass(frozen=True, kw_only=True)
class SteeredLine(Steered):
    """With whether it steers: more than random groups of its size do."""

    steers: bool = field()  # and not the property of that name


@dataclass(frozen=True, kw_only=True)
class FindingLine(Finding):
    """With what came of it, in words."""

    steered: list[SteeredLine]  # type: ignore[assignment]
    outcome: Literal["cause", "marker", "separates only", "did not hold"] = field()


@dataclass(frozen=True, kw_only=True)
class SeparatorLine(Separator):
    """With whether it holds on the second half."""

    holds: bool = field()


class Reported(Line):
    """What a run shows; its files are report.html and report.json in its folder."""

    version: int
    conclusions: list[str]
    behaviour: list[Behaviour]
    trust: Trust
    halves: Halves
    separators: list[SeparatorLine]
    findings: list[FindingLine]
    unexplained: Unexplained
    repeat: dict[str, Any]


class HeadCount(Line):
    """How many edges have this head among their strongest first and last ones."""

    layer: int
    head: int
    first: int
    last: int


class EdgeOverHeads(Line):
    """An edge and its strongest heads, each [layer, head, weight]."""

    source: str
    target: str
    weight: float
    direct: float
    mean_hops: float
    first: list[tuple[int, int, float]]
    last: list[tuple[int, int, float]]


class Explained(Line):
    """Heads of edges (of all, or of those of --edge in full), and scores of --score."""

    heads: list[HeadCount] | None = None
    edges: list[EdgeOverHeads] | list[EdgeAnswer] | None = None
    scores: list[AttentionScore] | None = None


class ToldSentence(Line):
    """A claim of a graph. status: what testing it gave. rephrased_by: the model that put it into these words."""

    kind: str
    text: str
    node_ids: list[str]
    evidence: Evidence | None
    rephrased_by: str | None
    status: Literal["holds", "does not hold", "not tested"]


class Told(Line):
    """What a graph says of its prompt."""

    title: str
    prompt: str
    target: str
    sentences: list[ToldSentence]
    left_out: list[str]
    seconds: float
    version: int


class DemoTold(Traced):
    """The embedded model's graph of a prompt, and its story."""

    story: Told


class GroupInCircuit(Line):
    """A group, what it has of the influence on the outputs, and its inputs: [title, share]."""

    title: str
    role: Role
    members: list[str]
    influence: float
    inputs: list[tuple[str, float]]


class Grouped(Line):
    """Groups of a graph's nodes, each [name, role, [node, ...]], and their circuit, readers after what they read."""

    supernodes: list[tuple[str, Role, list[str]]]
    settings: dict[str, str | float | int | None]
    score: GroupingScore | None
    circuit: list[GroupInCircuit]


class HeadScores(Written):
    """What every head of a model does. scores: what each column of a row is; heads: a row a head, with layer and head."""

    model: str
    dtype: str
    text: str
    n_layers: int
    n_heads: int
    n_sequences: int
    n_tokens: int
    n_skipped: int
    n_repeated: int
    losses: dict[str, float] | None
    ablated: str | None
    scores: dict[str, str]
    heads: list[dict[str, float]]


class ProbeMade(Line):
    """A probe. card: how it was made and measured."""

    name: str
    threshold: float
    bias: float
    card: dict[str, Any]
    file: str


class TokenScore(Line):
    """A token with its score; characters start ... end - 1 of the text."""

    position: int
    start: int
    end: int
    text: str
    score: float
    fires: bool


class TextScore(Line):
    """A text with its score; of probes on tokens, and with --tokens, its tokens."""

    text: str
    score: float
    fires: bool
    tokens: list[TokenScore] | None = None


class Measured(Line):
    """How well a probe does on texts that all have a label, by rows: tokens or texts."""

    rows: str
    positive: int
    negative: int
    groups: int
    auc: ShareOfRows
    recall: ShareOfRows
    false: ShareOfRows
    f1: float | None
    f1_spans: float | None


class ProbeReport(Line):
    """Behind the texts, where all have a label."""

    report: Measured


class Carrier(Line):
    """A node that carries a probe's score."""

    node: str
    what: str
    direct: float
    influence: float


class Effect(Line):
    """What the graph predicts of taking a feature out, and what it does."""

    what: str
    predicted: float
    measured: float


class ProbeExplained(Line):
    """Who carries a probe's score. direct: what it is made of, by kind of source."""

    probe: str
    text: str
    position: int | None
    token: str | None
    score: float
    threshold: float
    fires: bool
    direct: dict[str, float]
    residual: float
    errors: float
    features: list[Carrier]
    tokens: list[Carrier]
    tests: list[Effect]


class FlagReason(Line):
    """A feature that stands behind a flag. part: what it adds to the score."""

    layer: int
    feature: int
    activation: float
    part: float
    label: str | None = None


class Flag(Line):
    """Where a probe fired; characters start ... end - 1, which begin with `text`."""

    probe: str
    start: int
    end: int
    text: str
    position: int
    score: float
    features: list[FlagReason]


class Verdict(Line):
    """A text of a stream."""

    id: str
    flagged: bool
    flags: list[Flag]
    scores: dict[str, float]
    tokens: int


class Unread(Line):
    """A text of a stream that could not be read."""

    id: str
    problem: str


class Watched(Line):
    """The last line of a stream: how many texts it had."""

    texts: int
    flagged: int
    problems: int


class Calibrated(Line):
    """A probe with its new threshold. low, high: where the rate of false alarms lies."""

    name: str
    file: str
    threshold: float
    wished: float
    rate: float
    low: float
    high: float
    negatives: int


class TokenMoved(Line):
    """A token of the vocabulary before and after; ranks count from 0."""

    text: str
    token_id: int
    probability_before: float
    probability_after: float
    logit_before: float
    logit_after: float
    rank_before: int
    rank_after: int


class FeatureMoved(Line):
    """A feature before and after, at what token, and what it is called if that is known."""

    layer: int
    position: int | None
    feature_idx: int
    token: str
    label: str | None
    before: float
    after: float


class Intervened(Line):
    """What an intervention did."""

    edits: list[str]
    semantics: str
    tokens: list[TokenMoved]
    features: list[FeatureMoved]
    changed_features: int


class Generated(Line):
    """Text that was written. finish: why it ended."""

    text: str
    ids: list[int]
    finish: Literal["length", "end", "stop"]


class WatchedWriting(Line):
    """What probes saw meanwhile: scores by probe and position, where each fired first, since when edits held."""

    scores: dict[str, list[float]]
    fired: dict[str, int]
    since: int | None


class SteeredText(Line):
    """Text with interventions and without."""

    prompt: str
    interventions: list[str]
    steered: Generated | None
    unsteered: Generated | None
    watched: WatchedWriting | None = None


class Patch(Line):
    """A place whose value was put into the other prompt. effect: 1: as the prompt that it comes from."""

    site: str
    layer: int
    position: int | None
    token: str | None
    unit: int | None
    value: float
    effect: float


class Patched(Written):
    """Activation patching. base, donor: the metric on the prompt that is patched, and on the one it is patched from."""

    mode: Literal["denoising", "noising"]
    metric: str
    base: float
    donor: float
    estimated: bool
    patches: list[Patch]


class TrainingPlan(Line):
    """What a training run needs: bytes by what they hold, and seconds of a step by phase."""

    device_needs: dict[str, int]
    host_needs: dict[str, int]
    disk_needs: dict[str, int]
    cache_needs: dict[str, int]
    step_seconds: dict[str, float]
    steps_left: int
    seconds: float


class TrainingSettings(BaseModel):
    """With --print-config: the whole configuration, section by section."""

    model_config = ConfigDict(extra="allow")

    run: dict[str, Any]


class RatesFound(Written):
    """With --find: the learning rate, what each trial gave, and what the rule says. at_an_end: the best was at an end."""

    trials: list[Trial]
    trial_steps: int
    learning_rate: float
    rule: float
    at_an_end: bool


class Trained(Written):
    """A finished training run. run: its folder."""

    run: str


class Evaluated(Written):
    """How well a dictionary does beside others (training/evaluation/README.md says what each number is)."""

    conditions: dict[str, Any]
    results: dict[str, Any]
    model: ModelItself | None
    ablations: dict[str, Any]
    spliced_ablations: dict[str, Any]
    not_measured: list[str]
    density_edges: list[float]
    differences: dict[str, Any]


class Metrics(Written):
    """The demo's model, trained again; metrics: of model and transcoder."""

    metrics: dict[str, Any]


class Exported(Line):
    """Features in another form: how many files."""

    folder: str
    count: int


class Labelled(Written):
    """Features that were named, of how many. mean_score: of names that were tested."""

    labelled: int
    of: int
    mean_score: float | None = None


class Pushed(Line):
    """A dictionary on its way to the hub: the files, by their names there. to: its address, or a folder; null: --dry-run."""

    files: list[str]
    bytes: int
    left_out: list[str]
    to: str | None


class Uploaded(Line):
    """A graph on its way to Neuronpedia. sent: False with --dry-run. features: how many were sent with it."""

    slug: str
    model_id: str
    bytes: int
    nodes: int
    links: int
    features: int
    link: str
    sent: bool


class Serving(Line):
    """Where a server answers; it goes on until Ctrl-C."""

    folder: str
    url: str
