"""Where the files of each layer of a dictionary are, from the names of files alone: of a folder, or of a repository.

What stands in one place of the path for all layers makes a *group*: `layer_{}/width_16k/average_l0_{}/params.npz`. A group is
one dictionary; if there are several, a selection (selection.py) says which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from circuit_tracer.errors import FileFormatError, InputError
from circuit_tracer.transcoders.formats.beside import is_a_models_weights, is_harmless
from circuit_tracer.transcoders.selection import Selection, selected_layers, selection_text

WEIGHTS = (".safetensors", ".npz")
PICKLES = (".pt", ".pth")  # looked at only where there is nothing else
SETTINGS = (".json", ".yaml", ".yml")  # what may say how weights are meant, if it lies beside them
_ANY_WEIGHTS = (
    *WEIGHTS, *PICKLES, ".npy", ".bin", ".ckpt", ".pkl", ".pickle", ".h5", ".dcp", ".msgpack", ".gguf",
)  # fmt: skip

_CLT_FILE = re.compile(r"W_(?:enc|dec)_(\d+)")
# A layer is named by the first of these that a part of the path has; the innermost part counts.
_LAYERS = (
    re.compile(r"(?<![A-Za-z])(?:layers?|blocks?)[._-]?(\d+)(?!\d)", re.IGNORECASE),
    re.compile(r"(?<![A-Za-z0-9])h[._](\d+)(?!\d)"),
    re.compile(r"(?<![A-Za-z0-9])L(\d+)(?!\d)"),
)
_NUMBER = re.compile(r"(?<![A-Za-z0-9])(\d+)(?![A-Za-z0-9])")
_NATIVE = re.compile(r"(?:layer_\d+\.(?:safetensors|npz)|W_(?:enc|dec)_\d+\.safetensors)")
_SHARD = re.compile(r"[-_](\d{5})-of-(\d{5})$")
_RANK = re.compile(r"rank_?(\d+)_", re.IGNORECASE)

_L0_NUMBER = re.compile(r"(?<![A-Za-z0-9])(?:average_)?l0[_-](\d+)(?![A-Za-z0-9])")
_FACETS = {
    "width": re.compile(r"(?<![A-Za-z0-9])width[_-](\d+[kKmM]?)(?![A-Za-z0-9])"),
    "l0": re.compile(r"(?<![A-Za-z0-9])(?:average_)?l0[_-]([a-z]+)(?![A-Za-z0-9])"),
    "affine": re.compile(r"(?<![A-Za-z0-9])(affine)(?![A-Za-z0-9])"),
    "expansion": re.compile(r"(?<![A-Za-z0-9])(\d+x)(?![A-Za-z0-9])"),
    "k": re.compile(r"(?<![A-Za-z0-9])k[_-]?(\d+)(?![A-Za-z0-9])"),
}


@dataclass(frozen=True)
class Found:
    """The files of a dictionary: names by layer, in the order of their shards; None: one file that names no layer.

    ``beside`` are files that may say how the weights are meant. ``l0``: which was taken in each layer, where it was asked for.
    """

    layers: dict[int, list[str]] | None
    files: list[str]
    beside: list[str]
    l0: dict[int, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All files that are needed."""
        return [*self.files, *self.beside]


@dataclass
class _Group:
    template: str
    facets: dict[str, str]
    files: dict[int | None, dict[int | None, list[str]]]  # layer -> L0 -> names

    @property
    def names(self) -> list[str]:
        """All its files, of every L0."""
        return [name for by_l0 in self.files.values() for names in by_l0.values() for name in names]


def find(names: Iterable[str], selection: Selection, where: str, is_model: Callable[[str], bool]) -> Found:
    """The dictionary among ``names`` (relative, with /) that the selection means.

    ``where`` names the folder or repository in messages; ``is_model`` looks whether a config.json is a language model's.
    Raises FileFormatError if there is none, InputError, with the choices, if the selection fits none or leaves several.
    """
    listed = sorted(names)
    of_dictionaries = _without_models(listed, is_model)
    groups = _grouped(_weights(of_dictionaries, where))
    group = _chosen(groups, selection, where)
    _require_pairs(group, where)
    l0 = _L0(selection.get("l0"), where)
    layers: dict[int, list[str]] = {}
    wanted = selected_layers(selection["layer"]) if "layer" in selection else None
    for layer, by_l0 in group.files.items():
        if layer is not None and (wanted is None or layer in wanted):
            layers[layer] = _shards(l0.of(layer, by_l0), where)
    lone = [_shards(l0.of(None, by_l0), where) for layer, by_l0 in group.files.items() if layer is None]
    if lone and layers:
        raise _no_layer(lone[0][0], where)
    if wanted is not None and (missing := sorted(wanted - layers.keys())):
        has = ", ".join(map(str, sorted(layer for layer in group.files if layer is not None))) or "no layer by its name"
        raise InputError(f"{where} has no layer {', '.join(map(str, missing[:8]))}: it has {has}.")
    files = [name for one in (layers.values() or lone) for name in one]
    _require_nothing_left(
        files,
        of_dictionaries,
        {name for one in groups for name in one.names} if selection else set(),
        where,
    )
    return Found(layers or None, files, _beside(files, listed), l0.taken)


def _no_layer(name: str, where: str) -> FileFormatError:
    return FileFormatError(
        f"{where}: cannot tell which layer {name} belongs to. Name files by their layer (layer_0, layer_1, ...), or list them "
        "in order in a config.yaml under `transcoders`."
    )


def layer_named(path: str) -> int | None:
    """The layer that a path or a hook says, `layers.5.mlp/sae.safetensors`, `blocks.5.mlp.hook_in`; None: none."""
    for part in reversed(path.split("/")):
        for pattern in _LAYERS:
            if match := pattern.search(part):
                return int(match[1])
    return None


# ---- from names to groups


def _without_models(listed: Sequence[str], is_model: Callable[[str], bool]) -> list[str]:
    """Names of files that may matter: without those known not to, and without the weights of a model in the same folder."""
    known = {name for name in listed if is_harmless(_last(name))}
    for name in listed:
        config = str(PurePosixPath(name).parent / "config.json")
        if is_a_models_weights(_last(name)) and config in listed and is_model(config):
            known.add(name)
    return [name for name in listed if name not in known]


def _weights(listed: Sequence[str], where: str) -> list[str]:
    for suffixes in (WEIGHTS, PICKLES):
        kept = [name for name in listed if name.endswith(suffixes)]
        ranks = [name for name in kept if _RANK.match(_last(name))]
        if ranks:
            raise FileFormatError(
                f"{where}: {', '.join(ranks[:4])} are parts of one dictionary, as its ranks trained it (CLT-Forge). Merge them "
                "into one file with the library that wrote them."
            )
        # What lies in the folder itself is meant, not what lies below it; and of that, native files.
        here = [name for name in kept if "/" not in name]
        if kept:
            return [name for name in here if _NATIVE.fullmatch(name)] or here or kept
    shown = ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
    raise FileFormatError(
        f"{where} holds no transcoder files: no .safetensors or .npz in it or in its subfolders"
        f"{f'; found {shown}' if listed else ''}. Check the path."
    )


def _grouped(names: Iterable[str]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for name in names:
        layer, template = _layer(PurePosixPath(name))
        l0 = _L0_NUMBER.search(template)
        if l0 is not None:
            template = f"{template[: l0.start(1)]}{{}}{template[l0.end(1) :]}"
        facets = {facet: match[1] for facet, pattern in _FACETS.items() if (match := pattern.search(name))}
        group = groups.setdefault(template, _Group(template, facets, {}))
        by_l0 = group.files.setdefault(layer, {})
        by_l0.setdefault(None if l0 is None else int(l0[1]), []).append(name)
    if any("affine" in group.facets for group in groups.values()):
        for group in groups.values():
            group.facets["affine"] = "yes" if "affine" in group.facets else "no"
    return list(groups.values())


def _layer(path: PurePosixPath) -> tuple[int | None, str]:
    """The layer that a path names, and the path without it and without the number of a shard."""
    parts = [*path.parent.parts, _SHARD.sub("", path.stem)]
    match = _CLT_FILE.fullmatch(parts[-1])
    if match is not None:
        return int(match[1]), "/".join([*parts[:-1], "W_{}" + path.suffix])
    for number, part in reversed(list(enumerate(parts))):
        for pattern in _LAYERS:
            found = {int(match[1]) for match in pattern.finditer(part)}
            if len(found) == 1:
                parts[number] = pattern.sub(lambda match: _without(match), part)
                return found.pop(), "/".join(parts) + path.suffix
    # Where no part says "layer", the one number there is does.
    plain = _plain("/".join(parts))
    found = {int(each) for each in _NUMBER.findall(plain)}
    if len(found) == 1:
        number = found.pop()
        spelled = re.compile(rf"(?<![A-Za-z0-9])0*{number}(?![A-Za-z0-9])")
        return number, spelled.sub("{}", "/".join(parts)) + path.suffix
    return None, "/".join(parts) + path.suffix


def _without(match: re.Match[str]) -> str:
    start, stop = match.span(1)
    return f"{match.string[match.start() : start]}{{}}{match.string[stop : match.end()]}"


def _plain(text: str) -> str:
    """Without what facets say in figures."""
    for pattern in (_L0_NUMBER, *_FACETS.values()):
        text = pattern.sub("", text)
    return text


# ---- from groups to one


def _chosen(groups: list[_Group], selection: Selection, where: str) -> _Group:
    kept = [group for group in groups if _fits(group, selection)]
    if not kept:
        raise InputError(f"{where} holds nothing with {selection_text(selection)}. There is:\n{_choices(groups)}")
    if len(kept) > 1 and all(group.files.keys() == {None} for group in kept):
        raise _no_layer(kept[0].names[0], where)
    if len(kept) > 1:
        raise InputError(
            f"{where} holds {len(kept)} dictionaries{f' with {selection_text(selection)}' if selection else ''}:\n"
            f"{_choices(kept)}\nSay which: `{where}:facet=value,facet=value` (or --select, select=), or the sub-folder."
        )
    return kept[0]


def _fits(group: _Group, selection: Selection) -> bool:
    for facet, wanted in selection.items():
        if facet == "layer":
            continue
        if facet == "path":
            if wanted not in group.template:
                return False
        elif facet == "l0" and "l0" not in group.facets:
            if not any(l0 is not None for by_l0 in group.files.values() for l0 in by_l0):
                return False
        elif group.facets.get(facet, "").lower() != wanted.lower():
            return False
    return True


def _choices(groups: list[_Group]) -> str:
    """What groups differ in, facet by facet; where that does not tell them apart, their paths."""
    values = {facet: sorted({group.facets[facet] for group in groups if facet in group.facets}) for facet in _FACETS}
    differing = {facet: found for facet, found in values.items() if len(found) > 1}
    first = {group.template.partition("/")[0] for group in groups if "/" in group.template}
    folders = sorted(folder for folder in first if "{}" not in folder)
    lines = [f"  {facet}: {', '.join(found)}" for facet, found in differing.items()]
    if len(folders) > 1:
        lines.append(f"  sub-folders: {', '.join(folders[:12])}{', ...' if len(folders) > 12 else ''}")
    told_apart = {tuple(sorted((facet, group.facets.get(facet)) for facet in differing)) for group in groups}
    if not lines or (len(told_apart) < len(groups) and len(folders) < 2):
        lines += [f"  {group.template}" for group in groups[:12]] + (["  ..."] if len(groups) > 12 else [])
    return "\n".join(lines)


class _L0:
    """Which file of a layer is taken where there are several L0: the closest to a number, the smallest or the largest."""

    def __init__(self, wanted: str | None, where: str) -> None:
        self.wanted, self.where = wanted, where
        self.taken: dict[int, int] = {}

    def of(self, layer: int | None, by_l0: dict[int | None, list[str]]) -> list[str]:
        """The names of one layer's file, or of its shards."""
        numbers = sorted(number for number in by_l0 if number is not None)
        if len(by_l0) == 1 and self.wanted is None:
            return next(iter(by_l0.values()))
        if not numbers:  # named in words, which _fits has compared
            return next(iter(by_l0.values()))
        chosen = self._choose(numbers, layer)
        if layer is not None:
            self.taken[layer] = chosen
        return by_l0[chosen]

    def _choose(self, numbers: list[int], layer: int | None) -> int:
        if self.wanted in ("smallest", "largest"):
            return numbers[0] if self.wanted == "smallest" else numbers[-1]
        if self.wanted is not None and self.wanted.isdecimal():
            return min(numbers, key=lambda number: (abs(number - int(str(self.wanted))), number))
        given = "" if self.wanted is None else f", and l0={self.wanted} is none of them"
        raise InputError(
            f"{self.where}: layer {layer} has dictionaries of L0 {', '.join(map(str, numbers))}{given}. Say which: l0=NUMBER "
            f"takes the closest in each layer, l0=smallest and l0=largest the ends, as in "
            f"`{self.where}:l0={numbers[len(numbers) // 2]}`."
        )


def _shards(names: list[str], where: str) -> list[str]:
    """Files of one layer: a single one, all shards of one in order, or an encoder with its decoder."""
    if len(names) == 1:
        shard = _SHARD.search(PurePosixPath(names[0]).stem)
        if shard is None or int(shard[2]) == 1:
            return names
    shards = {int(match[1]): name for name in names if (match := _SHARD.search(PurePosixPath(name).stem))}
    if len(shards) == len(names):
        expected = int(_SHARD.search(PurePosixPath(names[0]).stem)[2])  # type: ignore[index]
        missing = sorted(set(range(1, expected + 1)) - set(shards))
        if missing or len(shards) != expected:
            raise FileFormatError(
                f"{where}: of the {expected} shards of {names[0]}, {missing} are missing. Copy them too."
            )
        return [shards[number] for number in sorted(shards)]
    if all(_CLT_FILE.fullmatch(PurePosixPath(name).stem) for name in names) and len(names) == 2:
        return sorted(names, key=lambda name: "W_dec" in name)
    raise FileFormatError(
        f"{where}: {', '.join(names[:4])} belong to one layer; one file a layer is expected. Name the files to use in "
        "config.yaml under `transcoders`, or give the sub-folder."
    )


def _require_pairs(group: _Group, where: str) -> None:
    """Raise FileFormatError unless every encoder of circuit-tracer's cross-layer files has its decoder, from layer 0 on."""
    stems = {PurePosixPath(name).stem for name in group.names}
    found = {int(match[1]) for stem in stems if (match := _CLT_FILE.fullmatch(stem))}
    if not found:
        return
    layers = range(max(found) + 1)
    missing = [f"W_{part}_{layer}.safetensors" for layer in layers for part in ("enc", "dec")]
    missing = [name for name in missing if PurePosixPath(name).stem not in stems]
    if missing:
        raise FileFormatError(
            f"{where}: layers 0 to {layers[-1]} are there, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Copy the folder again, whole."
        )


def _require_nothing_left(files: Sequence[str], listed: Iterable[str], others: set[str], where: str) -> None:
    """Raise FileFormatError if a folder that holds files of the dictionary, or is above one, holds other files with weights.

    A tensor file that no layer needs may hold thresholds, skip connections, or layers under another name. ``others`` are files
    of dictionaries that were not selected.
    """
    folders = {".", *(str(parent) for name in files for parent in PurePosixPath(name).parents)}
    left = [
        name
        for name in listed
        if name.lower().endswith(_ANY_WEIGHTS) and str(PurePosixPath(name).parent) in folders
        and name not in files and name not in others
    ]  # fmt: skip
    if left:
        named = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
        raise FileFormatError(
            f"{where}: no layer of the transcoders takes {named}. It may hold thresholds, scales or skip connections, without "
            "which other features would be computed. Move it elsewhere if it does not matter, or list the files to use in "
            "config.yaml under `transcoders`."
        )


def _beside(files: Iterable[str], listed: Iterable[str]) -> list[str]:
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    return [name for name in listed if name.endswith(SETTINGS) and str(PurePosixPath(name).parent) in folders]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
