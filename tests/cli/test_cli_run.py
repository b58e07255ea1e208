"""`circuit-tracer run`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from circuit_tracer.many import Run as OpenRun
from circuit_tracer.many import open_run
from tests.support.command import Folders, Run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": "the capital of Texas", "label": "a"}, {"prompt": "Paris France a", "id": "p"}, {"prompt": ""}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{")
    return path


def test_a_run_and_what_is_added_to_it(run: Run, folders: Folders, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    first = run("run", prompts, "-t", folders.transcoder, "-o", out, "--max-n-logits", 3, "--device", "cpu")
    assert first.code == 0
    counts, types, empty, unreadable, _ = first.out.splitlines()
    assert counts == "rows       4: 2 done, 2 failed"
    assert types == "failed     1 InputError, 1 FileFormatError"
    assert empty.startswith("           '000003': prompt has 1 token(s); at least 2 are needed")
    assert unreadable.startswith(f"           'line-4': {prompts}, line 4 is not readable JSON")
    assert "rows 3/3  1 failed" in first.err
    found = open_run(out)
    assert found.settings["tracing"]["max_n_logits"] == 3
    assert found.settings["tracing"]["max_feature_nodes"] == 7500  # attribute's default on the command line
    assert found.settings["opening"]["model"] is None  # the transcoders name it
    assert found.ids == ["000001", "p"]

    prompts.write_text(prompts.read_text() + "\n" + json.dumps({"tokens": [4, 5, 6], "id": "t"}))
    again = run("run", prompts, "-o", out, "--json")  # nothing need be said again
    summary = again.json
    assert [each["id"] for each in summary.pop("examples")] == ["000003", "line-4"]
    assert summary == {
        "run": str(out),
        "rows": 5,
        "done": 3,
        "failed": 2,
        "waiting": 0,
        "errors": {"InputError": 1, "FileFormatError": 1},
        "files": [str(out / "results.parquet")],
    }
    said = run("info", out, "--json").json
    assert (said["what"], said["done"], said["transcoders"]) == ("run over many prompts", 3, folders.transcoder)
    assert parquet.read_table(out / "results.parquet").column("id").to_pylist()[:4] == ["000001", "p", "000003", "t"]

    assert f"wrote {out}.html" in run("view", out).out
    by_address = out.with_name("by-address.html")
    assert run("view", out.as_uri(), "-o", by_address).code == 0
    for page in (Path(f"{out}.html"), by_address):
        assert '"id":"p","label"' in page.read_text(encoding="utf-8")

    other = run("run", prompts, "-o", out, "--max-n-logits", 2)
    assert other.code == 2
    assert "tracing.max_n_logits is 3 there and 2 here" in other.err
    assert run("run", prompts, "-o", out, "--max-n-logits", 3).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the transcoders: -t, or --demo"),
        (("--demo", "--shard", "2/2"), "shard 2/2 does not exist"),
        (("--demo", "--shard", "one"), "--shard is 'one'"),
        (("--demo", "--chat-option", "x"), "--chat-option is 'x'"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], said: str, run: Run, prompts: Path, tmp_path: Path) -> None:
    outcome = run("run", prompts, "-o", tmp_path / "x", *words)
    assert outcome.code == 2
    assert said in outcome.err


def test_chat_prompts(run: Run, folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\nTexas\n")
    outcome = run(
        "run", tmp_path / "p.csv", "-o", tmp_path / "x", "-t", folders.transcoder, "--chat", "--device", "cpu"
    )
    assert outcome.code == 0
    assert open_run(tmp_path / "x").table[0]["prompt"] == "<bos> the Texas"


@pytest.mark.parametrize("command", ["aggregate", "fingerprints", "report"])
def test_a_folder_that_cannot_be_written_is_refused_before_graphs_are_read(
    command: str, run: Run, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "x"
    prompts.write_text('{"tokens": [4, 5, 6]}')
    assert run("run", prompts, "-t", folders.transcoder, "-o", out, "--device", "cpu").code == 0
    (out / command).write_text("in the way")
    monkeypatch.setattr(OpenRun, "graph", lambda *_: pytest.fail("a graph was read"))
    outcome = run(command, out)
    assert outcome.code == 2
    assert f"cannot write into the folder {out / command}" in outcome.err
