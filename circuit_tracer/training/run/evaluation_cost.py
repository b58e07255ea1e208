"""What an evaluation takes, and how many graphs a run of some length scores when its configuration leaves that open.

A graph is traced for every prompt and dictionary, and tested by ablation; of a short run they would outlast the training.
Letters: S source layers, P positions of a prompt, F features of a layer, D width, k active features.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.evaluation.settings import USUAL_PROMPTS
from circuit_tracer.training.run.cost import TrainingCost, step_seconds
from circuit_tracer.training.run.machine import Machine

SHARE = 1 / 4  # of the time of training, that graphs may take where nothing is said about their number
PROMPT = 12  # P, about
COPIES = 50  # of the prompt that are read to test a graph (evaluation/faithfulness.py)
# Of a graph: seconds a layer that its size does not explain, and how much longer the rest takes than its operations at full
# rate; as measured on a CPU, with graphs of some hundred features of the embedded model and of SmolLM2.
LAYER_SECONDS, SLOWER = 0.02, 2.0
# Numbers of graphs shall not depend on how busy a machine is: they follow from rates of no machine in particular.
USUAL = {
    True: Machine("cpu", {"float32": 1e11, "bfloat16": 1e11}, 2e10, 0, 0, 0),
    False: Machine("cuda", {"float32": 3e13, "bfloat16": 5e14}, 3e12, 0, 0, 0),
}


@dataclass(frozen=True)
class Graphs:
    """How many are scored. named, held_out: prompts, of the configuration and cut from text."""

    named: int
    held_out: int
    of_random: int
    of_baseline: int

    @property
    def all(self) -> int:
        """Of all dictionaries."""
        return self.named + self.held_out + self.of_random + self.of_baseline


def graphs_of(work: TrainingCost) -> Graphs:
    """Those that the configuration names; where it leaves a number open, as many as fit into `SHARE` of the training's time on
    a machine of `USUAL` rates, split over the run's evaluations. The named prompts are always scored.
    """
    config, wanted = work.config, work.config.evaluation
    named, baseline = len(wanted.prompts), wanted.per_layer_baseline is not None
    if not _has_graphs(work):
        return Graphs(0, 0, 0, 0)
    training = config.steps * sum(step_seconds(work, USUAL[work.on_cpu]).values())
    affordable = int(SHARE * training / (evaluations(config) * graph_seconds(work, USUAL[work.on_cpu])))
    dictionaries = 1 + baseline + (wanted.random_baseline and wanted.random_graphs is None)
    held_out = wanted.held_out_prompts
    if held_out is None:
        held_out = min(USUAL_PROMPTS, max(0, affordable // dictionaries - named))
    prompts = named + held_out
    left = affordable - (1 + baseline) * prompts if wanted.random_graphs is None else wanted.random_graphs
    of_random = min(prompts, max(0, left)) if wanted.random_baseline else 0
    return Graphs(named, held_out, of_random, baseline * prompts)


def settled(work: TrainingCost) -> TrainingConfig:
    """The configuration of ``work`` with every number of its evaluation."""
    config = work.config
    update = {"tokens": config.evaluation_tokens}
    if _has_graphs(work):
        graphs = graphs_of(work)
        update |= {"held_out_prompts": graphs.held_out}
        update |= {"random_graphs": graphs.of_random} if config.evaluation.random_baseline else {}
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=update)})


def evaluations(config: TrainingConfig) -> int:
    """Of a run: the one at its end, and those on the way."""
    every = config.evaluate_every_steps
    return 1 + ((config.steps - 1) // every if every else 0)


def evaluation_seconds(work: TrainingCost, machine: Machine) -> dict[str, float]:
    """Seconds of one evaluation by part: an estimate."""
    wanted, rate = work.config.evaluation, _rate(machine)
    dictionaries = 1 + wanted.random_baseline + (wanted.per_layer_baseline is not None)
    reading = work.config.evaluation_tokens * (_pass_flop(work) + dictionaries * _dictionary_flop(work))
    # the model itself, every dictionary, and both ablations
    replaced = wanted.replacement_tokens if work.sizes.parameters else 0
    replacing = replaced * ((3 + dictionaries) * _pass_flop(work) + dictionaries * _dictionary_flop(work))
    parts = {"held-out text": (reading + replacing) / rate}
    if count := graphs_of(work).all:
        parts["graphs"] = count * graph_seconds(work, machine)
    return parts


def graph_seconds(work: TrainingCost, machine: Machine) -> float:
    """Seconds of one graph: its rows (attribution/README.md §4), and the passes that test it."""
    width, layers = work.sizes.d_model, work.sizes.n_layers
    rows = (PROMPT - 1) * work.layers * work.config.sparsity.active
    # a row: values and outputs of half the layers and positions, and half of the decoder rows
    row = 0.75 * PROMPT * width**2 * layers + rows * work.pairs / work.layers * width
    tests = COPIES * PROMPT * _pass_flop(work) if work.config.evaluation.faithfulness else 0.0
    return LAYER_SECONDS * layers + SLOWER * (rows * row + tests) / _rate(machine)


def _has_graphs(work: TrainingCost) -> bool:
    """An autoencoder replaces no MLP, and activations that were made elsewhere have no prompts."""
    return work.config.dictionary.kind != "sae" and work.config.data.kind != "activations"


def _pass_flop(work: TrainingCost) -> float:
    return 2.0 * (work.sizes.parameters - work.sizes.embedding_parameters)


def _dictionary_flop(work: TrainingCost) -> float:
    encoders = 2.0 * work.layers * work.features * work.sizes.d_model
    return encoders + 2.0 * work.config.sparsity.active * work.pairs * work.sizes.d_model


def _rate(machine: Machine) -> float:
    """The dictionary that was written is measured in float32."""
    return machine.flops["float32"]
