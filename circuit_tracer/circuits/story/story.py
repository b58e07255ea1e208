"""A story: what a grouped graph says of its prompt, a sentence each, beside what an intervention says of that sentence.

As JSON (`Story.to_json`), which graph files carry as "story", and viewer JSON and pages as metadata.story: {"version": 1,
"title", "prompt", "target", "sentences": [{"kind", "text", "node_ids", "status": "holds" | "does not hold" | "not tested",
"evidence": null or {"text", "holds", "measurements": [{"done", "nodes", "read", "quantity", "before", "after", "predicted",
"random"}]}, "rephrased_by": null or a model}], "left_out": [texts], "seconds"}.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from circuit_tracer.errors import FileFormatError, shortened

VERSION = 1

# What a sentence is about: the answer, the chains that lead to it, what a group reads, what it is worth, another prompt.
Kind = Literal["answer", "chains", "reads", "carries", "contrast"]
# How a number was got: no intervention; nodes taken out in the real model; in the network with MLPs, attention and norms as
# on the prompt, the only one in which a token can be missing; a group put in the place of another.
Done = Literal["clean run", "ablation", "frozen ablation", "swap"]
Quantity = Literal["probability", "score", "value", "pre-activation", "logit"]


@dataclass(frozen=True)
class Measurement:
    """A number before and after an intervention.

    Attributes:
        nodes: What was taken out or swapped.
        read: Title of what the number is of.
        predicted: What the graph says `after` would be; None where it says nothing.
        random: The mean of random groups of the same size; None where none were drawn.
    """

    done: Done
    nodes: tuple[str, ...]
    read: str
    quantity: Quantity
    before: float
    after: float
    predicted: float | None = None
    random: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What testing a sentence gave.

    Attributes:
        holds: Whether it speaks for the sentence; what counts as that, evidence.py says.
    """

    text: str
    holds: bool
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class Sentence:
    """One claim of the graph.

    Attributes:
        node_ids: The nodes it is about.
        evidence: None if nothing tested it.
        rephrased_by: The language model that put it into these words; None: they are the template's.
    """

    kind: Kind
    text: str
    node_ids: tuple[str, ...]
    evidence: Evidence | None = None
    rephrased_by: str | None = None

    @property
    def status(self) -> str:
        """In words: holds, does not hold, not tested."""
        return "not tested" if self.evidence is None else "holds" if self.evidence.holds else "does not hold"


@dataclass(frozen=True)
class Story:
    """The sentences, and what they leave out.

    Attributes:
        target: Title of the output that is explained.
    """

    title: str
    prompt: str
    target: str
    sentences: tuple[Sentence, ...]
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0
    version: int = field(default=VERSION)

    def lines(self, width: int = 110) -> Iterator[str]:
        """For a terminal of so many columns."""
        yield self.title
        for number, sentence in enumerate(self.sentences, start=1):
            tested = "" if sentence.evidence is None else f": {sentence.evidence.text}"
            yield from _wrapped(f"{number:>3}. ", sentence.text, width)
            yield from _wrapped("     ", f"[{sentence.status}]{tested}", width)
        for text in self.left_out:
            yield from _wrapped("     ", text, width)

    def markdown(self) -> str:
        """With the evidence under each sentence, and the ids of its nodes."""
        lines = [f"# {_escaped(self.title)}", ""]
        for number, sentence in enumerate(self.sentences, start=1):
            tested = "" if sentence.evidence is None else f": {_escaped(sentence.evidence.text)}"
            told = "" if sentence.rephrased_by is None else f" *(worded by {_escaped(sentence.rephrased_by)})*"
            lines += [
                f"{number}. {_escaped(sentence.text)}{told}",
                f"   - **{sentence.status}**{tested}",
                f"   - nodes: {', '.join(f'`{node}`' for node in sentence.node_ids)}",
            ]
        if self.left_out:
            lines += ["", "What this leaves out:", "", *(f"- {_escaped(text)}" for text in self.left_out)]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """See the module's text."""
        written = asdict(self)
        for told, sentence in zip(written["sentences"], self.sentences, strict=True):
            told["status"] = sentence.status
        return {**written, "sentences": list(written["sentences"]), "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, value: Any) -> Story:
        """What `to_json` wrote. Raises FileFormatError for anything else."""
        version = value.get("version") if isinstance(value, Mapping) else None
        if version != VERSION:
            raise FileFormatError(
                f"a story of version {shortened(version)}; this circuit-tracing reads {VERSION}. Tell it again"
            )
        try:
            sentences = tuple(map(_sentence, value["sentences"]))
            left_out = tuple(map(str, value["left_out"]))
            title, prompt, target = (str(value[name]) for name in ("title", "prompt", "target"))
            return cls(title, prompt, target, sentences, left_out, float(value["seconds"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"this is no story: {error!r}. Tell it again") from error


def _sentence(value: Mapping[str, Any]) -> Sentence:
    tested = value["evidence"]
    evidence = None
    if tested is not None:
        rows = tuple(Measurement(**{**row, "nodes": tuple(row["nodes"])}) for row in tested["measurements"])
        evidence = Evidence(str(tested["text"]), bool(tested["holds"]), rows)
    return Sentence(value["kind"], str(value["text"]), tuple(value["node_ids"]), evidence, value["rephrased_by"])


def _wrapped(start: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)


def _escaped(text: str) -> str:
    """Text as it is, where Markdown would read signs."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>#|" else character for character in text)
