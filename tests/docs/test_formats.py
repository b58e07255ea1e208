"""The pages of file formats: what their tables list is what files hold, and their examples can be read."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from circuit_tracer import Graph, ReplacementModel, attribute, create_graph_files
from circuit_tracer.circuits import Grouping, keep_grouping
from circuit_tracer.circuits.naming import name_groups
from circuit_tracer.circuits.story import Story, tell
from circuit_tracer.cli.main import app
from circuit_tracer.demo import FEATURES, MODEL, PROMPT, TRANSCODER, load_labels
from circuit_tracer.demo.world import model_training
from circuit_tracer.features import FeatureFolder
from circuit_tracer.features.folder import INDEX, LABELS, MANIFEST
from circuit_tracer.features.labels import load_labels as labels_of_file
from circuit_tracer.features.schema import FeatureRecord, Offsets
from circuit_tracer.files import parse_yaml, read_json
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.feature_notes import NAMES
from circuit_tracer.graph.files import validate_document
from circuit_tracer.graph.files.pt import save_pt
from circuit_tracer.graph.stream_reads import StreamReads
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.many import open_run, read_rows
from circuit_tracer.many.comparison import compare
from circuit_tracer.many.fingerprints import names
from circuit_tracer.many.rows import COLUMNS
from circuit_tracer.many.runs.manifest import Layout, Means, Opening, Tracing
from circuit_tracer.probes.examples import read_examples
from circuit_tracer.probes.monitor import Monitor, feature_watch
from circuit_tracer.probes.probe import Probe
from circuit_tracer.training.config.files import load, validate
from circuit_tracer.training.data import write_activations
from circuit_tracer.training.data.given.description import read_description
from circuit_tracer.training.run.events import StepReport
from circuit_tracer.transcoders.config import TranscoderConfig, validate_config
from circuit_tracer.transcoders.formats import FORMATS

PAGES = Path(__file__).parents[2] / "docs/reference/formats"


def section(page: str, heading: str) -> str:
    """The part of a page below a heading, as far as the next one of any level."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert found, f"{page}.md has no heading {heading}"
    return found[1]


def listed(page: str, heading: str, column: int = 0, first: str = "") -> set[str]:
    """The names in code in a column of the tables of a section; ``first``: of the one whose head begins so."""
    rows = []
    for table in re.findall(r"(?:^\|.*\|\n)+", section(page, heading), re.M):
        head, _, *body = table.splitlines()
        if head.strip("| ").startswith(first):
            rows += [line.strip("|").split(" | ")[column] for line in body]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def example(page: str, heading: str, language: str = "json") -> str:
    """The first block of a section in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", section(page, heading), re.M | re.S)
    assert found, f"{page}.md, {heading}: no {language}"
    return found[1]


@pytest.fixture(scope="module")
def model() -> ReplacementModel:
    return ReplacementModel.from_pretrained(MODEL, TRANSCODER)


@pytest.fixture(scope="module")
def graph(model: ReplacementModel) -> Graph:
    return attribute(PROMPT, model)


def fields(record: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def test_a_graph(graph: Graph, tmp_path: Path) -> None:
    with safe_open(graph.save(tmp_path / "graph.safetensors"), "pt") as file:
        header, tensors = json.loads(file.metadata()["circuit_tracer_graph"]), set(file.keys())
    assert listed("graph", "Header", first="key |") == set(header) == set(json.loads(example("graph", "Header")))
    assert listed("graph", "Tensors", first="name |") == tensors
    optional = {f"edge_heads.{name}" for name in fields(EdgeHeads)}
    optional |= {f"targets.reads.{name}" for name in fields(StreamReads)} | {*NAMES, "unfinished.*"}
    assert listed("graph", "Tensors", first="name of some") == optional


def test_viewer_json(graph: Graph, tmp_path: Path) -> None:
    shown = json.loads(example("viewer-json", "Viewer JSON"))
    assert validate_document(shown) == []
    written = read_json(create_graph_files(graph, "dallas", tmp_path))
    assert listed("viewer-json", "Top level") == set(written) == set(shown)
    assert listed("viewer-json", "metadata") == set(written["metadata"])
    assert listed("viewer-json", "qParams") == set(written["qParams"])
    for part in ("nodes", "links"):
        keys = set().union(*written[part])
        assert listed("viewer-json", part) == keys == set().union(*shown[part])
    index, shown_index = (
        read_json(tmp_path / "graph-metadata.json"),
        json.loads(example("viewer-json", "graph-metadata.json")),
    )
    assert set(index) == set(shown_index)
    assert set(shown_index["graphs"][0]) <= set(index["graphs"][0])


def test_circuit_tracers_graph(graph: Graph, tmp_path: Path) -> None:
    save_pt(graph, tmp_path / "graph.pt")
    assert listed("pt", "Graph of circuit-tracer") == set(torch.load(tmp_path / "graph.pt", weights_only=True))


def test_dictionaries() -> None:
    tensors: set[str] = set()
    for name in ("W_enc_0", "W_dec_0"):
        with safe_open(f"{TRANSCODER}/{name}.safetensors", "pt") as file:
            tensors |= set(file.keys())
    assert {name.format(i=0) for name in listed("dictionaries", "Native, cross-layer", 1)} == tensors
    keys = listed("dictionaries", "config.yaml")
    assert keys == set(TranscoderConfig.model_fields)
    shown = parse_yaml(example("dictionaries", "config.yaml", "yaml"), "the page")
    assert validate_config(shown, "the page").model_kind == "cross_layer_transcoder"
    page = section("dictionaries", "Layouts that are read")
    for each in FORMATS:
        assert f"| {each.name} | " in page
        assert each.layout in page, f"{each.name} is shown with another layout"


def test_native_layers(tmp_path: Path) -> None:
    from circuit_tracer.demo.toys import boolean_circuit, exact

    exact(boolean_circuit()).to_safetensors(tmp_path)
    with safe_open(tmp_path / "layer_0.safetensors", "pt") as file:
        found = set(file.keys())
    documented = listed("dictionaries", "Native, per layer")
    assert found <= documented
    assert documented - found <= {"activation_function.threshold"}  # of JumpReLU


def test_features() -> None:
    assert listed("features", "Features and labels") - {"layer_{i}.bin"} == {INDEX, MANIFEST, LABELS}
    assert {path.name for path in Path(FEATURES).iterdir()} == {
        INDEX,
        MANIFEST,
        LABELS,
        *(f"layer_{i}.bin" for i in range(4)),
    }
    folder = FeatureFolder(FEATURES)
    shown = json.loads(example("features", "A record"))
    assert listed("features", "A record") == set(shown) == set(folder.get((0, 78)))
    FeatureRecord.model_validate(shown)
    for row in json.loads(example("features", "index.json.gz")).values():
        Offsets.model_validate(row)
    assert listed("features", "features.json") == set(folder.manifest)


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / LABELS
    path.write_text(example("features", "labels.json"), encoding="utf-8")
    found = labels_of_file(path)
    assert found[0, 78].text == "Texas (places)"
    assert (found[0, 9].score, found[1, 120].text) == (0.94, "say a capital")


def test_prompts(tmp_path: Path) -> None:
    assert listed("prompts", "Prompts") == set(COLUMNS)
    for suffix, language in ((".jsonl", "jsonl"), (".csv", "csv")):
        path = tmp_path / f"prompts{suffix}"
        path.write_text(example("prompts", "Prompts", language), encoding="utf-8")
        assert not [row.problem for row in read_rows(path) if row.problem]
    with open(tmp_path / "prompts.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 3


def _command(*words: str) -> None:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def _rows(count: int) -> str:
    two_hops = [said for said in model_training() if said.hops == 2][:count]
    return "\n".join(
        json.dumps({"prompt": said.prompt, "label": said.relation, "answer": said.answer}) for said in two_hops
    )


def test_a_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(_rows(2))
    _command("run", str(tmp_path / "prompts.jsonl"), "-o", str(tmp_path / "run"), "--demo")
    folder = tmp_path / "run"
    manifest, shown = read_json(folder / "manifest.json"), json.loads(example("runs", "manifest.json"))
    assert listed("runs", "manifest.json") == set(manifest) == {*shown, "digest"}
    for part, kind in (("opening", Opening), ("tracing", Tracing), ("layout", Layout), ("means", Means)):
        assert set(manifest[part]) >= set(shown[part])
        kind.model_validate(shown[part])
    (unit,) = map(read_json, (folder / "units").iterdir())
    shown_unit = json.loads(example("runs", "rows, units, times"))
    assert set(unit) == {*shown_unit, "digest"}
    assert set(shown_unit["rows"][0]) <= set(unit["rows"][0])
    columns = pyarrow.parquet.read_schema(folder / "results.parquet").names
    assert listed("runs", "results.parquet") - {"done", "failed", "waiting"} == {*columns} - {"answer"}
    known = listed("runs", "Runs")
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not inside.parts[0].startswith("."):
            assert inside.name in known or any(name.startswith(f"{inside.parts[0]}/") for name in known), inside
    assert open_run(folder).ids == ["000001", "000002"]


@pytest.mark.slow("a run, with its aggregate, fingerprints and report")
def test_what_is_made_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(_rows(16))
    folder = tmp_path / "run"
    _command("run", str(tmp_path / "prompts.jsonl"), "-o", str(folder), "--demo")
    for command in ("aggregate", "fingerprints", "report"):
        _command(command, str(folder))
    rows = re.findall(r"^\| `(\w+\.parquet)` \| [^|]+ \| (.*) \|$", section("runs", "aggregate"), re.M)
    assert {name for name, _ in rows} == {path.name for path in (folder / "aggregate").glob("*.parquet")}
    for name, columns in rows:
        assert {*re.findall(r"`(\w+)`", columns)} == {*pyarrow.parquet.read_schema(folder / "aggregate" / name).names}
    found = pyarrow.parquet.read_schema(folder / "fingerprints/fingerprints.parquet").names
    assert found == ["id", *names(4)]
    assert {"logits.top", "global.replacement", "node.influence_max"} <= {*found}
    assert listed("runs", "report.json") == set(read_json(folder / "report/report.json"))


def test_explanations(graph: Graph, model: ReplacementModel) -> None:
    other = attribute(PROMPT.replace("Dallas", "Portland"), model, attribution_targets=["Austin"])
    named = name_groups(other, other.supernodes(), labels=load_labels())
    keep_grouping(other, named)
    assert other.grouping is not None
    grouping = json.loads(example("explanations", "Grouping"))
    assert listed("explanations", "Grouping") == set(other.grouping) == set(grouping)
    Grouping.from_json(grouping)
    told = tell(other, None, named).to_json()
    story = json.loads(example("explanations", "Story"))
    assert listed("explanations", "Story") == set(told) == set(story)
    assert json.loads(json.dumps(Story.from_json(story).to_json())) == story
    assert listed("explanations", "Comparison") == set(compare(graph, other).to_json())
    assert listed("explanations", "Validation") == {*fields(ValidationReport)}
    assert listed("explanations", "Edge explanation") == set(graph.explain_edge("0_78_7", "5_101_8", model).to_dict())


def test_probes(model: ReplacementModel, tmp_path: Path) -> None:
    path = Probe("texas", "hook_resid_post", 2, torch.zeros(128), 0.0, 1.0, "token").save(
        tmp_path / "probe.safetensors"
    )
    with safe_open(path, "pt") as file:
        written = json.loads(file.metadata()["probe"])
        assert file.metadata()["format"] in section("probes", "A probe")
    assert listed("probes", "A probe") == set(written)
    assert json.loads(example("probes", "A probe")) == written
    path = tmp_path / "examples.jsonl"
    path.write_text(example("probes", "Labelled texts", "jsonl"))
    assert [each.label for each in read_examples(path)] == [True, False, True]
    verdicts = [
        verdict.to_json() for verdict in Monitor(model, [feature_watch("0/78>1")]).watch(["Dallas is in Texas", ""])
    ]
    shown = [json.loads(line) for line in example("probes", "Verdicts", "jsonl").splitlines()]
    assert listed("probes", "Verdicts") == {key for verdict in verdicts for key in verdict}
    assert [set(line) for line in shown] == [set(verdict) for verdict in verdicts]
    assert set(shown[0]["flags"][0]) == set(verdicts[0]["flags"][0])
    assert shown[1] == verdicts[1]


def _activations(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 2, 8, generator=generator) for _ in "xy")
    rows = {"x": x, "y": y, "document": torch.arange(400) // 10, "token_ids": torch.arange(400)}
    return write_activations(folder, [rows], model="org/name", layers=range(2))


def test_activations(tmp_path: Path) -> None:
    written = read_json(_activations(tmp_path / "acts") / "activations.json")
    shown = json.loads(example("activations", "activations.json"))
    assert listed("activations", "activations.json") == set(written) == set(shown)
    read_description(shown, "the page")
    assert shown == written
    with safe_open(tmp_path / "acts" / written["shards"][0]["file"], "pt") as file:
        assert listed("activations", "A shard") == set(file.keys())


def test_a_training_configuration(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(example("training", "Configuration", "yaml"))
    assert load(path).dictionary.features == 8192
    line = json.loads(example("training", "log.jsonl", "jsonl").splitlines()[0])
    assert set(line) == {*fields(StepReport)}


@pytest.mark.slow("a training run")
def test_what_a_training_run_leaves(tmp_path: Path) -> None:
    from circuit_tracer.training.run.trainer import train

    given: dict[str, Any] = {
        "model": {"name": "org/name"},
        "data": {"kind": "activations", "path": str(_activations(tmp_path / "acts")), "buffer_tokens": 128,
                 "statistics_tokens": 64, "held_out": 0.2},
        "dictionary": {"kind": "clt", "features": 16},
        "sparsity": {"active": 2},
        "evaluation": {"tokens": 64},
        "run": {"out": str(tmp_path / "run"), "tokens": 192, "batch": 32, "threads": 1},
    }  # fmt: skip
    result, folder = train(validate(given)), tmp_path / "run"
    for name in listed("training", "A run's folder"):
        path = "checkpoints" if name.startswith("checkpoints/") else name
        assert (folder / path).exists(), name
    assert {path.name.replace("layer-001", "layer-000") for path in result.checkpoint.iterdir()} == listed(
        "training", "A checkpoint", first="file"
    )
    state = read_json(result.checkpoint / "state.json")
    assert listed("training", "A checkpoint", first="key") == set(state)
    assert listed("training", "evaluation.json") == set(read_json(folder / "transcoder/evaluation.json")) - {"digest"}
