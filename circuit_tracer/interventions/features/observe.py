"""What features do in a pass, against the clean run: of all that are active in either, or of chosen ones.

Letters: B experiments of a pass, P positions, D d_model, F features a layer, n entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from circuit_tracer.errors import InputError
from circuit_tracer.interventions.features.activations import activations_of
from circuit_tracer.interventions.features.attention_changes import pre_activations
from circuit_tracer.interventions.features.clean import CleanRun
from circuit_tracer.interventions.features.edits import FeatureAt, features_of
from circuit_tracer.interventions.features.resolve import check_feature

Watch = Literal["all", "none"] | Sequence[FeatureAt]
CHUNK = 2**16  # encoder rows gathered at a time


@dataclass(frozen=True)
class FeatureChanges:
    """n features at positions, before and after; sorted by (layer, position, feature). Columns have shape (n,).

    Attributes:
        before: activations of the clean run.
        after: activations with the intervention.
        pre_before: Pre-activations of the clean run.
        pre_after: Pre-activations with the intervention; the change is what a graph's edges predict. A feature that was
            edited shows here what its encoder says, not the value it was given.
    """

    layer: Tensor
    position: Tensor
    feature_idx: Tensor
    before: Tensor
    after: Tensor
    pre_before: Tensor
    pre_after: Tensor

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def change(self) -> Tensor:
        """after - before, (n,)."""
        return self.after - self.before

    def of(self, layer: int, position: int, feature_idx: int) -> int:
        """The row of one feature; InputError if it was not observed, so active in neither run."""
        (row,) = torch.nonzero(
            (self.layer == layer) & (self.position == position) & (self.feature_idx == feature_idx), as_tuple=True
        )
        if not len(row):
            raise InputError(
                f"feature {layer}/{feature_idx} at position {position} was not observed: it is active in neither run; name it "
                "in watch"
            )
        return int(row[0])

    def largest(self, count: int = 10) -> list[tuple[FeatureAt, float, float]]:
        """(feature, before, after) of those whose activations changed most."""
        order = torch.argsort(self.change.abs(), descending=True, stable=True)[:count].tolist()
        return [
            (
                FeatureAt(int(self.layer[row]), int(self.position[row]), int(self.feature_idx[row])),
                float(self.before[row]),
                float(self.after[row]),
            )
            for row in order
        ]


class Watcher:
    """Observer of a pass over `copies` of the prompt: the changes of features, one experiment each."""

    def __init__(self, clean: CleanRun, watch: Watch, copies: int) -> None:
        self.clean, self.copies = clean, copies
        self.chosen = None if isinstance(watch, str) else _chosen(watch, clean)
        self._parts: list[list[Tensor]] = []
        self._copy: list[Tensor] = []

    def add(self, layer: int, x_PD: Tensor) -> None:
        """Take the inputs of the next layer: (B * P, D), or ((B + 1) * P, D) with the clean prompt first."""
        clean_x, n_pos = self.clean.network.transcoder_input(layer), self.clean.n_pos
        change = moved(x_PD, clean_x, self.copies).flatten(0, 1)
        x = clean_x.repeat(self.copies, 1) + change
        row, index = self._entries(layer, x)
        position = row % n_pos
        pre = _project(self.clean, layer, clean_x, position, position, index, with_bias=True)
        # the change by itself, not the difference of two pre-activations, which are far larger
        after = pre + _project(self.clean, layer, change, row, position, index, with_bias=False)
        activations = (
            _activations(self.clean, layer, each, rows, position, index)
            for each, rows in ((clean_x, position), (x, row))
        )
        self._parts.append([torch.full_like(row, layer), position, index, *activations, pre, after])
        self._copy.append(row // n_pos)

    def add_attention(self, layer: int, pre_PF: Tensor) -> None:
        """Take the pre-activations of the features of attention of a layer, of all rows of the pass."""
        clean, n_pos = self.clean, self.clean.n_pos
        dictionary, first = clean.attention.dictionary, clean.model.transcoders.d_transcoder
        x = clean.attention.true_input(layer)
        before = pre_activations(dictionary, layer, x, n_pos, clean.attention)
        after = before.repeat(self.copies, 1) + moved(pre_PF, before, self.copies).flatten(0, 1)
        act_before, act_after = (dictionary.apply_activation_function(layer, each) for each in (before, after))
        row_position = torch.arange(len(after), device=after.device) % n_pos
        left_out = torch.isin(row_position, torch.tensor(clean.left_out, device=after.device))
        act_after = act_after.masked_fill(left_out[:, None], 0)
        act_before = act_before.repeat(self.copies, 1).masked_fill(left_out[:, None], 0)
        if self.chosen is None:
            row, index = torch.nonzero((act_before != 0) | (act_after != 0), as_tuple=True)
        else:
            own = self.chosen.get(layer, torch.empty(0, 2, dtype=torch.int64)).to(after.device)
            own = own[own[:, 1] >= first]
            offset = torch.arange(self.copies, device=after.device)[:, None] * n_pos
            row, index = (own[:, 0] + offset).flatten(), (own[:, 1] - first).repeat(self.copies)
        values = act_before[row, index], act_after[row, index], before[row % n_pos, index], after[row, index]
        self._parts.append([torch.full_like(row, layer), row % n_pos, index + first, *values])
        self._copy.append(row // n_pos)

    def result(self) -> list[FeatureChanges]:
        """Changes of each experiment."""
        columns = [torch.cat(column).cpu() for column in zip(*self._parts, strict=True)]
        copy = torch.cat(self._copy).cpu()
        if self.clean.model.attention is not None:  # features of attention were found apart from the others
            most = 1 + int(columns[2].max()) if len(copy) else 1
            order = torch.argsort((columns[0] * self.clean.n_pos + columns[1]) * most + columns[2], stable=True)
            columns, copy = [column[order] for column in columns], copy[order]
        return [FeatureChanges(*(column[copy == number] for column in columns)) for number in range(self.copies)]

    def _entries(self, layer: int, x_PD: Tensor) -> tuple[Tensor, Tensor]:
        """(row, feature), each (n,), sorted: the chosen ones, or what is active in a pass or on the clean prompt."""
        width, n_pos = self.clean.model.transcoders.n_features(layer), self.clean.n_pos
        offset = torch.arange(self.copies, device=x_PD.device)[:, None] * n_pos * width
        if self.chosen is not None:
            own = self.chosen.get(layer, torch.empty(0, 2, dtype=torch.int64)).to(x_PD.device)
            own = own[own[:, 1] < self.clean.model.transcoders.d_transcoder]
            key = (own[:, 0] * width + own[:, 1] + offset).flatten()
            return key // width, key % width
        active, here = self.clean.active, self.clean.active.of_layer(layer)
        before = (active.position[here] * width + active.index[here] + offset).flatten()
        if self.clean.model.transcoders.exact:  # all that ever is active would be all there is
            key = torch.unique(before)
            return key // width, key % width
        row, index, _ = self.clean.model.transcoders.encode_positions(layer, x_PD)
        there = ~torch.isin(row % n_pos, torch.tensor(self.clean.left_out, device=row.device))
        key = torch.unique(torch.cat([row[there] * width + index[there], before]))
        return key // width, key % width


def moved(after_PD: Tensor, clean_PD: Tensor, copies: int) -> Tensor:
    """Changes (copies, P, D) of the copies of a pass, against the clean prompt in it if it carries one, else a clean run."""
    after: Tensor = after_PD.unflatten(0, (-1, len(clean_PD)))
    return after - clean_PD if len(after) == copies else after[1:] - after[:1]


def _project(
    clean: CleanRun, layer: int, x_PD: Tensor, row: Tensor, position: Tensor, index: Tensor, with_bias: bool
) -> Tensor:
    """(n,) products of rows of x with what features `index` read at `position`; with their biases, pre-activations."""
    found, clean_x = [x_PD.new_zeros(0)], partial(clean.network.transcoder_input, layer)
    for part in torch.arange(len(row), device=row.device).split(CHUNK):
        rows, bias = clean.model.transcoders.reads(layer, index[part], position[part], clean_x)
        product = (x_PD[row[part]] * rows.to(x_PD)).sum(-1)
        found.append(product + bias.to(x_PD) if with_bias else product)
    return torch.cat(found)


def _activations(clean: CleanRun, layer: int, x_PD: Tensor, row: Tensor, position: Tensor, index: Tensor) -> Tensor:
    """(n,) activations of features `index` on rows of x; 0 at left-out positions."""
    found = [x_PD.new_zeros(0)]
    for part in torch.arange(len(row), device=row.device).split(CHUNK):
        found.append(activations_of(clean.model.transcoders, layer, x_PD, row[part], index[part]))
    left_out = torch.isin(position, torch.tensor(clean.left_out, device=position.device))
    return torch.where(left_out, 0, torch.cat(found))


def _chosen(watch: Sequence[FeatureAt], clean: CleanRun) -> dict[int, Tensor]:
    """(position, feature) rows (n, 2) by layer."""
    rows: dict[int, set[tuple[int, int]]] = {}
    for feature in features_of(watch):
        check_feature(feature, clean.model.transcoders, clean.model.attention)
        if feature.position is not None and not 0 <= feature.position < clean.n_pos:
            raise InputError(
                f"watched feature {feature} at position {feature.position}: positions are 0 to {clean.n_pos - 1}"
            )
        positions = range(clean.n_pos) if feature.position is None else [feature.position]
        rows.setdefault(feature.layer, set()).update((position, feature.feature_idx) for position in positions)
    return {layer: torch.tensor(sorted(places)) for layer, places in rows.items()}
