"""Configurations: presets, files, single values, and every way in which one can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.training.config.files import dump, load, preset_names, validate
from circuit_tracer.training.config.keys import find, keys, nearest
from circuit_tracer.training.config.rules import without_effect
from circuit_tracer.training.config.schema import SparsitySection, TrainingConfig
from circuit_tracer.training.sparsity import RULES, rule_of
from tests.support.config_cases import SMALL, configs, small

SWITCH = {"dictionary__kind": "sae", "sparsity__activation": "switch", "sparsity__active": 4.0}
PART = {"path": "web/*.jsonl", "weight": 2.0, "kind": "jsonl"}


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_name_their_own_folder(name: str) -> None:
    config = load(name)
    assert config.run.out == Path("runs") / name
    assert config.steps > 1000
    assert 100 > config.sparsity.active >= 8


@pytest.mark.parametrize("text", ["{path: a, weight: 2}, {path: b.txt, kind: text, weight: 1.0}"])
def test_several_data_sets_take_the_place_of_one(text: str, tmp_path: Path) -> None:
    """On the command line and in a file, and one takes the place of several."""
    config = load("gpt2", {"data.mixture": text})
    assert [(part.path, part.weight, part.kind) for part in config.data.mixture or ()] == [
        ("a", 2.0, None),
        ("b.txt", 1.0, "text"),
    ]
    assert (config.data.path, config.data.name) == (None, None)
    again = load(written(tmp_path, dump(config)), {"data.path": "c"})
    assert (again.data.path, again.data.mixture) == ("c", None)
    with pytest.raises(InputError, match=r"data\.mixture is .*; expected a list of data sets, each \{path: "):
        load("gpt2", {"data.mixture": "[a]"})
    with pytest.raises(InputError, match=r"weight of part 2 of data\.mixture is missing; expected a list of data sets"):
        load("gpt2", {"data.mixture": "{path: a, weight: 1}, {path: b}"})


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "tokens"])
def test_every_preset_takes_data_of_another_kind(name: str, kind: str) -> None:
    """Configuration and split of its data set on the hub go with the old kind; what is asked for besides stays an error."""
    config = load(name, {"data.kind": kind, "data.path": "texts/*"})
    assert (config.data.kind, config.data.path, config.data.name) == (kind, "texts/*", None)
    with pytest.raises(InputError, match=r"data\.name is x, which has no effect with data\.kind"):
        load(name, {"data.kind": kind, "data.path": "texts/*", "data.name": "x"})


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("rule", RULES)
def test_every_preset_takes_another_rule_of_sparsity(name: str, rule: str) -> None:
    kind = rule_of(SparsitySection(activation=rule)).kinds[0]
    assert load(name, {"sparsity.activation": rule, "dictionary.kind": kind}).sparsity.activation == rule


def test_a_file_takes_another_rule_of_sparsity(tmp_path: Path) -> None:
    old = small(sparsity__activation="jumprelu", sparsity__penalty=2.0, sparsity__bandwidth=0.5, sparsity__active=4.0)
    path = written(tmp_path, dump(old))
    found = load(path, {"sparsity.activation": "batch_topk", "sparsity.rank_by": "target"}).sparsity
    assert (found.active, found.penalty, found.rank_by) == (4.0, None, "target")
    assert load(path, {"sparsity.activation": "relu"}).sparsity.penalty == 2.0
    with pytest.raises(InputError, match=r"bandwidth is 0\.5, which has no effect with sparsity\.activation topk"):
        load(path, {"sparsity.activation": "topk", "sparsity.bandwidth": "0.5"})


def test_a_run_s_folder_is_where_it_lies(tmp_path: Path) -> None:
    written(tmp_path, dump(small(run__out="elsewhere")))
    assert load(tmp_path).run.out == tmp_path
    assert load(tmp_path / "config.yaml").run.out == Path("elsewhere")
    assert load(tmp_path, {"run.out": "third"}).run.out == Path("third")


def test_presets_are_those_promised() -> None:
    promised = {"gpt2", "pythia-70m", "smollm2-135m", "gemma-3-270m", "llama-3.2-1b", "gemma-2-2b"}
    assert promised <= set(preset_names())


@pytest.mark.slow("takes 1.5 s")
@given(config=configs())
@settings(max_examples=50, deadline=None)
def test_a_configuration_survives_a_yaml_file(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert load(written(tmp_path_factory.mktemp("c"), dump(config))) == config


def toml(value: Any) -> str:
    """A plain value in TOML; what is null is left out."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {toml(each)}' for name, each in value.items() if each is not None)}}}"
    return json.dumps(value, ensure_ascii=False)


@given(config=configs())
@settings(max_examples=50, deadline=None)
def test_a_configuration_survives_a_toml_file(config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = config.model_dump(mode="json")
    plain["data"]["epochs"] = plain["data"]["epochs"] or 1  # TOML has no null; the other defaults of null are null
    lines = []
    for section, values in plain.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {toml(value)}" for name, value in values.items() if value is not None]
    text = "\n".join(lines).replace("\x7f", "\\u007f")  # which JSON does not escape
    path = written(tmp_path_factory.mktemp("c"), text, "config.toml")
    assert load(path) == TrainingConfig.model_validate(plain)


@given(config=configs())
@settings(max_examples=50, deadline=None)
def test_a_configuration_survives_plain_values(config: TrainingConfig) -> None:
    assert validate(config.model_dump(mode="json")) == config


@pytest.mark.slow("takes 1.7 s")
@given(config=configs(), data=st.data())
@settings(max_examples=50, deadline=None)
def test_every_value_can_be_given_on_the_command_line(
    config: TrainingConfig, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(list(keys())))
    section, key = name.split(".")
    value = config.model_dump(mode="json")[section][key]
    text = value if isinstance(value, str) else json.dumps(value)
    if name == "evaluation.prompts":
        text = yaml.safe_dump(value, default_style='"', default_flow_style=True, width=float("inf"))
    path = written(tmp_path_factory.mktemp("c"), dump(config))
    if find(name).optional and value in ("none", "None", "null"):
        return  # these words are the missing value
    assert load(path, {name: text}) == config


def test_dump_explains_every_key_above_it() -> None:
    config = small()
    lines = dump(config).splitlines()
    for name, key in keys().items():
        entries = [number for number, line in enumerate(lines) if line.startswith(f"  {key.name}:")]
        above = {lines[number - 1].strip() for number in entries}
        assert (f"# {key.description}" in above) == (name not in without_effect(config))
    assert "left out: penalty, penalty_scale, penalty_warmup" in dump(config)


def test_values_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model: {name: no}\ndata: {path: 2024, name: yes, held_out: 1e-3, epochs: null}\ndictionary: {features: 0064}\n"
        "optimizer: {learning_rate: .5e-4, warmup_steps: 0}\nrun: {out: ~/runs, tokens: 1e6, batch: 4_096}\n",
    )
    with pytest.raises(InputError, match=r"data\.path is 2024; expected text, or null\."):
        load(path)
    config = load(path, {"data.path": "2024"})
    assert config.model.name == "no"
    assert config.data.name == "yes"
    assert (config.data.held_out, config.data.epochs) == (1e-3, None)
    assert config.optimizer.learning_rate == 0.5e-4
    assert (config.run.tokens, config.run.batch, config.dictionary.features) == (1_000_000, 4096, 64)
    assert config.run.out == Path.home() / "runs"


def test_lists_on_the_command_line_need_no_brackets(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump({**SMALL, "dictionary": {"features": 64, "kind": "plt"}}))
    config = load(path, {"dictionary.layers": "0,2", "evaluation.prompts": "One, two, three"})
    assert config.dictionary.layers == [0, 2]
    assert config.evaluation.prompts == ["One, two, three"]
    assert load(path, {"evaluation.prompts": '["a", "b: c"]'}).evaluation.prompts == ["a", "b: c"]
    assert load(path, {"evaluation.prompts": "[]"}).evaluation.prompts == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("run.bach", "run.batch"),
        ("batch", "run.batch"),
        ("run.learning_rate", "optimizer.learning_rate"),
        ("learning_rat", "optimizer.learning_rate"),
        ("modle", "model"),
        ("sparsity.k_active", "sparsity.active"),
        ("dictionary.n_features", "dictionary.features"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path, name: str, meant: str) -> None:
    assert nearest(name) == meant
    raw: dict[str, Any] = {section: dict(values) for section, values in SMALL.items()}
    section, _, key = name.rpartition(".")
    (raw.setdefault(section, {}) if section else raw)[key] = 3
    with pytest.raises(
        InputError, match=rf"unknown (key|section) {re.escape(name)}; did you mean {re.escape(meant)}\?"
    ):
        load(written(tmp_path, yaml.safe_dump(raw)))
    with pytest.raises(InputError, match=rf"{re.escape(name)}; did you mean {re.escape(meant)}\?"):
        load("gpt2", {name: "3"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("run.batch", "many", 'run.batch is "many"; expected a whole number, at least 1. Tokens of a step.'),
        ("run.batch", "0", "run.batch is 0; expected a whole number, at least 1"),
        ("run.batch", "1.5", "run.batch is 1.5; expected a whole number"),
        ("run.batch", "true", "run.batch is true; expected a whole number"),
        ("run.batch", "null", "run.batch is null; expected a whole number"),
        ("run.batch", "[3", "run.batch is '[3'; expected a whole number"),
        pytest.param("run.batch", "9" * 5000, "; expected a whole number", id="digits"),
        pytest.param("dictionary.layers", "[" * 5000, "; expected a list of whole numbers", id="brackets"),
        ("run.tensorboard", "yes", 'run.tensorboard is "yes"; expected true or false'),
        ("data.held_out", "0", "data.held_out is 0; expected a number, above 0 and at most 0.5"),
        ("data.epochs", "0", "expected a whole number, at least 1, or null"),
        ("data.kind", "txt", "expected one of huggingface, text, jsonl, parquet, tokens, activations"),
        ("model.device", "gpu", 'model.device is "gpu"; expected text. cpu, cuda, cuda:1, mps'),
        ("optimizer.eps", ".inf", "optimizer.eps is '.inf'; expected a number, above 0"),
        ("evaluation.prompts", "[3]", "evaluation.prompts is 3; expected a list of texts"),
        ("sparsity.anneal", "1.5", "expected a number, at least 0 and at most 1"),
    ],
)
def test_a_wrong_value_is_refused_in_plain_words(key: str, value: str, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        load("gpt2", {key: value})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sparsity__penalty": 1.0}, r"sparsity\.penalty is 1\.0, which has no effect .* batch_topk.*default null"),
        ({"sparsity__bandwidth": 0.5}, r"sparsity\.bandwidth is 0\.5, .*learns no threshold"),
        (
            {"sparsity__activation": "relu", "sparsity__penalty_scale": 2.0},
            r"penalty_scale is 2\.0, .*without a sparsity\.",
        ),
        ({"sparsity__activation": "relu", "sparsity__active": 65.0}, r"active is 65\.0, more than"),
        ({"sparsity__active": 65.0}, r"sparsity\.active is 65\.0, more than dictionary\.features, 64"),
        ({"sparsity__active_at_start": 8.0}, r"active_at_start is 8\.0; .* between 16\.0 and dictionary\.features, 64"),
        ({"sparsity__active_at_start": 20.0, "sparsity__anneal": 0}, r"no effect with sparsity\.anneal 0"),
        (
            {"sparsity__activation": "topk", "sparsity__active": 2.5},
            r"active is 2\.5 with activation topk.*whole number",
        ),
        (
            {"sparsity__activation": "switch"},
            r"dictionary\.kind is clt with sparsity\.activation switch, .*linear function.*use sae",
        ),
        ({**SWITCH, "sparsity__prefixes": [8]}, r"prefixes is \[8\].* switch, whose first features are one expert's"),
        (
            {**SWITCH, "sparsity__experts": 5},
            r"features is 64, which sparsity\.experts, 5, cannot share evenly; use 60",
        ),
        ({**SWITCH, "sparsity__active": 9.0}, r"9 features of a token .* more than the 8 of an expert"),
        (
            {**SWITCH, "run__start_from": "other"},
            r"run\.start_from is other with .*switch: no dictionary brings a router",
        ),
        ({"sparsity__experts": 4}, r"experts is 4, which has no effect with .*batch_topk, which has no router"),
        (
            {"sparsity__activation": "gated", "sparsity__jacobian_weight": 0.1},
            r"jacobian_weight is 0\.1 with sparsity\.activation gated, whose magnitudes grow",
        ),
        (
            {"sparsity__activation": "gated", "sparsity__penalty": 1.0, "sparsity__penalty_scale": 2.0},
            r"penalty_scale is 2\.0, .*gated, which has no penalty, or one that is linear",
        ),
        ({"sparsity__prefixes": [16, 8]}, r"prefixes is \[16, 8\]; name sizes in ascending order"),
        ({"sparsity__prefixes": [16, 64]}, r"prefixes is \[16, 64\]; .*below dictionary\.features, 64"),
        ({"sparsity__aux_active": 65}, r"aux_active is 65, more than dictionary\.features, 64; lower it, 8 say"),
        ({"sparsity__dead_after_tokens": 8192}, r"dead_after_tokens is 8192, so that nothing can ever be dead .* 8192"),
        ({"sparsity__aux_weight": 0.5}, r"aux_weight is 0\.5, .*aux_active 0"),
        (
            {"data__kind": "text", "data__field": "body"},
            r"data\.field is body, .*only huggingface and jsonl",
        ),
        ({"data__kind": "jsonl", "data__name": "x"}, r"data\.name is x, .*only huggingface data have it"),
        ({"dictionary__layers": [0]}, r"layers is \[0\], .*covers all layers: leave it out \(default null\)"),
        (
            {"dictionary__kind": "plt", "dictionary__layers": [2, 1]},
            r"layers is \[2, 1\]; name each layer once, in order",
        ),
        (
            {"dictionary__kind": "sae", "dictionary__input_hook": "mlp.hook_in"},
            r"input_hook is mlp\.hook_in, .*\.point",
        ),
        ({"dictionary__kind": "sae", "sparsity__jacobian_weight": 1.0}, r"jacobian_weight is 1\.0, .*replaces no MLP"),
        ({"dictionary__point": "hook_resid_pre"}, r"point is hook_resid_pre, .*kind clt"),
        ({"run__batch": 9000}, r"run\.tokens is 8192, less than one run\.batch of 9000"),
        (
            {"optimizer__warmup_steps": 3},
            r"warmup_steps is 3, but of 2 steps .* 2 come before the decay; use at most 2",
        ),
        ({"optimizer__skip_above": 1.0}, r"skip_above is 1\.0, which would skip usual steps; use more than 1, or 0"),
        (
            {"run__accumulate": 3},
            r"accumulate is 3, parts into which run\.batch, 4096, cannot be divided; use a batch of 4098",
        ),
        ({"run__schedule_tokens": 4096}, r"schedule_tokens is 4096, less than run\.tokens, 8192"),
        (
            {"run__start_from": "x", "sparsity__anneal": 0.5},
            r"anneal is 0\.5, which has no effect with run\.start_from",
        ),
        ({"evaluation__every_steps": 3}, r"every_steps is 3, more than the run's 2 steps; leave it out"),
        ({"data__path": None}, r"data\.path is missing: give the one data set there, or several in data\.mixture"),
        ({"data__mixture": [PART]}, r"data\.path is texts, which has no effect with data\.mixture"),
        (
            {"data__path": None, "data__mixture": [{**PART, "name": "x"}]},
            r"part 1 of data\.mixture has a name, .*kind jsonl",
        ),
        (
            {"data__path": None, "data__kind": "activations", "data__mixture": [{**PART, "kind": "jsonl"}]},
            r"kind is activations, of which data\.mixture can hold none",
        ),
        ({"data__kind": "activations", "data__split": "x"}, r"data\.split is x, .*kind activations"),
        ({"data__kind": "activations", "sparsity__jacobian_weight": 0.1}, r"jacobian_weight is 0\.1, .*no derivatives"),
        ({"data__buffer_tokens": 100}, r"buffer_tokens is 100, less than one run\.batch of 4096"),
    ],
)
def test_contradictions_and_values_without_effect_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        small(**changes)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        validate({"model": 3, "data": {"path": ""}, "run": None})
    for part in (
        "model is 3; expected a section",
        "data.path is",
        "section dictionary is missing; it must hold features",
    ):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"(?s)penalty is 1.*bandwidth is 0\.2"):
        load("gpt2", {"sparsity.penalty": "1", "sparsity.bandwidth": "0.2"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"broken\.yaml is not readable YAML: (?s:.*)line 2"):
        load(written(tmp_path, "run:\n  - [", "broken.yaml"))
    with pytest.raises(FileFormatError, match="'batch' is given twice"):
        load(written(tmp_path, "run: {batch: 1, batch: 2}"))
    with pytest.raises(FileFormatError, match=r"aliases are not read; write the value out(?s:.*)line 2"):
        load(written(tmp_path, "run: &a [x, x]\ndata: [*a, *a]", "bomb.yaml"))
    for name in ("deep.yaml", "deep.toml"):
        with pytest.raises(FileFormatError, match=r"is not readable (YAML|TOML): (it is )?nested"):
            load(written(tmp_path, "run = " * (name == "deep.toml") + "[" * 100_000, name))
    with pytest.raises(FileFormatError, match="is not readable YAML"):
        load(written(tmp_path, "run: !!python/object/apply:os.getcwd []", "unsafe.yaml"))
    with pytest.raises(FileFormatError, match=r"must hold sections .*found list"):
        load(written(tmp_path, "[1]"))
    with pytest.raises(FileFormatError, match="is not readable TOML"):
        load(written(tmp_path, "[run", "broken.toml"))
    with pytest.raises(InputError, match=r"ends in \.json; a configuration is"):
        load(written(tmp_path, "{}", "config.json"))


def test_what_is_neither_file_nor_preset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean the preset gpt2"):
        load("gpt-2")
    with pytest.raises(InputError, match="presets are gemma-2-2b, "):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"holds no config\.yaml"):
        load(tmp_path)


def test_the_folder_of_a_run_is_its_configuration(tmp_path: Path) -> None:
    written(tmp_path, dump(small(run__out=str(tmp_path))))
    assert load(tmp_path) == small(run__out=str(tmp_path))


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        small().run.batch = 3  # type: ignore[misc]


def test_values_that_follow_from_others() -> None:
    assert small(run__tokens=10_000, run__batch=3000, data__buffer_tokens=3000).steps == 3
    assert small(optimizer__warmup_steps=None, run__tokens=4096 * 300).warmup_steps == 15
    assert small(optimizer__warmup_steps=None, run__tokens=4096 * 10**6).warmup_steps == 1000
    assert small(optimizer__warmup_steps=2).warmup_steps == 2
    warm: dict[str, Any] = {"optimizer__warmup_steps": None, "run__start_from": "some/dictionary"}
    assert [small(**warm, run__tokens=4096 * steps).warmup_steps for steps in (4, 300, 2000)] == [20, 20, 100]
    assert small(**warm | {"optimizer__warmup_steps": 0}).warmup_steps == 0
    lengths = [small(run__tokens=4096 * steps) for steps in (4, 100, 10_000, 10**6)]
    assert [one.checkpoint_every_steps for one in lengths] == [50, 50, 1000, 5000]
    assert [one.evaluation_tokens for one in lengths] == [4096, 40960, 65536, 65536]
    assert {one.evaluate_every_steps for one in lengths} == {5000}
    given = small(run__checkpoint_every_steps=3, evaluation__every_steps=0, evaluation__tokens=7)
    assert (given.checkpoint_every_steps, given.evaluate_every_steps, given.evaluation_tokens) == (3, 0, 7)
    assert small(dictionary__features=2**14).active_at_start == 96
    assert small().active_at_start == 32  # half of the features
    assert small(sparsity__active=40.0).active_at_start == 40
    assert small(sparsity__active_at_start=64.0).active_at_start == 64
    assert small(sparsity__anneal=0).active_at_start == 16
    for rule, share in (("topk", 1 / 2), ("relu", 1 / 4), ("jumprelu", 1 / 4)):
        assert (
            small(sparsity__activation=rule, sparsity__active=4.0, dictionary__features=32).active_at_start
            == 32 * share
        )
    assert small(run__start_from="some/dictionary").active_at_start == 16
    assert small(run__start_from="x", sparsity__active_at_start=64.0).active_at_start == 64
    assert small(run__schedule_tokens=20_000).schedule_steps == 4
