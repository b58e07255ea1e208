"""Words that the demo's small world does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuit_tracer.demo import PROMPT
from circuit_tracer.demo.show import main, name_for
from circuit_tracer.demo.words import about_unknown, unknown_words
from circuit_tracer.errors import InputError


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (PROMPT, []),
        ("The capital of New York is", []),
        ("the capitol of Mars, the capitol", ["capitol", "Mars", ","]),
    ],
)
def test_words_that_are_not_of_the_world(prompt: str, expected: list[str]) -> None:
    assert unknown_words(prompt) == expected


def test_what_is_said_names_what_is_near_and_what_is_known() -> None:
    said = about_unknown(["capitol", "qqqq"])
    assert said.startswith("'capitol', 'qqqq' (did you mean 'capital' for 'capitol'?). It knows US states")


def test_the_demo_refuses_them_before_it_loads_or_writes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="small world does not know 'zebra', 'Mars'"):
        main(tmp_path / "out", "the zebra of Mars is")
    assert not list((tmp_path / "out").iterdir())


def test_another_prompt_gets_another_name_and_the_same_one_its_own(tmp_path: Path) -> None:
    assert name_for(PROMPT, tmp_path) == "demo"
    entries = [{"slug": "demo", "prompt": f"<s> {PROMPT}"}, {"slug": "demo-2", "prompt": "<s> after Monday comes"}]
    (tmp_path / "graph-metadata.json").write_text(json.dumps({"graphs": entries}))
    assert [name_for(each, tmp_path) for each in (PROMPT, "after Monday comes ", "of Texas is")] == [
        "demo",
        "demo-2",
        "demo-3",
    ]
