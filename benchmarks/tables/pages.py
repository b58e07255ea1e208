"""docs/results: which records stand on which page, under what heading, as which table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.tables import (
    agreement,
    attention,
    compiled,
    encoding,
    explanations,
    many,
    neurons,
    probes,
    results,
    robustness,
    training,
    viewer,
)


class Section(NamedTuple):
    """A record by its name in results/, a heading, and what makes lines of it."""

    record: str
    title: str
    lines: Callable[[dict[str, Any]], list[str]]


class Page(NamedTuple):
    """A page: its file, its title, what it answers, its sections."""

    name: str
    title: str
    about: str
    sections: tuple[Section, ...]


PAGES = (
    Page(
        "agreement",
        "Agreement with circuit-tracer",
        "Do both engines make the same graph, and do the same interventions do the same?",
        (
            Section("agreement", "Graphs", agreement.graphs),
            Section("interventions_agreement", "Interventions", agreement.interventions),
            Section("upstream", "Public names and files", agreement.upstream),
        ),
    ),
    Page(
        "speed",
        "Speed and memory",
        "How long a trace takes, what it holds, and whether the plan that is made before knows it.",
        (
            Section("speed", "Against circuit-tracer 0.5.0", results.speed),
            Section("speed_cuda", "`attribute()` on a GPU", results.against_peer),
            Section("busy", "A busy machine", results.busy),
            Section("long_prompts", "Long prompts", results.long_prompts),
            Section("memory_plan", "Memory: planned and taken", results.memory),
            Section("gemma_shaped_cuda", "6,000 tokens on a GPU", results.gemma_shaped),
            Section("waits", "Waiting for a GPU", results.waits),
            Section("kernels", "Kernels on a CPU, against torch", results.kernels),
            Section("encode_screening", "Encoding screened in bfloat16", encoding.screened),
            Section("kernels_cuda", "Kernels on a GPU, against torch", results.kernels),
            Section("kernels_compiled", "Kernels compiled for GPUs", compiled.compiled),
            Section("startup", "Command line", results.startup),
        ),
    ),
    Page(
        "faithfulness",
        "Ground truth and faithfulness",
        "Do graphs find what is known to be there, and does the model do what its graph says?",
        (
            Section("ground_truth", "Ground truth", results.ground_truth),
            Section("validation-demo", "Are graphs faithful? The embedded default", results.validation),
            Section("validation-clt-256", "The same of SmolLM2-135M with a random dictionary", results.validation),
        ),
    ),
    Page(
        "explanations",
        "Explanations",
        "Are groups of features what they are called, and does the model need them? Which explanations would look as good if "
        "they were arbitrary, is another page: [four doubts](../concepts/doubts.md).",
        (Section("explanations", "Two-hop prompts of the embedded model", explanations.world),),
    ),
    Page(
        "attention",
        "Explained attention",
        "What it costs to ask which heads carry an edge and why a head looks somewhere, and whether the answers are right.",
        (
            Section("attention_cost", "What it costs", attention.cost),
            Section("attention_scores", "Scores of all heads", attention.scores),
            Section("attention_induction", "Heads that copy", attention.induction),
            Section("attention_world", "The embedded world", attention.world),
        ),
    ),
    Page(
        "neurons",
        "Neurons as nodes",
        "Graphs without a dictionary: their cost, and their effects beside those of interventions.",
        (
            Section("neurons_cost", "What a trace costs", neurons.cost),
            Section("neurons_ablation", "Effects against interventions", neurons.ablation),
            Section("neurons_agreement", "Agreement of subject and verb", neurons.agreement),
        ),
    ),
    Page(
        "many-prompts",
        "Many prompts",
        "Graphs a minute; and whether what is found in many graphs is there: a planted trigger, a moved city, wrong answers.",
        (
            Section("throughput_embedded", "Graphs a minute: the embedded default", many.throughput),
            Section("throughput_smollm2", "Graphs a minute: SmolLM2 with 256 features a layer", many.throughput),
            Section("triggers", "Reports: a trigger planted, and none", many.triggers),
            Section("moved_city", "Two graphs compared: a city moves to another state", many.moved_city),
            Section("wrong_answers", "Fingerprints: which answers are wrong", many.wrong_answers),
        ),
    ),
    Page(
        "probes",
        "Probes and monitors",
        "What linear probes find in texts that they were not fitted on, beside simpler ways, and what watching costs.",
        (
            Section("monitor_personal", "Personal data", probes.personal),
            Section("monitor_truth", "Statements that the model does not hold true", probes.statements),
            Section("monitor_wrong", "Answers that will be wrong", probes.statements),
            Section("monitor_throughput", "What monitors cost", probes.throughput),
        ),
    ),
    Page(
        "training",
        "Training",
        "Speed and quality of trained dictionaries, beside decode-clt 0.0.1; defaults, kinds, files, warm starts.",
        (
            Section("training_speed", "Speed, against decode-clt 0.0.1", training.speed),
            Section("training_speed_cuda", "Speed on a GPU", training.cuda),
            Section("training_quality", "Quality, against decode-clt 0.0.1", training.quality),
            Section("training_rates", "Is the default learning rate the right one?", training.rates),
            Section("training_kinds", "Kinds of autoencoders at an equal budget", training.kinds),
            Section("training_export", "What the files keep", training.export),
            Section("training_warm_start", "Warm starts", training.warm_start),
            Section("training_roofline", "The least time of a step on a GPU", training.roofline),
        ),
    ),
    Page(
        "robustness",
        "Robustness",
        "What is lost when a process is killed or a disk is full, and what is read from a damaged file.",
        (
            Section("losses", "Interrupted, killed, out of space", robustness.losses),
            Section("bit_flips", "Flipped bits", robustness.flips),
            Section("fuzz", "Damaged files", robustness.fuzz),
            Section("threads", "Several threads", robustness.threads),
        ),
    ),
    Page(
        "page",
        "The page that shows a graph",
        "Is everything of a graph on it, and how fast is it drawn?",
        (Section("viewer", "Completeness and frames", viewer.shown),),
    ),
)
