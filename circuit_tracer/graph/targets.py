"""What a graph explains: the targets, their labels, places and weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.graph.checks import require_all_texts, require_tensors
from circuit_tracer.graph.stream_reads import StreamReads

TargetKind = Literal["logit", "direction", "feature", "attention"]
TARGET_KINDS: tuple[str, ...] = get_args(TargetKind)
_FEATURE_LABEL = re.compile(r"feature (\d{1,9})/(\d{1,18})", re.ASCII)


class LogitTarget(NamedTuple):
    """A target as circuit-tracer stores it: its text, and its token id (or a virtual id >= V when it is no token).

    Attributes:
        token_str: Its text.
        vocab_idx: Its token id, or a virtual id >= V when it is no token.
    """

    token_str: str
    vocab_idx: int

    @classmethod
    def list_of(cls, given: Sequence[tuple[str, int]] | Tensor) -> list[LogitTarget]:
        """Targets of pairs, or of bare ids, as older versions of circuit-tracer keep them."""
        if isinstance(given, Tensor):
            return [cls("", token) for token in given.flatten().tolist()]
        return [cls(*target) for target in given]


class CustomTarget(NamedTuple):
    """A direction to attribute to: label, weight, and a vector (D,) that reads the output of the final norm.

    Attributes:
        token_str: The label.
        prob: The weight; influence takes its size.
        vec: (D,).
    """

    token_str: str
    prob: float
    vec: Tensor


def feature_label(layer: int, index: int) -> str:
    """The label of a target that is a feature."""
    return f"feature {layer}/{index}"


@dataclass
class TargetTable:
    """K targets, column by column. Rows are in the order of the graph's target nodes.

    Attributes:
        label: Text shown to people.
        layer: The layer whose input the target reads; L for logits and directions after the final norm.
        position: Where it is read, the last one if there are several.
        weight: Signed; influence uses its absolute value, for plain logits the probability, not renormalised.
        token_id: Vocabulary id, or a virtual id >= V.
        kind: See ``TARGET_KINDS``.
        reads: The vectors of targets that are no tokens, so that a graph says by itself what it explains; None where they
            are not known (graphs of circuit-tracer).
    """

    label: list[str]
    layer: Tensor
    position: Tensor
    weight: Tensor
    token_id: Tensor
    kind: list[TargetKind]
    reads: StreamReads | None = None

    def __post_init__(self) -> None:
        require_all_texts("target table: label", self.label)
        require_all_texts("target table: kind", self.kind)
        count = len(self.label)
        columns = {"layer": self.layer, "position": self.position, "weight": self.weight, "token_id": self.token_id}
        for name, column in columns.items():
            if column.shape != (count,):
                raise InputError(
                    f"target table: {name} has shape {tuple(column.shape)}, expected ({count},), one a label"
                )
        if len(self.kind) != count:
            raise InputError(f"target table: {len(self.kind)} kinds for {count} labels; give one kind a target")
        unknown = sorted(set(self.kind) - set(TARGET_KINDS))
        if unknown:
            raise InputError(f"target table: unknown kind {unknown[0]!r}; expected one of {', '.join(TARGET_KINDS)}")
        require_tensors(
            whole={f"target table: {name}": columns[name] for name in ("layer", "position", "token_id")},
            numbers={"target table: weight": self.weight},
        )

    def __len__(self) -> int:
        return len(self.label)

    def feature(self, row: int) -> tuple[int, int]:
        """(layer, index) of a target that is a feature, which its label names. Raises InputError for another."""
        found = _FEATURE_LABEL.fullmatch(self.label[row]) if self.kind[row] == "feature" else None
        if found is None:
            raise InputError(f"target {self.label[row]!r} names no feature; expected a label such as 'feature 3/1024'")
        return int(found[1]), int(found[2])

    @classmethod
    def from_logits(
        cls, logit_targets: Sequence[LogitTarget], probabilities: Tensor, n_layers: int, n_pos: int, vocab_size: int
    ) -> TargetTable:
        """The table of circuit-tracer's targets: all after the last layer, at the last position. vocab_size 0:
        unknown.
        """
        count = len(logit_targets)
        token_id = torch.tensor([t.vocab_idx for t in logit_targets], dtype=torch.int64)
        known = vocab_size > 0
        kinds = ["direction" if known and t.vocab_idx >= vocab_size else "logit" for t in logit_targets]
        return cls(
            label=[t.token_str for t in logit_targets],
            layer=torch.full((count,), n_layers, dtype=torch.int64),
            position=torch.full((count,), n_pos - 1, dtype=torch.int64),
            weight=probabilities.detach(),
            token_id=token_id,
            kind=cast("list[TargetKind]", kinds),
        )

    def to(self, device: str | torch.device) -> TargetTable:
        return TargetTable(
            self.label,
            self.layer.to(device),
            self.position.to(device),
            self.weight.to(device),
            self.token_id.to(device),
            self.kind,
            None if self.reads is None else self.reads.to(device),
        )
