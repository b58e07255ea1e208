"""`circuit-tracer attribute`: outputs, targets, prompts, and bad input found before any work."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from circuit_tracer.cli.prompts import read_jobs, template_arguments
from circuit_tracer.demo import load_labels
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.graph import Graph
from circuit_tracer.graph.balance import PROMISED_RESIDUAL
from circuit_tracer.graph.files.native import as_graph
from circuit_tracer.transcoders import save_transcoders
from tests.support.command import Folders, Run
from tests.support.tiny import tiny_transcoder

PROMPT = "the capital of Texas is"


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_writes_a_graph_file_of_the_kind_its_name_says(folders: Folders, run: Run, tmp_path: Path, name: str) -> None:
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "-o", tmp_path / name, "--max_n_logits", 3)
    assert outcome.code == 0, outcome.err
    graph = as_graph(tmp_path / name)
    assert graph.input_tokens.tolist() == [1, 4, 5, 6, 7, 8]
    assert len(graph.logit_targets) <= 3
    for line in ("targets", "scores", "transcoder", "residual"):
        assert line in outcome.out


def test_writes_viewer_files_under_the_slug(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run(
        *("attribute", "--transcoder_set", folders.transcoder, "--model", folders.model, "--prompt", PROMPT),
        *("--slug", "texas", "--graph_file_dir", tmp_path / "new" / "folder", "--node_threshold", 0.7, "--json"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "new" / "folder" / "texas.json").read_text())
    assert document["metadata"]["pruning_settings"]["node_threshold"] == 0.7
    assert outcome.json["slug"] == "texas"
    assert outcome.json["worst_residual"] < 1e-5
    assert (tmp_path / "new" / "folder" / "graph-metadata.json").is_file()


def test_a_graph_beyond_the_promise_is_let_through_on_request(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROMISED_RESIDUAL, "float32", 1e-12)
    command = ("attribute", "--demo", "-p", PROMPT, "-o", tmp_path / "g.safetensors")
    outcome = run(*command)
    assert outcome.code != 0
    for part in ("layer", "position", "at most 1e-12", "float32", "--max-residual"):
        assert part in outcome.err
    assert not (tmp_path / "g.safetensors").exists()
    assert run(*command, "--max-residual", 1e-4).code == 0
    kept = Graph.load(tmp_path / "g.safetensors")
    assert kept.provenance["residual_allowed"] > 1e-12
    assert kept.labels.items() <= load_labels().items()
    assert kept.records


def test_labels_need_a_file_that_holds_them(run: Run, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    outcome = run("attribute", "--demo", "-p", PROMPT, "-o", tmp_path / "g.pt", "--labels", tmp_path / "labels.json")
    assert outcome.code == 2
    assert "--slug" in outcome.err
    assert ".safetensors" in outcome.err


def test_relative_paths_without_a_slash_work(
    folders: Folders, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(
        "attribute", "-t", folders.transcoder, "-p", PROMPT, "-o", "g.pt", "--slug", "a", "--graph-file-dir", "f"
    )
    assert outcome.code == 0, outcome.err
    assert Path("g.pt").is_file()
    assert Path("f/a.json").is_file()


def test_targets_by_text_and_by_id(folders: Folders, run: Run) -> None:
    outcome = run(
        "attribute", "-t", folders.transcoder, "-p", PROMPT, "--target", "Austin", "--target", "id:0", "--json"
    )
    assert [target["id"] for target in outcome.json["targets"]] == [9, 0]


def test_an_earlier_position_and_no_left_out_positions(folders: Folders, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    outcome = run(
        *("attribute", "-t", folders.transcoder, "-p", PROMPT, "-o", path),
        *("--position", 3, "--zero-positions", "none"),
    )
    assert outcome.code == 0, outcome.err
    graph = Graph.load(path)
    assert set(graph.targets.position.tolist()) == {3}
    assert 0 in graph.active_features[:, 1].tolist()


def test_prompts_of_a_file_get_a_name_each(folders: Folders, run: Run, tmp_path: Path) -> None:
    prompts = "the capital of Texas is\n\nthe capital of France is\n"
    outcome = run(
        *("attribute", "-t", folders.transcoder, "--prompt-file", "-", "-o", tmp_path / "g.safetensors"),
        *("--graph-file-dir", tmp_path, "--json"),
        stdin=prompts,
    )
    assert outcome.code == 0, outcome.err
    assert [json.loads(line)["prompt"] for line in outcome.out.splitlines()] == [
        "<bos> the capital of Texas is",
        "<bos> the capital of France is",
    ]
    assert (tmp_path / "g-001-the-capital-of-texas-is.safetensors").is_file()
    assert (tmp_path / "002-the-capital-of-france-is.json").is_file()


def test_numbered_slugs(folders: Folders, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the capital of Texas is\na state\n")
    run(
        *("attribute", "-t", folders.transcoder, "--prompt-file", tmp_path / "prompts.txt"),
        *("--slug", "run", "--graph-file-dir", tmp_path),
    )
    assert (tmp_path / "run-001.json").is_file()
    assert (tmp_path / "run-002.json").is_file()


def test_chat_uses_the_template(folders: Folders, run: Run, tmp_path: Path) -> None:
    spoken = run("attribute", "-t", folders.transcoder, "-p", "a state", "--chat", "--json").json
    assert spoken["prompt"] == "<bos> the a state"
    messages = [{"role": "user", "content": "is"}, {"role": "assistant", "content": "Texas"}]
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    from_file = run("attribute", "-t", folders.transcoder, "-p", tmp_path / "messages.json", "--chat", "--json").json
    as_text = run("attribute", "-t", folders.transcoder, "-p", json.dumps(messages), "--chat", "--json").json
    assert from_file["prompt"] == as_text["prompt"] == "<bos> the is a Texas"


def test_a_message_may_begin_with_a_bracket(folders: Folders, run: Run) -> None:
    spoken = run("attribute", "-t", folders.transcoder, "-p", "[1] is Texas", "--chat", "--json")
    assert spoken.code == 0, spoken.err
    assert spoken.json["prompt"].endswith("is Texas")


@pytest.mark.parametrize("text", ["[1] is Texas", '[{"a": 1}] is Texas', "[{ is Texas", "[] is Texas"])
def test_what_is_no_conversation_is_a_message(text: str) -> None:
    (job,) = read_jobs(text, None, chat=True, slug=None)
    assert job.prompt == [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", ['[{"role": "user"', '[{"role": "user"}]', '[{"role": "user", "content": "a"}, 5]'])
def test_what_is_nearly_a_conversation_is_refused(text: str) -> None:
    with pytest.raises(CircuitTracerError):
        read_jobs(text, None, chat=True, slug=None)


def test_arguments_of_the_chat_template() -> None:
    assert template_arguments(["enable_thinking=false", "who=me", "n=3", "old=False"]) == {
        "enable_thinking": False, "who": "me", "n": 3, "old": False,
    }  # fmt: skip
    for wrong in ("thinking", "=1", "a b=1"):
        with pytest.raises(InputError, match="NAME=VALUE"):
            template_arguments([wrong])
    with pytest.raises(InputError, match="add --chat"):
        read_jobs("a", None, chat=False, slug=None, template_arguments={"x": 1})


def test_an_argument_that_the_template_does_not_know_is_said(folders: Folders, run: Run) -> None:
    spoken = run("attribute", "-t", folders.transcoder, "-p", "a", "--chat", "--chat-option", "thinking=1", "--json")
    assert spoken.code == 0
    assert "warning: the chat template knows no argument 'thinking'" in spoken.err


def test_the_token_in_front_can_be_left_out(folders: Folders, run: Run) -> None:
    spoken = run("attribute", "-t", folders.transcoder, "-p", "the capital of Texas", "--no-bos", "--json").json
    assert spoken["prompt"] == "the capital of Texas"


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\n", ["one", "two"]),
        (b"  two spaces\n", ["  two spaces"]),
        ("one\u2028line\n".encode(), ["one\u2028line"]),
        (b"a\rreturn\x0b\x0c\x85".replace(b"\x85", b"\xc2\x85"), ["a\rreturn\x0b\x0c\x85"]),
    ],
    ids=["byte-order mark", "leading spaces", "line separator", "other separators"],
)
def test_a_prompt_is_what_stands_between_ends_of_lines(data: bytes, prompts: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes(data)
    assert [job.prompt for job in read_jobs(None, tmp_path / "prompts", chat=False, slug=None)] == prompts


@pytest.mark.parametrize("data", [b"\xff\xfeo\x00n\x00e\x00", b"caf\xe9\n"], ids=["UTF-16", "Latin-1"])
def test_bytes_that_are_no_text_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes(data)
    with pytest.raises(InputError, match="UTF-8"):
        read_jobs(None, tmp_path / "prompts", chat=False, slug=None)


def test_a_file_of_prompts_has_a_largest_size(tmp_path: Path) -> None:
    with open(tmp_path / "prompts", "wb") as file:
        file.truncate(2**40)  # sparse: takes no room
    with pytest.raises(InputError, match="more than 67,108,864 bytes"):
        read_jobs(None, tmp_path / "prompts", chat=False, slug=None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have names on POSIX systems alone")
def test_a_pipe_of_prompts_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts")
    writing = Thread(target=(tmp_path / "prompts").write_text, args=["one\ntwo\n"], daemon=True)
    writing.start()
    jobs = read_jobs(None, tmp_path / "prompts", chat=False, slug=None)
    assert [job.prompt for job in jobs] == ["one", "two"]


def test_lines_of_a_prompt_file_are_what_editors_show(folders: Folders, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_bytes("\ufeffTexas is\r\nthe capital\u2028of\n".encode())
    outcome = run("attribute", "-t", folders.transcoder, "--prompt-file", tmp_path / "prompts", "--json")
    assert outcome.code == 0, outcome.err
    assert [json.loads(line)["slug"] for line in outcome.out.splitlines()] == ["001-texas-is", "002-the-capital-of"]
    assert json.loads(outcome.out.splitlines()[0])["prompt"] == "<bos> Texas is"


def test_defaults_are_those_of_python(folders: Folders) -> None:
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.cli.attribute import attribute as command
    from circuit_tracer.cli.frame import flat
    from circuit_tracer.cli.options import Limits
    from circuit_tracer.graph.files.viewer_json import create_graph_files
    from circuit_tracer.replacement_model import ReplacementModel

    here = {name: each.default for name, each in inspect.signature(flat(command)).parameters.items()}
    # circuit-tracer's command line differs from its Python API in these two, and so does ours
    circuit_tracer_cli = {"batch_size": 256, "max_feature_nodes": None}
    assert Limits().arguments(neurons=False)["max_feature_nodes"] == 7500
    assert Limits().arguments(neurons=True)["max_feature_nodes"] is None
    same_meaning = {"dtype": "float32", "resume": False}  # and create_graph_files' target is another thing
    compared = 0
    for function in (attribute, create_graph_files, ReplacementModel.from_pretrained):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in here and name != "target" and parameter.default is not inspect.Parameter.empty:
                assert here[name] == circuit_tracer_cli.get(name, same_meaning.get(name, parameter.default)), name
                compared += 1
    assert compared >= 14


BAD = {
    "no transcoders": (["-p", PROMPT, "-o", "g.pt"], "-t"),
    "transcoders and demo": (["-t", "T", "--demo", "-p", PROMPT, "-o", "g.pt"], "leave one out"),
    "no prompt": (["-t", "T", "-o", "g.pt"], "--prompt"),
    "two prompts": (["-t", "T", "-p", PROMPT, "--prompt-file", "f", "-o", "g.pt"], "--prompt-file"),
    "no output": (["-t", "T", "-p", PROMPT], "-o"),
    "unknown suffix": (["-t", "T", "-p", PROMPT, "-o", "g.bin"], ".safetensors"),
    "slug that is no name": (["-t", "T", "-p", PROMPT, "--slug", "a/b", "--graph-file-dir", "."], "a/b"),
    "threshold above one": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--node_threshold", "1.5"], "--node-threshold"),
    "unknown dtype": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--dtype", "int8"], "int8"),
    "negative batch": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--batch_size", "0"], "--batch-size"),
    "odd positions": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--zero-positions", "a"], "--zero-positions"),
    "missing prompt file": (["-t", "T", "--prompt-file", "no.txt", "-o", "g.pt"], "no.txt"),
    "broken conversation": (["-t", "T", "-p", '[{"role"', "--chat", "-o", "g.pt"], "JSON"),
    "bytes that are no text": (["-t", "T", "-p", "hi \udcff", "-o", "g.pt"], "UTF-8"),
    "server": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--server"], "--graph-file-dir"),
    "no such device": (["-t", "T", "-p", PROMPT, "-o", "g.pt", "--device", "abacus"], "abacus"),
    "no such transcoders": (["-t", "./nowhere", "-p", PROMPT, "-o", "g.pt"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[case]
    outcome = run("attribute", *arguments)
    assert outcome.code == 2
    assert expected in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("*.pt"))


def test_unwritable_folder_is_found_before_the_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run("attribute", "-t", "./nowhere", "-p", PROMPT, "-o", tmp_path / "file" / "g.pt")
    assert outcome.code == 2
    assert "cannot write into the folder" in outcome.err


def test_input_found_bad_by_the_engine(folders: Folders, run: Run) -> None:
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "--target", "Rome", "--json")
    assert outcome.code == 2
    assert "'Rome'" in outcome.err


def test_model_is_needed_when_transcoders_do_not_name_it(run: Run, tmp_path: Path) -> None:
    save_transcoders(tiny_transcoder("clt", torch.float32), tmp_path / "t")
    outcome = run("attribute", "-t", tmp_path / "t", "-p", PROMPT, "--json")
    assert outcome.code == 2
    assert "-m" in outcome.err


def test_one_half_of_the_viewer_flags_is_a_warning(folders: Folders, run: Run, tmp_path: Path) -> None:
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "-o", tmp_path / "g.pt", "--slug", "a")
    assert outcome.code == 0
    assert "warning" in outcome.err


def test_resume_leaves_out_prompts_that_are_done(folders: Folders, run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the capital of Texas is\na state\n")
    command = ["attribute", "-t", folders.transcoder, "--prompt-file", tmp_path / "prompts.txt", "--slug", "p"]
    command += ["--graph-file-dir", tmp_path / "graphs", "--resume"]
    first = run(*command)
    assert first.code == 0, first.err
    assert "0 of 2 prompts" in first.err
    lost, kept = tmp_path / "graphs" / "p-001.json", tmp_path / "graphs" / "p-002.json"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    second = run(*command)
    assert "1 of 2 prompts" in second.err
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before
    third = run(*command)
    assert (third.code, third.out) == (0, "")


def test_targets_of_every_kind(run: Run, folders: Folders, tmp_path: Path) -> None:
    probe = tmp_path / "probe.npy"
    np.save(probe, np.arange(16, dtype=np.float32))
    named = ("id:0", "attn:L1H0:-1:1:rest", "feature:0:2:1", f"direction:{probe}:hook_resid_mid:1:-1")
    options = [part for text in named for part in ("--target", text)]
    outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, *options, "--json")
    assert outcome.code == 0, outcome.err
    labels = [target["text"] for target in outcome.json["targets"]]
    assert "rather than the rest" in labels[1]
    assert labels[2:] == ["feature 0/1", "probe at resid_mid 1"]


def test_a_direction_comes_from_a_file_of_one_tensor(run: Run, folders: Folders, tmp_path: Path) -> None:
    two = tmp_path / "two.npz"
    np.savez(two, a=np.ones(16), b=np.ones(16))
    for named, said in (
        (f"direction:{two}:hook_resid_mid:1:-1", "holds 2 tensors"),
        ("direction:probe.npy:hook_resid_mid:1", "is not direction:FILE"),
        (f"direction:{tmp_path / 'none.npy'}:hook_resid_mid:1:-1", "none.npy"),
    ):
        outcome = run("attribute", "-t", folders.transcoder, "-p", PROMPT, "--target", named, "--json")
        assert outcome.code == 2
        assert said in outcome.err
