"""Probes that look on while a model writes: a score for every token as it is read, and steering from where one fires.

    watch = GenerationWatch(model, [probe], steer_when=[probe.name])
    result = steer(model, prompt, [Direction(...)], watcher=watch)
    watch.scores                                        # (P, K), of the prompt and of what was written

With the key-value cache a probe costs its products with one token a step. Scores are those of a pass over the whole text with
the same interventions from the same position on, up to rounding. A probe that reads a text as a whole says what it says of the
text so far. Letters: P positions, K probes, D numbers that a probe reads, n tokens of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuit_tracer.attribution.traceable import Traceable
from circuit_tracer.errors import InputError
from circuit_tracer.models.run import Place, Visit
from circuit_tracer.probes.probe import Probe
from circuit_tracer.probes.reading import Subject
from circuit_tracer.probes.scoring import Scorer


class GenerationWatch:
    """A `Watcher` of `interventions.steer`.

    scores: (P, K) so far; nan where nothing is read (the special token in front). fired: by probe, the first position.
    since: where interventions began to hold; None: they have not.

    Args:
        model: The replacement model.
        probes: The probes.
        steer_when: Names of probes; interventions hold from the first token that is read after one of them has fired. None:
            they hold throughout.

    Raises:
        InputError: For a name that no probe has.
    """

    def __init__(self, model: Traceable, probes: Sequence[Probe], steer_when: Sequence[str] | None = None) -> None:
        self.scorer = Scorer(Subject.of(model), probes)
        self.probes = self.scorer.probes
        self.when = None if steer_when is None else frozenset(steer_when)
        if lost := sorted((self.when or frozenset()) - {probe.name for probe in probes}):
            known = ", ".join(probe.name for probe in probes)
            raise InputError(f"no probe that watches is called {', '.join(lost)}; there are {known}")
        self.since = 0 if self.when is None else None
        self.fired: dict[str, int] = {}
        self._rows: dict[Place, Tensor] = {}
        self._scores: list[Tensor] = []
        self._so_far: dict[
            int, Tensor
        ] = {}  # by probe: of what is pooled, the largest of each number or the scores' sum
        self._start, self._left_out, self._counted = 0, list[int](), 0

    @property
    def scores(self) -> Tensor:
        """(P, K)."""
        return torch.cat(self._scores) if self._scores else torch.empty(0, len(self.probes))

    def to_json(self) -> dict[str, Any]:
        """Plain values: scores by probe, null where nothing is read."""
        columns = {
            probe.name: [None if math.isnan(score) else score for score in self.scores[:, number].tolist()]
            for number, probe in enumerate(self.probes)
        }
        return {"scores": columns, "fired": dict(self.fired), "since": self.since}

    def lines(self) -> list[str]:
        """For people: where each fired, and the highest score."""
        found = []
        for number, probe in enumerate(self.probes):
            scores = self.scores[:, number].nan_to_num(-math.inf)
            fired = f"fired at position {self.fired[probe.name]}" if probe.name in self.fired else "did not fire"
            highest = f"highest {float(scores.max()):.4g} at {int(scores.argmax())}, threshold {probe.threshold:.4g}"
            found.append(f"watched     {probe.name}: {fired} ({highest})")
        if self.when is not None:
            found.append(f"steered     {'never' if self.since is None else f'from position {self.since} on'}")
        return found

    def visits(self, start: int, left_out: Sequence[int]) -> Mapping[str, Visit]:
        """Keep what the probes read of a pass from position `start` on."""
        if start == 0:  # without a cache, all is read again
            self._scores, self._so_far, self._counted = [], {}, 0
        self._rows, self._start, self._left_out = {}, start, list(left_out)
        return {site: partial(self._keep, site) for site in dict.fromkeys(site for site, _ in self.scorer.places)}

    def _keep(self, site: str, layer: int, x_BPD: Tensor) -> None:
        if (site, layer) in self.scorer.places:
            self._rows[site, layer] = x_BPD.reshape(-1, x_BPD.shape[-1]).detach().to(self.scorer.dtype)

    def passed(self, stop: int) -> None:
        """Score the tokens of the pass; see whether a probe fires."""
        n = stop - self._start
        counted = torch.ones(n, dtype=torch.bool)
        counted[self._left_out] = False
        rows = {place: x_nD[counted.to(x_nD.device)] for place, x_nD in self._rows.items()}
        scores_nK = self.scorer.tokens(rows)
        for number, probe in enumerate(self.probes):
            if probe.pool in ("max", "mean"):
                scores_nK[:, number] = self._of_text(number, rows, scores_nK[:, number])
        self._counted += len(scores_nK)
        every = scores_nK.new_full((n, len(self.probes)), torch.nan)
        every[counted.to(every.device)] = scores_nK
        self._scores.append(every.cpu())
        self._look(self._scores[-1], stop)

    def _of_text(self, number: int, rows: Mapping[Place, Tensor], scores_n: Tensor) -> Tensor:
        """(n,) what a probe that reads a text as a whole says of the text up to each token."""
        if self.probes[number].pool == "max":
            columns_nD = self.scorer.columns(number, rows)
            if number in self._so_far:
                columns_nD = torch.cat([self._so_far[number], columns_nD])
            highest_nD = columns_nD.cummax(0).values[-len(scores_n) :]
            self._so_far[number] = highest_nD[-1:]
            return self.probes[number].score(highest_nD)
        sums_n = scores_n.double().cumsum(0) + self._so_far.get(number, 0.0)
        self._so_far[number] = sums_n[-1]
        return sums_n / (self._counted + torch.arange(1, len(scores_n) + 1, device=scores_n.device))

    def _look(self, scores_nK: Tensor, stop: int) -> None:
        for number, probe in enumerate(self.probes):
            above = probe.fires(scores_nK[:, number]).nonzero().flatten()
            if not len(above):
                continue
            self.fired.setdefault(probe.name, self._start + int(above[0]))
            if self.since is None and self.when is not None and probe.name in self.when:
                self.since = stop
