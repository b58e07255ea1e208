"""A language model may reword a story, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from circuit_tracer.circuits.story import Evidence, Sentence, Story
from circuit_tracer.circuits.story.rephrase import changes, rephrased
from circuit_tracer.features.chat import ChatModel
from tests.support.fake_servers import KEY, FakeServer

BEFORE = "say Austin (3 features of layers 1 to 2 at “is”) takes its input from Texas (53 %) and is held back by capital (9 %)."
TITLES = ["say Austin", "Texas", "capital", "California"]


@pytest.mark.parametrize(
    "after",
    [
        BEFORE,
        "say Austin (3 features of layers 1 to 2 at “is”) draws on Texas (53 %), and capital (9 %) works against it.",
        "The group say Austin, its 3 features of layers 1 to 2 at “is”, reads Texas (53 %) but is opposed by capital (9 %).",
    ],
    ids=["same", "against", "opposed"],
)
def test_the_same_in_other_words(after: str) -> None:
    assert changes(BEFORE, after, TITLES) == []


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (BEFORE.replace("53", "54"), "54"),
        (BEFORE.replace(" (9 %)", ""), "9"),
        (BEFORE.replace("Texas", "California"), "California"),
        (BEFORE.replace("“is”", "“was”"), "“was”"),
        (BEFORE.replace("is held back by", "also from"), "denial"),
        (BEFORE.replace("takes its input from", "gives its output to").replace(" to 2", "–2"), "giving"),
        (BEFORE.replace("Texas (53 %)", "TX9").replace("capital (9 %)", "Texas (53 %)"), "capital"),
        (
            BEFORE.replace("Texas (53 %)", "capital (9 %)", 1).replace("back by capital (9 %)", "back by Texas (53 %)"),
            "order",
        ),
        (BEFORE[:-1] + ", as Lincoln knew.", "Lincoln"),
        (BEFORE[:-1] + ", most of it.", "most"),
        (BEFORE[:-1] + ", which proves it.", "proof"),
        (BEFORE[:-1] + ", see node 0_12_7.", "0_12_7"),
        (BEFORE + "\nAnd more.", "more than a sentence"),
        (BEFORE + " it" * 99, "more than a sentence"),
    ],
)
def test_what_is_changed_is_found(after: str, found: str) -> None:
    before = BEFORE.replace(" to 2", "–2") if "–2" in after else BEFORE
    assert any(found in each for each in changes(before, after, TITLES)), changes(before, after, TITLES)


def test_only_faithful_sentences_are_taken(tmp_path: Path) -> None:
    evidence = Evidence("Without it, nothing.", True, ())
    carries = Sentence("carries", "Texas passes on 37 % of it.", ("0_1_2",), evidence)
    story = Story("t", "p", "“Austin”", (carries, Sentence("reads", BEFORE, ("0_1_2",))))

    def answers(method: str, path: str, body: Any, headers: Any) -> tuple[int, Any]:
        asked = body["messages"][1]["content"]
        text = asked.replace("passes on", "carries") if "passes" in asked else asked.replace("53 %", "about half")
        return 200, {"choices": [{"message": {"role": "assistant", "content": f"{text}\n"}}]}

    with FakeServer(answers).running() as server:
        found = rephrased(story, ChatModel("some-model", f"{server.address}/v1", tmp_path, KEY), TITLES)
    first, second = found.sentences
    assert (first.text, first.rephrased_by) == ("Texas carries 37 % of it.", "some-model")
    assert first.evidence == evidence
    assert second == story.sentences[1]
    assert "worded by some-model" in found.markdown()
