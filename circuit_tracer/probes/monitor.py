"""A monitor: flags tokens and texts of a stream by probes and thresholds of features, in one pass up to the deepest place.

    monitor = Monitor(model, [Probe.load("names.safetensors"), feature_watch("3/41>2.5")])
    for verdict in monitor.watch(read_lines(file)):
        ...

Texts are looked ahead at, read in batches of similar length, and answered in the order in which they came. Memory holds the
texts that are looked ahead at, with a number a token and probe, and one batch of activations.
Letters: n tokens that count, K probes, D numbers that a probe reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuit_tracer.arguments import whole
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.models.run import Place
from circuit_tracer.probes.examples import Example
from circuit_tracer.probes.incoming import Incoming
from circuit_tracer.probes.probe import FEATURES, Probe
from circuit_tracer.probes.reading import BATCH_TOKENS, Subject, Tokens, batches, tokens_of_any_length
from circuit_tracer.probes.reasons import Reason, Reasons
from circuit_tracer.probes.scoring import Scorer
from circuit_tracer.probes.windows import Window, windows

SUFFIX = ".safetensors"
SHORTEST_WINDOW = 16
AHEAD_CHARACTERS = 2**20  # of texts that are looked ahead at
MOST_EXPLAINED = 20  # flags of a probe in a window that get features
MOST_SHOWN = 200  # characters of a flag that its line repeats
_WATCH = re.compile(r"(\d{1,9})/(\d{1,9})(?:>(.+))?")


@dataclass(frozen=True)
class Watching:
    """How a stream is read.

    Attributes:
        ahead: Texts that are read before the first is answered; 1 answers each at once.
        batch_tokens: Read side by side, filling included.
        window: Most tokens of a pass; None: the model's context.
        features: Named for each flag; 0: none.
    """

    ahead: int = 256
    batch_tokens: int = BATCH_TOKENS
    window: int | None = None
    features: int = 5

    def __post_init__(self) -> None:
        for name, least in (("ahead", 1), ("batch_tokens", 1), ("features", 0)):
            if whole(getattr(self, name), name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.window is not None and whole(self.window, "window") < SHORTEST_WINDOW:
            raise InputError(f"window is {self.window}; expected {SHORTEST_WINDOW} tokens or more")


@dataclass(frozen=True)
class Flag:
    """Where a probe fired: characters start ... end - 1, which begin with `text`.

    Attributes:
        position: Of the highest token.
    """

    probe: str
    start: int
    end: int
    text: str
    position: int
    score: float
    features: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What is said of one text, or the problem with it.

    Attributes:
        scores: By probe, of the whole text.
        tokens: How many were read.
    """

    id: str
    scores: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    tokens: int = 0
    problem: str | None = None

    @property
    def flagged(self) -> bool:
        """Whether any probe fired."""
        return bool(self.flags)

    def to_json(self, labels: Mapping[tuple[int, int], str] | None = None) -> dict[str, Any]:
        """A line of a monitor's output. labels: of features, by (layer, feature)."""
        if self.problem is not None:
            return {"id": self.id, "problem": self.problem}
        flags = [
            {
                **{name: getattr(flag, name) for name in ("probe", "start", "end", "text", "position", "score")},
                "features": [_described(reason, labels or {}) for reason in flag.features],
            }
            for flag in self.flags
        ]
        return {
            "id": self.id,
            "flagged": self.flagged,
            "flags": flags,
            "scores": dict(self.scores),
            "tokens": self.tokens,
        }


def feature_watch(text: str) -> Probe:
    """LAYER/FEATURE>THRESHOLD as a probe that fires where the feature's activation is above it (default 0: where it is
    active).

    Args:
        text: LAYER/FEATURE>THRESHOLD.

    Returns:
        The probe.

    Raises:
        InputError: For text that is none.
    """
    match = _WATCH.fullmatch(text.replace(" ", ""))
    try:
        threshold = float(match[3] or 0) if match else None
    except ValueError:
        threshold = None
    if match is None or threshold is None:
        raise InputError(f"{text!r} is no feature with a threshold; write LAYER/FEATURE>VALUE, such as 3/41>2.5")
    place = (int(match[1]), int(match[2]))
    return Probe(f"feature {place[0]}/{place[1]}", FEATURES, None, torch.ones(1), 0.0, threshold, "token", (place,))


def named_probes(names: Iterable[str | Path]) -> list[Probe]:
    """Of probe files, folders of them, and features with a threshold (`feature_watch`), in order.

    Args:
        names: Files, folders, or features.

    Returns:
        The probes, in order.

    Raises:
        InputError: For a name that is none of these.
    """
    found: list[Probe] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(path.glob(f"*{SUFFIX}"))
            if not files:
                raise InputError(f"{path} holds no probe; its files end in {SUFFIX}")
            found += [Probe.load(file) for file in files]
        else:
            watch = _WATCH.fullmatch(str(name).replace(" ", "")) and not path.is_file()
            found.append(feature_watch(str(name)) if watch else Probe.load(path))
    return found


class Monitor:
    """Probes that watch a stream of texts.

    Args:
        model: As `Subject.of` takes it.
        probes: The probes.
        watching: How the stream is read; None: `Watching()`.

    Raises:
        CompatibilityError: For another's probes.
    """

    def __init__(self, model: Any, probes: Sequence[Probe], watching: Watching | None = None) -> None:
        self.subject, self.watching = Subject.of(model), watching or Watching()
        self.probes = tuple(probes)
        reasons = [Reasons(self.subject, probe) for probe in probes] if self.watching.features else []
        self.reasons = dict(enumerate(reasons))
        also = [each.place for each in reasons if each.place is not None]
        self.scorer = Scorer(self.subject, probes, also)
        context = self.subject.parts.context_length
        asked = self.watching.window
        if asked is not None and context is not None and asked > context:
            raise InputError(f"window is {asked}; the model reads at most {context} tokens at once")
        self.window = context if asked is None else asked

    def watch(self, stream: Iterable[Incoming | str]) -> Iterator[Verdict]:
        """A verdict for every text of the stream, in its order; a text that cannot be read has a problem instead."""
        chunk: list[Incoming] = []
        characters = 0
        for number, item in enumerate(stream, start=1):
            item = Incoming(str(number), Example(item)) if isinstance(item, str) else item
            chunk.append(item)
            characters += len(item.example.text or "") if item.example else 0
            if len(chunk) >= self.watching.ahead or characters > AHEAD_CHARACTERS:
                yield from self._answers(chunk)
                chunk, characters = [], 0
        yield from self._answers(chunk)

    def look(self, text: str) -> Verdict:
        """The verdict on one text."""
        return next(self.watch([text]))

    def _answers(self, chunk: Sequence[Incoming]) -> list[Verdict]:
        texts = [self._opened(item) for item in chunk]
        parts = [(text, window) for text in texts if isinstance(text, _Text) for window in text.windows]
        lengths = [len(window.tokens.ids) for _, window in parts]
        for numbers in batches(lengths, self.watching.batch_tokens):
            self._read([parts[number] for number in numbers])
        return [self._verdict(text) if isinstance(text, _Text) else text for text in texts]

    def _opened(self, item: Incoming) -> _Text | Verdict:
        if item.example is None:
            return Verdict(item.id, problem=item.problem)
        try:
            tokens = tokens_of_any_length(item.example, self.subject)
            return _Text(item.id, tokens, windows(tokens, self.window))
        except CircuitTracerError as error:
            return Verdict(item.id, problem=str(error))

    def _read(self, parts: Sequence[tuple[_Text, Window]]) -> None:
        """One pass over windows side by side, each text told what was found."""
        rows = self.scorer.read([window.tokens for _, window in parts])
        scores_nK = self.scorer.tokens(rows)
        sizes = [int(window.tokens.counted.sum()) for _, window in parts]
        columns = {
            number: self.scorer.columns(number, rows)
            for number, probe in enumerate(self.probes)
            if probe.pool == "max" or (probe.features and number in self.reasons)
        }
        start = 0
        for (text, window), size in zip(parts, sizes, strict=True):
            here = slice(start, start + size)
            text.add(window, scores_nK[here].cpu())
            for number, probe in enumerate(self.probes):
                if probe.pool == "max":
                    text.raise_to(number, columns[number][here])
                if number in self.reasons:
                    peaks = text.peaks(number, probe, window, scores_nK[here, number].cpu())
                    self._keep(text, number, window, peaks, here, columns, rows)
            start += size

    def _keep(
        self,
        text: _Text,
        number: int,
        window: Window,
        peaks: Sequence[int],
        here: slice,
        columns: Mapping[int, Tensor],
        rows: Mapping[Place, Tensor],
    ) -> None:
        """What the features behind a flag are found from, of the tokens that may be its highest."""
        place, place_n = self.reasons[number].place, window.place[window.tokens.counted]
        for at in peaks:
            row = here.start + at
            of_probe = columns[number][row].clone() if self.probes[number].features else None
            of_input = rows[place][row].clone() if place is not None else None
            text.kept[number, int(place_n[at])] = (of_probe, of_input)

    def _verdict(self, text: _Text) -> Verdict:
        scores_nK = torch.cat(text.scores)
        if not torch.isfinite(scores_nK).all():
            problem = "the model's activations on this text are not finite. Check its weights, or load it in float32."
            return Verdict(text.id, problem=problem)
        place_n = np.concatenate(text.places)
        scores, flags = {}, []
        for number, probe in enumerate(self.probes):
            score = scores[probe.name] = text.score(number, probe, scores_nK[:, number])
            if score <= probe.threshold:
                continue
            runs = [np.arange(len(place_n))]
            if probe.pool == "token":
                runs = _runs(np.flatnonzero(probe.fires(scores_nK[:, number]).numpy()), place_n)
            flags += [self._flag(text, number, place_n[run], scores_nK[run, number], score) for run in runs]
        flags.sort(key=lambda flag: (flag.start, flag.end))
        return Verdict(text.id, scores, tuple(flags), len(place_n))

    def _flag(self, text: _Text, number: int, place_n: np.ndarray, scores_n: Tensor, whole_score: float) -> Flag:
        probe, tokens = self.probes[number], text.tokens
        position = int(place_n[int(scores_n.argmax())])
        inside = place_n[tokens.start[place_n] < tokens.stop[place_n]]  # special tokens within are no characters
        start, end = (int(tokens.start[inside].min()), int(tokens.stop[inside].max())) if len(inside) else (0, 0)
        found: list[Reason] = []
        if number in self.reasons and (number, position) in text.kept:
            found = self.reasons[number].find(*text.kept[number, position], self.watching.features)
        score = float(scores_n.max()) if probe.pool == "token" else whole_score
        return Flag(
            probe.name, start, end, tokens.text[start : min(end, start + MOST_SHOWN)], position, score, tuple(found)
        )


@dataclass
class _Text:
    """A text on its way: what has been found in its windows."""

    id: str
    tokens: Tokens
    windows: Sequence[Window]
    scores: list[Tensor] = field(default_factory=list)  # (n, K) of each window, as it came
    places: list[np.ndarray] = field(default_factory=list)
    highest: dict[int, Tensor] = field(default_factory=dict)  # by probe: (D,) the largest of each number
    kept: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def add(self, window: Window, scores_nK: Tensor) -> None:
        """The scores of a window's tokens that count; windows are sorted when all have come."""
        self.scores.append(scores_nK)
        self.places.append(window.place[window.tokens.counted])
        if len(self.scores) == len(self.windows):
            order = sorted(range(len(self.places)), key=lambda at: self.places[at][0])
            self.scores, self.places = [self.scores[at] for at in order], [self.places[at] for at in order]

    def raise_to(self, number: int, columns_nD: Tensor) -> None:
        """For a probe on the largest of each number."""
        here = columns_nD.amax(0)
        before = self.highest.get(number)
        self.highest[number] = here if before is None else torch.maximum(before, here)

    def peaks(self, number: int, probe: Probe, window: Window, scores_n: Tensor) -> list[int]:
        """Rows of a window that may be the highest of a flag."""
        if probe.pool != "token":
            return [int(scores_n.argmax())]
        place_n = window.place[window.tokens.counted]
        runs = _runs(np.flatnonzero(probe.fires(scores_n).numpy()), place_n)
        tops = [int(run[int(scores_n[run].argmax())]) for run in runs]
        return sorted(tops, key=lambda at: -float(scores_n[at]))[:MOST_EXPLAINED]

    def score(self, number: int, probe: Probe, scores_n: Tensor) -> float:
        """Of the whole text, as probes/reading.py pools it."""
        if probe.pool == "max":
            return float(probe.score(self.highest[number]))
        if probe.pool == "mean":
            return float(scores_n.double().mean())
        return float(scores_n[-1] if probe.pool == "last" else scores_n.max())


def _runs(rows: np.ndarray, place_n: np.ndarray) -> list[np.ndarray]:
    """Rows (ascending) in groups whose tokens stand side by side."""
    return np.split(rows, np.flatnonzero(np.diff(place_n[rows]) != 1) + 1) if len(rows) else []


def _described(reason: Reason, labels: Mapping[tuple[int, int], str]) -> dict[str, Any]:
    label = labels.get((reason.layer, reason.feature))
    return {**reason._asdict(), **({"label": label} if label else {})}
