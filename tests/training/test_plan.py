"""What a run needs: presets, shortages refused with a way out, ranks, time, and how it is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError, ResourceError
from circuit_tracer.sizes import duration
from circuit_tracer.training.config.files import PRESETS, load, preset_names
from circuit_tracer.training.run.cost import (
    TrainingCost,
    moved_bytes,
    operations,
    step_seconds,
)
from circuit_tracer.training.run.evaluation_cost import (
    SHARE,
    USUAL,
    Graphs,
    evaluation_seconds,
    evaluations,
    graph_seconds,
    graphs_of,
    settled,
)
from circuit_tracer.training.run.machine import Machine
from circuit_tracer.training.run.memory import buffer_bytes, device_memory, moment_bytes, snapshot_bytes
from circuit_tracer.training.run.requirements import SHARE_USABLE, Plan, make_plan, plan_run
from circuit_tracer.training.sparsity import rule_of
from circuit_tracer.training.step.dead_features import Silence
from circuit_tracer.training.step.dictionary import Dictionary
from tests.support.config_cases import small
from tests.support.plan_cases import H200, LAPTOP, PUBLISHED, TINY


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_the_machine_it_names(name: str) -> None:
    plan = make_plan(load(name), PUBLISHED[name], H200, 2 if name == "gemma-2-2b" else 1)
    plan.require_fits()
    assert plan.tokens_per_second > 1000
    promised = re.search(r"(\d+) GB with these settings", (PRESETS / f"{name}.yaml").read_text())
    if promised:
        assert sum(plan.device_needs.values()) / 1e9 == pytest.approx(int(promised[1]), rel=0.03, abs=0.6)


@pytest.mark.parametrize(("name", "billions"), [("gpt2", 2.265), ("llama-3.2-1b", 10.2), ("gemma-2-2b", 14.2)])
def test_parameters_are_those_published_for_such_dictionaries(name: str, billions: float) -> None:
    work = make_plan(load(name), PUBLISHED[name], H200).work
    assert work.parameters / 1e9 == pytest.approx(billions, rel=3e-3)


@given(
    served=st.sampled_from(
        [*product(["clt", "plt", "skip", "sae"], ["batch_topk", "jumprelu", "gated"]), ("sae", "switch")]
    ),
    layers=st.integers(1, 5),
    ranks=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=30, deadline=None)
def test_the_plan_counts_every_number_of_a_dictionary(served: Any, layers: int, ranks: int, dtype: str) -> None:
    (kind, activation), features = served, 40 * ranks
    config = small(
        dictionary__kind=kind,
        dictionary__features=features,
        dictionary__dtype=dtype,
        sparsity__activation=activation,
        **({"sparsity__experts": 2} if activation == "switch" else {}),
    )
    work = TrainingCost(config, replace(TINY, n_layers=layers), ranks, features, on_cpu=True)
    owned, rule = slice(40 * ranks - 40, features), rule_of(config.sparsity)
    dictionary = Dictionary.initial(kind, layers, features, 16, owned=owned, own=rule.own, experts=rule.experts)
    assert work.parameters == sum(tensor.numel() for tensor in dictionary.tensors().values())
    kept = [*dictionary.norms, *Silence.initial(dictionary).tokens]
    held = work.parameters * getattr(torch, dtype).itemsize + sum(tensor.nbytes for tensor in kept)
    assert device_memory(work)["weights"] == held
    assert snapshot_bytes(work) == held + moment_bytes(work)


def test_the_buffer_is_counted_where_it_lies() -> None:
    for place, kept in (("device", "device_needs"), ("pinned", "host_needs"), ("disk", "disk_needs")):
        plan = make_plan(small(data__buffer_place=place, data__buffer_tokens=10_000), TINY, H200)
        assert buffer_bytes(plan.work) == 10_000 * 3 * 16 * 2 * 4
        for needs in ("device_needs", "host_needs", "disk_needs"):
            assert ("activation buffer" in getattr(plan, needs)) == (needs == kept)
    on_host = make_plan(small(data__buffer_tokens=10_000), TINY, LAPTOP)
    assert "activation buffer" in on_host.device_needs
    assert not on_host.host_needs


def test_accumulation_and_averages_are_planned() -> None:
    plain, parts, averaged = (
        make_plan(small(sparsity__activation="topk", **changes), TINY, LAPTOP)  # which needs no calibration
        for changes in ({}, {"run__accumulate": 4}, {"optimizer__averaging": 0.1})
    )
    weights, entries, batch = plain.work.parameters * 4, "active entries", "batch, outputs and errors"
    assert parts.device_needs["summed gradients"] == averaged.device_needs["averages"] == weights
    assert parts.device_needs[entries] == pytest.approx(plain.device_needs[entries] / 4, abs=1)
    assert parts.device_needs[batch] < 0.6 * plain.device_needs[batch]
    assert averaged.device_needs[entries] == plain.device_needs[entries]
    assert averaged.disk_needs["checkpoints"] == plain.disk_needs["checkpoints"] + weights
    assert {"summed gradients", "averages"}.isdisjoint(plain.device_needs)
    assert operations(parts.work) == 4 * operations(plain.work)
    on_gpu = [replace(each.work, on_cpu=False) for each in (plain, parts)]
    rows = plain.work.owned * plain.work.pairs * plain.work.sizes.d_model
    moved = [moved_bytes(work)["decoders"] for work in on_gpu]
    assert moved[1] - moved[0] == 3 * rows * (4 + 4), "each part reads the weights and writes gradients"


def test_the_plan_says_the_learning_rate() -> None:
    text = str(make_plan(small(optimizer__learning_rate=2e-3, optimizer__warmup_steps=1), TINY, LAPTOP))
    assert "learning rate: 2.0e-03, reached after 1 of 2 steps" in text
    assert "learning rate: 1.2e-02 by rule, reached after 0 of 2 steps" in str(make_plan(small(), TINY, LAPTOP))
    warm = small(optimizer__warmup_steps=None, run__start_from="some/dictionary")
    assert "not reached: it rises over 20 steps, and there are 2" in str(make_plan(warm, TINY, LAPTOP))


def test_a_run_that_goes_on_is_planned_by_the_steps_left() -> None:
    whole, rest = (make_plan(small(run__tokens=4096 * 100), TINY, LAPTOP, done=done) for done in (0, 75))
    assert rest.seconds == pytest.approx(whole.seconds / 4)
    assert "for the last 25 of 100 steps of 4096 tokens" in str(rest)
    assert "for 100 steps of 4096 tokens" in str(whole)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_cut_short_and_its_evaluation_with_it(name: str) -> None:
    length = ("8192", "8_192_000", "300_000_000")
    plans = [make_plan(load(name, {"run.tokens": tokens}), PUBLISHED[name], H200) for tokens in length]
    graphs = [graphs_of(plan.work) for plan in plans]
    assert graphs[0] == Graphs(named=5, held_out=0, of_random=0, of_baseline=0)
    assert graphs[0].all <= graphs[1].all <= graphs[2].all
    assert graphs[2] == Graphs(5, 20, 25, 0)
    usual = USUAL[False]
    for plan, count in zip(plans, graphs, strict=True):
        took = count.all * evaluations(plan.work.config) * graph_seconds(plan.work, usual)
        training = plan.work.config.steps * sum(step_seconds(plan.work, usual).values())
        assert count.all == 5 or took <= SHARE * training
        assert settled(plan.work).evaluation.held_out_prompts == count.held_out
        parts = evaluation_seconds(plan.work, H200)
        assert parts["graphs"] == pytest.approx(count.all * graph_seconds(plan.work, H200))
        assert f"about {duration(sum(parts.values()))}" in str(plan).split("evaluation")[1]


def test_the_number_of_graphs_is_the_one_given_and_no_matter_of_how_busy_the_machine_is() -> None:
    given = small(evaluation__held_out_prompts=7, evaluation__random_graphs=3, evaluation__prompts=["a"])
    assert graphs_of(make_plan(given, TINY, LAPTOP).work) == Graphs(1, 7, 3, 0)
    slow = replace(LAPTOP, flops={name: rate / 9 for name, rate in LAPTOP.flops.items()})
    open_ended = small(run__tokens=4096 * 300)
    found = {graphs_of(make_plan(open_ended, TINY, machine).work) for machine in (LAPTOP, slow)}
    assert len(found) == 1
    for changes in ({"dictionary__kind": "sae"}, {"data__kind": "activations"}):
        plan = make_plan(small(**changes), TINY, LAPTOP)
        assert graphs_of(plan.work).all == 0
        assert "held-out text" in str(plan)
        assert "prompts" not in str(plan)
    without = small(evaluation__random_baseline=False, evaluation__held_out_prompts=2)
    assert graphs_of(make_plan(without, TINY, LAPTOP).work) == Graphs(5, 2, 0, 0)


def test_filling_the_buffer_of_a_short_run_is_planned() -> None:
    changes = {"data__buffer_tokens": 4096 * 50, "model__dtype": "float32"}
    short, long = (make_plan(small(run__tokens=4096 * steps, **changes), TINY, LAPTOP) for steps in (10, 60))
    assert short.first_block_seconds == pytest.approx(40 * short.step_seconds["language model"])
    assert long.first_block_seconds == 0
    assert "to fill the buffer (data.buffer_tokens 204800)" in str(replace(short, step_seconds={"language model": 1.0}))


def test_the_cache_is_planned_where_its_size_is_known() -> None:
    config = small(data__cache="cached", data__epochs=1)
    plan = make_plan(config, TINY, replace(LAPTOP, cache_free=10**12))
    assert plan.cache_needs == {"activations": config.run.tokens * 3 * 16 * 2 * 4}
    plan.require_fits()
    with pytest.raises(ResourceError, match=r"the disk of the cache cached would hold .*leave data\.cache out"):
        make_plan(config, TINY, LAPTOP).require_fits()
    repeated = make_plan(small(data__cache="cached", data__epochs=None), TINY, LAPTOP)
    assert "the cache cached: 0.4 kB for each token" in str(repeated)
    assert not make_plan(small(), TINY, LAPTOP).cache_needs


@given(features=st.integers(1, 300), free=st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_the_number_of_features_advised_fits_and_a_larger_one_does_not(features: int, free: int) -> None:
    config = load("gpt2", {"dictionary.features": str(features * 1000), "data.buffer_place": "disk"})
    machine = replace(H200, device_free=free * 10**9)
    plan = make_plan(config, PUBLISHED["gpt2"], machine)
    if sum(plan.device_needs.values()) <= SHARE_USABLE * machine.device_free:
        plan.require_fits()
        return
    with pytest.raises(ResourceError, match=rf"of {free}\.00 GB free") as caught:
        plan.require_fits()
    advised = re.search(r"set dictionary\.features to (\d+)", str(caught.value))
    if advised is None:
        assert "lower run.batch" in str(caught.value)
        return
    assert int(advised[1]) < features * 1000
    for changed, fits in ((int(advised[1]), True), (int(advised[1]) + 64, False)):
        work = replace(plan.work, features=changed)
        assert (sum(device_memory(work).values()) <= SHARE_USABLE * machine.device_free) == fits


def test_each_shortage_is_refused_with_what_helps() -> None:
    def refusal(machine: Machine, **changes: Any) -> str:
        config = small(dictionary__features=2**18, data__buffer_tokens=2**16, **changes)
        with pytest.raises(ResourceError) as caught:
            make_plan(config, PUBLISHED["gpt2"], machine).require_fits()
        return str(caught.value)

    said = refusal(LAPTOP)
    for part in ("memory of cpu would hold", "set dictionary.dtype to bfloat16", "lower data.buffer_tokens"):
        assert part in said
    assert "torchrun" not in said  # processes on one machine share its memory
    assert "torchrun" in refusal(H200)
    assert "choose run.out on a larger disk" in refusal(replace(H200, device_free=10**15, disk_free=10**9))
    said = refusal(replace(H200, device_free=10**15, host_free=10**9), data__buffer_place="pinned")
    assert "memory of the host would hold 7.25 GB" in said
    many = refusal(replace(H200, device_free=5 * 10**11), sparsity__activation="relu", sparsity__active=2.0**15)
    assert "lower run.batch, which shrinks the active entries" in many


def test_ranks_share_weights_and_work() -> None:
    alone, shared = (make_plan(load("gpt2"), PUBLISHED["gpt2"], H200, ranks) for ranks in (1, 2))
    for part in ("weights", "moments", "active entries"):
        assert shared.device_needs[part] == pytest.approx(alone.device_needs[part] / 2, rel=1e-4)
    assert shared.disk_needs == alone.disk_needs
    assert shared.seconds < alone.seconds
    assert "shared by 2 processes" in str(shared)


def test_groups_share_tokens_and_each_holds_the_dictionary() -> None:
    alone, shared = (
        make_plan(load("gpt2", {"run.data_parallel": str(groups)}), PUBLISHED["gpt2"], H200, 2 * groups)
        for groups in (1, 4)
    )
    assert shared.work.batch == alone.work.batch // 4
    for part in ("weights", "moments", "activation buffer"):
        assert shared.device_needs[part] == alone.device_needs[part]
    assert shared.device_needs["active entries"] < alone.device_needs["active entries"]
    assert shared.step_seconds["encoders"] == pytest.approx(alone.step_seconds["encoders"] / 4)
    assert shared.step_seconds["communication"] > alone.step_seconds["communication"] > 0
    assert "shared by 2 processes; 4 groups share the tokens" in str(shared)
    with pytest.raises(
        InputError, match=r"run\.data_parallel is 4, but the run has 1 process, .* Start a multiple of 4"
    ):
        make_plan(load("gpt2", {"run.data_parallel": "4"}), PUBLISHED["gpt2"], H200)


def test_checkpoints_are_written_in_the_background_where_the_host_has_room() -> None:
    plan = make_plan(load("gpt2"), PUBLISHED["gpt2"], H200)
    assert plan.background
    assert plan.host_needs["copy for checkpoints"] == pytest.approx(22.7e9, rel=0.01)
    small_host = make_plan(load("gpt2"), PUBLISHED["gpt2"], replace(H200, host_free=30 * 10**9))
    assert not small_host.background
    small_host.require_fits()  # it is only slower
    for free, background in ((10**9, True), (10**7, False)):
        on_cpu = make_plan(small(), TINY, replace(LAPTOP, device_free=free, host_free=free))
        assert on_cpu.background == ("copy for checkpoints" in on_cpu.device_needs) == background


def test_moments_in_the_hosts_memory_leave_the_device_and_take_time() -> None:
    beside, away = (
        make_plan(load("gpt2", {"optimizer.place": place}), PUBLISHED["gpt2"], H200) for place in ("device", "host")
    )
    assert away.host_needs["moments of the host"] == beside.device_needs["moments"]
    assert away.device_needs["moments"] < 0.07 * beside.device_needs["moments"]
    assert away.seconds >= beside.seconds
    with pytest.raises(ResourceError, match=r"set optimizer\.place to host"):
        make_plan(load("gpt2"), PUBLISHED["gpt2"], replace(H200, device_free=24 * 10**9)).require_fits()
    make_plan(
        load("gpt2", {"optimizer.place": "host"}), PUBLISHED["gpt2"], replace(H200, device_free=24 * 10**9)
    ).require_fits()


def test_layers_that_the_model_does_not_have() -> None:
    with pytest.raises(InputError, match="names layer 3, but tiny has 3 layers; use numbers from 0 to 2"):
        make_plan(small(dictionary__kind="plt", dictionary__layers=[1, 3]), TINY, H200)
    assert make_plan(small(dictionary__kind="plt", dictionary__layers=[0, 2]), TINY, H200).work.layers == 2


def test_the_text_adds_up() -> None:
    plan = make_plan(load("gpt2"), PUBLISHED["gpt2"], H200)
    text = str(plan)
    assert "clt of gpt2: 12 layers of 32768 features, 2.27 billion parameters" in text
    parts = [
        float(size) for size in re.findall(r"^  .* ([\d.]+) GB$", text.split("memory of the host")[0], re.MULTILINE)
    ]
    assert len(parts) == len(plan.device_needs)
    assert sum(parts) == pytest.approx(sum(plan.device_needs.values()) / 1e9, abs=0.1)
    assert "an estimate from 50 TFLOP/s in float32, 700 TFLOP/s in bfloat16 and 4e+03 GB/s" in text


def test_more_work_takes_longer() -> None:
    def seconds(**changes: str) -> Plan:
        return make_plan(
            load("gpt2", {key.replace("__", "."): value for key, value in changes.items()}), PUBLISHED["gpt2"], H200
        )

    base = seconds()
    assert seconds(run__tokens="600_000_000").seconds == pytest.approx(2 * base.seconds, rel=1e-3)
    assert 1.5 < seconds(sparsity__active="24").step_seconds["decoders"] / base.step_seconds["decoders"] < 2
    assert seconds(dictionary__kind="plt").step_seconds["decoders"] < base.step_seconds["decoders"] / 6
    assert seconds(sparsity__jacobian_weight="1").step_seconds["language model"] == pytest.approx(
        3 * base.step_seconds["language model"]
    )


def test_a_run_is_planned_from_the_models_configuration_alone(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_embd": 16, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 47, "n_positions": 256}))
    changes: dict[str, Any] = {"model__name": str(tmp_path), "run__out": str(tmp_path / "run")}
    plan = plan_run(small(**changes), torch.device("cpu"))
    assert (plan.work.sizes.n_layers, plan.work.sizes.d_model, plan.work.sizes.d_mlp) == (3, 16, 64)
    assert plan.work.sizes.embedding_parameters == 47 * 16
    plan.require_fits()
    with pytest.raises(InputError, match="context_length is 257, but the model's context length is 256"):
        plan_run(small(**changes, data__context_length=257), torch.device("cpu"))
    with pytest.raises(InputError, match="no language model at"):
        plan_run(small(model__name=str(tmp_path / "none")), torch.device("cpu"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4, "4 s"), (95, "95 s"), (100, "2 min"), (5900, "98 min"), (12_000, "3 h 20 min"), (270_000, "3 days 3 h")],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words
