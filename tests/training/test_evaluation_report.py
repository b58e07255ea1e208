"""The report: plain data, a card and pictures; and the embedded demo, measured again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.training.config.schema import EvaluationSection
from circuit_tracer.training.evaluation import Evaluation, EvaluationSettings, evaluate, model_card, write_report
from tests.support.evaluation_cases import ALL_TOKENS, parts_of, sequences
from tests.support.tiny import tiny_transcoder


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    settings = replace(ALL_TOKENS, random_baseline=True, prompts=([3, 4, 5, 6],))  # type: ignore[arg-type]
    found = evaluate(
        parts_of(), None, tiny_transcoder("clt"), sequences(), settings, conditions={"transcoders": "org/name"}
    )
    for result in found.results.values():
        result.graphs[0] = replace(result.graphs[0], prompt="A | prompt")
    return replace(found, conditions={**found.conditions, "model": "org/model"})


@pytest.mark.slow("takes 1.5 s")
def test_report_is_the_same_every_time_and_holds_no_date(evaluation: Evaluation, tmp_path: Path) -> None:
    written = [write_report(evaluation, tmp_path / name) for name in ("one", "two")]
    names = ["evaluation.json", "README.md", "nmse.png", "l0.png", "density.png"]
    assert [path.name for path in written[0]] == names
    for one, two in zip(*written, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert b"tIME" not in written[0][2].read_bytes()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_json_is_plain_and_complete(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_report(evaluation, tmp_path)[0]
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert found == evaluation.to_json()
    assert {"conditions", "results", "model", "ablations", "differences", "not_measured", "density_edges"} <= set(found)
    assert {"model", "transcoders", "data", "settings", "versions", "device", "layers"} <= set(found["conditions"])
    assert found["conditions"]["data"]["sequences"] == 5
    reconstruction = found["results"]["dictionary"]["reconstruction"]
    assert reconstruction["mean_nmse"] == pytest.approx(sum(reconstruction["nmse"]) / 3, rel=1e-5)
    assert found["results"]["dictionary"]["mean_graph_scores"]["graphs"] == 1


def test_card_has_all_tables_and_front_matter(evaluation: Evaluation) -> None:
    import yaml

    card = model_card(evaluation, ["nmse.png"])
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "org/model"
    assert "cross-layer-transcoder" in yaml.safe_load(front)["tags"]
    assert "# Cross-layer transcoder for org/model" in text
    assert "-t org/name" in text
    assert "![nmse](nmse.png)" in text
    assert "| A \\| prompt |" in text
    assert "|  | this dictionary | random dictionary | MLPs zero | MLPs mean |" in text
    assert text.count("NMSE, random dictionary") == 1
    assert "None" not in text
    assert "nan" not in text


def test_without_matplotlib_the_card_says_so(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuit_tracer.training.evaluation.card.find_spec", lambda name: None)
    assert [path.name for path in write_report(evaluation, tmp_path)] == ["evaluation.json", "README.md"]
    assert "matplotlib was not installed" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_reconstruction_alone_makes_a_report(tmp_path: Path) -> None:
    settings = replace(ALL_TOKENS, replacement_tokens=0)
    found = evaluate(parts_of(), None, tiny_transcoder("plt"), sequences(), settings)
    card = write_report(found, tmp_path)[1].read_text(encoding="utf-8")
    assert "top-1" not in card
    assert "Graphs" not in card
    assert found.to_json()["model"] is None


def test_a_folder_that_cannot_be_written_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into"):
        write_report(evaluation, tmp_path / "file")


def test_local_paths_are_not_published() -> None:
    from circuit_tracer.models.sources import public_name

    assert public_name("org/model") == "org/model"
    assert public_name("/home/someone/models/tiny") == "tiny"
    assert public_name(str(Path(__file__).parent)) == "training"


def test_settings_follow_the_configuration() -> None:
    given = {"replacement_tokens": 0, "held_out_prompts": 2, "faithfulness": False, "random_baseline": False}
    settings = EvaluationSettings.of(EvaluationSection(tokens=7, prompts=["a"], **given), seed=3)
    assert settings == EvaluationSettings(7, prompts=("a",), seed=3, **given)
    plain, defaults = EvaluationSettings(), EvaluationSettings.of(EvaluationSection())
    assert replace(defaults, prompts=(), held_out_prompts=0) == plain


@pytest.mark.slow("takes 2.3 s")
def test_the_demo_measured_here_has_the_numbers_of_its_card() -> None:
    from circuit_tracer.demo import MODEL, world
    from circuit_tracer.demo.show import load_demo
    from circuit_tracer.models.capture import logits_at
    from circuit_tracer.models.model_pass import Points
    from circuit_tracer.training.evaluation.passes import run
    from circuit_tracer.training.evaluation.replacement import final_outputs
    from circuit_tracer.training.evaluation.stand_ins import Reconstructions

    model, metrics = load_demo(), json.loads((Path(MODEL).parent / "metrics.json").read_text(encoding="utf-8"))
    end = model.tokenizer.eos_token_id
    ids = [torch.tensor([*model.tokenizer(one.text).input_ids, end]) for one in world.held_out()]
    evaluation = evaluate(model.parts, model.tokenizer, model.transcoders, ids, replace(ALL_TOKENS, tokens=10**6))
    expected = metrics["reconstruction"]["held_out_statements"]
    found = evaluation.results["dictionary"].reconstruction
    assert found.nmse == pytest.approx(expected["nmse_by_layer"], abs=1e-5)
    assert found.l0 == pytest.approx(expected["l0_by_layer"], abs=1e-3)

    points, same = Points((0, 1, 2, 3), "hook_resid_mid", "hook_mlp_out"), []
    for one in world.held_out():
        prompt = torch.tensor([model.tokenizer(one.prompt).input_ids])
        finals = (
            run(model.parts, prompt),
            final_outputs(model.parts, prompt, points, Reconstructions(model.transcoders)),
        )
        answers = [int(logits_at(model.parts, final[-1:]).argmax()) for final in finals]
        same.append(answers[0] == answers[1])
    kept = metrics["answer_kept_with_all_mlps_replaced"]["two_hop_held_out"]
    assert sum(same) / len(same) == pytest.approx(kept, abs=1e-4)
