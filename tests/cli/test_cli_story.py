"""`circuit-tracer story`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer import Graph
from circuit_tracer.circuits import kept_grouping
from circuit_tracer.circuits.story import Story
from tests.support.command import Folders, Run


def test_a_story_is_printed_kept_and_written(run: Run, folders: Folders, traced: Path, tmp_path: Path) -> None:
    given = ("-t", folders.transcoder, "-m", folders.model, "--device", "cpu", "--random-groups", "2")
    contrast = ("--contrast", "the capital of France is")
    done = run("story", traced, *given, *contrast, "-o", tmp_path / "s.md")
    assert done.code == 0, done.err
    graph = Graph.load(traced)
    story = Story.from_json(graph.story)
    assert kept_grouping(graph) is not None
    assert story.title in done.out
    assert f"wrote      {traced}" in done.out
    assert (tmp_path / "s.md").read_text(encoding="utf-8") == story.markdown()
    assert {sentence.status for sentence in story.sentences} <= {"holds", "does not hold"}
    done = run("story", traced, "-o", tmp_path / "s.json", "--json")
    untested = Story.from_json(json.loads(done.out))
    assert {sentence.status for sentence in untested.sentences} == {"not tested"}
    assert Story.from_json(json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))) == untested
    done = run("group", traced, "-o", tmp_path / "again.safetensors", "--purity", "1")
    assert "story was told of other groups" in done.err
    assert Graph.load(tmp_path / "again.safetensors").story is None
    done = run("story", traced, "-o", tmp_path / "s.html")
    assert untested.sentences[0].text in (tmp_path / "s.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-o", "story.txt"), ".md, .json, .html"),
        (("--contrast", "the capital"), "-t"),
        (("--name-by", "some-model"), "--features"),
        (("--endpoint", "http://localhost:1/v1"), "--name-by or --reword-by"),
    ],
)
def test_bad_input(run: Run, traced: Path, options: tuple[str, ...], expected: str) -> None:
    done = run("story", traced, *options)
    assert done.code == 2
    assert expected in done.err
    assert "Traceback" not in done.err
