"""What memory, disk and time a run will need, said before it starts; a run that would not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from circuit_tracer.errors import ResourceError
from circuit_tracer.models.model_pass import require_context
from circuit_tracer.models.outline import outline
from circuit_tracer.ranks import Ranks
from circuit_tracer.sizes import duration
from circuit_tracer.training.config.schema import TrainingConfig
from circuit_tracer.training.data.given.source import model_layers, open_rows
from circuit_tracer.training.data.points import width_of
from circuit_tracer.training.feature_ranks import group_size
from circuit_tracer.training.run.cost import ModelSizes, TrainingCost, step_seconds
from circuit_tracer.training.run.evaluation_cost import evaluation_seconds, evaluations, graphs_of
from circuit_tracer.training.run.machine import Machine, local_processes, measure
from circuit_tracer.training.run.memory import (
    buffer_bytes,
    cache_space,
    cached_token_bytes,
    device_memory,
    disk_space,
    host_memory,
    snapshot_bytes,
)
from circuit_tracer.training.step import schedules

SHARE_USABLE = 0.95  # of free memory: allocators lose some to gaps
SHARE_OPTIONAL = 0.7  # of the host's free memory that a run fills with what only saves time
SNAPSHOT = "copy for checkpoints"
GB = 1e9


@dataclass(frozen=True)
class Plan:
    """The needs of one process beside what is free to it. `str` is the text for people."""

    work: TrainingCost
    machine: Machine
    device_needs: dict[str, int]  # bytes by what they hold
    host_needs: dict[str, int]
    disk_needs: dict[str, int]
    cache_needs: dict[str, int]
    step_seconds: dict[str, float]  # by phase; an estimate
    done: int = 0  # steps that a run which goes on has behind it

    @property
    def background(self) -> bool:
        """Whether checkpoints are written from a copy while training goes on: where the host's memory is ample."""
        return SNAPSHOT in self.host_needs or SNAPSHOT in self.device_needs

    @property
    def seconds(self) -> float:
        """Estimated time of the steps left, without evaluation and checkpoints."""
        return self.steps_left * sum(self.step_seconds.values())

    @property
    def steps_left(self) -> int:
        """Steps that the run will do."""
        return max(0, self.work.config.steps - self.done)

    @property
    def first_block_seconds(self) -> float:
        """Estimated time of the model's passes that fill the shuffle buffer beyond what the steps left take out of it."""
        config = self.work.config
        more = max(0, config.data.buffer_tokens - self.steps_left * config.run.batch)
        return more / config.run.batch * self.step_seconds.get("language model", 0.0)

    @property
    def tokens_per_second(self) -> float:
        """Estimated speed."""
        return self.work.config.run.batch / sum(self.step_seconds.values())

    def require_fits(self) -> None:
        """Raise ResourceError, with numbers and what to change, if memory or disk would not suffice."""
        short = [
            f"{place} would hold {sum(needs.values()) / GB:.2f} GB, but of {free / GB:.2f} GB free only "
            f"{SHARE_USABLE:.0%} can be counted on"
            for place, needs, free in self._places()
            if sum(needs.values()) > SHARE_USABLE * free
        ]
        if short:
            raise ResourceError(f"the run does not fit: {'; '.join(short)}. {self._advice()}")

    def _places(self) -> list[tuple[str, dict[str, int], int]]:
        machine = self.machine
        return [
            (f"memory of {machine.device}", self.device_needs, machine.device_free),
            ("memory of the host", self.host_needs, machine.host_free),
            (f"the disk of {self.work.config.run.out}", self.disk_needs, machine.disk_free),
            (f"the disk of the cache {self.work.config.data.cache}", self.cache_needs, machine.cache_free),
        ]

    def _advice(self) -> str:
        work, config, advice = self.work, self.work.config, list[str]()
        if sum(self.disk_needs.values()) > SHARE_USABLE * self.machine.disk_free:
            advice.append("choose run.out on a larger disk")
        if sum(self.cache_needs.values()) > SHARE_USABLE * self.machine.cache_free:
            advice.append("leave data.cache out, or choose it on a larger disk")
        if sum(self.device_needs.values()) > SHARE_USABLE * self.machine.device_free:
            fits = _most_features(work, self.machine)
            advice.append(f"set dictionary.features to {fits}" if fits else "lower run.batch")
            if config.dictionary.dtype == "float32":
                advice.append("set dictionary.dtype to bfloat16")
            if config.data.buffer_place == "device" and buffer_bytes(work) > 0.1 * self.machine.device_free:
                advice.append("lower data.buffer_tokens or set data.buffer_place to disk")
            if self.device_needs["active entries"] > 0.1 * self.machine.device_free:
                advice.append("lower run.batch, which shrinks the active entries")
            if not self.machine.on_host:
                if config.optimizer.place == "device":
                    advice.append("set optimizer.place to host")
                advice.append("share the features over more devices with torchrun")
                if work.replicas > 1:
                    advice.append("lower run.data_parallel, so that more processes share the features")
        if sum(self.host_needs.values()) > SHARE_USABLE * self.machine.host_free:
            advice.append("lower data.buffer_tokens or set data.buffer_place to disk")
        return f"To make it fit: {'; or '.join(advice)}."

    def __str__(self) -> str:
        work, config = self.work, self.work.config
        whole = replace(work, ranks=1).parameters
        shared = f", shared by {work.ranks} processes" if work.ranks > 1 else ""
        shared += f"; {work.replicas} groups share the tokens" if work.replicas > 1 else ""
        lines = [
            f"{config.dictionary.kind} of {work.sizes.name}: {work.layers} layers of {work.features} features, "
            f"{_count(whole)} parameters{shared}",
        ]
        for place, needs, free in self._places():
            if needs:
                lines.append(f"{place}: {sum(needs.values()) / GB:.2f} GB of {free / GB:.1f} GB free")
                lines += [f"  {name:<26}{size / GB:>9.2f} GB" for name, size in _largest_first(needs)]
        if config.data.cache is not None and not self.cache_needs:
            each = cached_token_bytes(work)
            lines.append(f"the cache {config.data.cache}: {each / 1000:.1f} kB for each token of a pass over the data")
        lines += self._time()
        return "\n".join(lines)

    def _time(self) -> list[str]:
        config, machine = self.work.config, self.machine
        total, left = sum(self.step_seconds.values()), self.steps_left
        settled = schedules.settled(config, self.work.layers, self.work.sizes.d_model).optimizer
        by_rule = " by rule" if config.optimizer.learning_rate is None else ""
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in machine.flops.items())
        return [
            f"learning rate: {settled.learning_rate:.1e}{by_rule}, {_reached(config)}",
            f"time: about {duration(self.seconds)} for {f'the last {left} of ' if self.done else ''}{config.steps} steps "
            f"of {config.run.batch} tokens, {self.tokens_per_second:,.0f} tokens/s",
            *(
                f"  {name:<26}{100 * part / total:>9.0f} %"
                for name, part in sorted(self.step_seconds.items(), key=lambda item: -item[1])
            ),
            f"  an estimate from {rates} and {machine.bytes_per_second / GB:.3g} GB/s, measured on {machine.device} just "
            "now; checkpoints come on top",
            *self._first_block(),
            *self._evaluation(),
        ]

    def _first_block(self) -> list[str]:
        seconds = self.first_block_seconds
        if seconds < 0.05 * self.seconds:
            return []
        buffer = self.work.config.data.buffer_tokens
        return [f"before: about {duration(seconds)} more to fill the buffer (data.buffer_tokens {buffer})"]

    def _evaluation(self) -> list[str]:
        """What is measured at the end and on the way, and what was left out as the run is short."""
        work, graphs = self.work, graphs_of(self.work)
        seconds, times = evaluation_seconds(work, self.machine), evaluations(work.config)
        number = f"{times} evaluations" if times > 1 else "evaluation"
        lines = [f"{number}: about {duration(sum(seconds.values()))}{' each' if times > 1 else ''} on top"]
        lines += [f"  {name:<26}{duration(part):>11}" for name, part in seconds.items()]
        if graphs.all:
            prompts = graphs.named + graphs.held_out
            lines.append(
                f"  {prompts} prompts, {graphs.held_out} of them held out (evaluation.held_out_prompts); "
                f"{graphs.of_random} for the random dictionary too (evaluation.random_graphs)"
            )
        return lines


def make_plan(config: TrainingConfig, sizes: ModelSizes, machine: Machine, world: int = 1, done: int = 0) -> Plan:
    """The plan of one of ``world`` processes on a machine, of which ``done`` steps are behind it.

    Raises InputError if `dictionary.layers` are not in the model, or `run.data_parallel` does not divide the processes.
    """
    groups = config.run.data_parallel
    ranks = group_size(world, groups)
    work = TrainingCost(config, sizes, ranks, config.dictionary.features, machine.device == "cpu", groups)
    beside, host = device_memory(work), host_memory(work)
    if machine.on_host:  # one memory for both
        beside, host = {**beside, **host}, {}
    used = beside if machine.on_host else host
    if sum(used.values()) + snapshot_bytes(work) <= SHARE_OPTIONAL * machine.host_free:
        used[SNAPSHOT] = snapshot_bytes(work)
    return Plan(work, machine, beside, host, disk_space(work), cache_space(work), step_seconds(work, machine), done)


def plan_run(config: TrainingConfig, device: torch.device, world: int = 1, done: int = 0) -> Plan:
    """Plan a run on this machine, before the model is loaded: reads the model's configuration, no weights; takes a second.

    Raises InputError when there is no such model, or its context is shorter than `data.context_length`; UnsupportedModelError
    for an architecture outside the table.
    """
    sizes = _sizes(config)
    formats = {
        config.model.dtype,
        config.dictionary.dtype,
        "float32",
        "float32" if device.type == "cpu" else "bfloat16",
    }
    machine = measure(device, formats, config.run.out, config.run.threads, local_processes(), config.data.cache)
    return make_plan(config, sizes, machine, world, done)


def _sizes(config: TrainingConfig) -> ModelSizes:
    """Of the model; where its activations were made elsewhere, without weights and passes."""
    if config.data.kind != "activations":
        parts = outline(config.model.name, config.model.revision)
        require_context(parts, config.data.context_length)
        return replace(ModelSizes.of(parts), d_model=width_of(config.dictionary, parts))
    description = open_rows(config.data.path or "", Ranks()).description
    return ModelSizes(description.model, model_layers(description), description.width, 0, 0, 0)


def _reached(config: TrainingConfig) -> str:
    """When the highest learning rate is."""
    if config.warmup_steps > config.schedule_steps:
        return f"not reached: it rises over {config.warmup_steps} steps, and there are {config.schedule_steps}"
    return f"reached after {config.warmup_steps} of {config.schedule_steps} steps"


def _most_features(work: TrainingCost, machine: Machine) -> int:
    """The most features that fit, to a multiple of 64 on each rank; 0 if not even those."""
    step = 64 * work.ranks
    low, high = 0, work.features // step
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(device_memory(replace(work, features=middle * step)).values()) <= SHARE_USABLE * machine.device_free
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * step


def _largest_first(needs: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(needs.items(), key=lambda item: -item[1])


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
