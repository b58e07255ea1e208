"""One layer's file as a reader sees it: what it takes is recorded, and whatever it leaves must be known to be harmless.

A tensor or a key that a reader does not know may be a threshold, a scale, a normalisation or another activation function:
dropping it computes other features without a word. So a format asks for what it uses by `tensor` and `key`, lists in tables
what may be left (`Harmless`, with the reason and, where it matters, the value that makes it so), and `require_all_understood`
refuses everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from circuit_tracer.errors import FileFormatError, shortened
from circuit_tracer.files.tensors import TensorFile
from circuit_tracer.transcoders.formats.beside import Setting, computes, settings_beside

_MOST_NAMED = 6  # things in one message


@dataclass(frozen=True)
class Harmless:
    """What may be left unread: names of this pattern (`*` for any text), because of ``why``.

    ``only``: the values at which that is so, for a tensor those that all its entries may have; empty: any value.
    """

    pattern: str
    why: str
    only: tuple[Any, ...] = ()

    def covers(self, name: str, value: Any) -> bool:
        """Whether this row lets ``name`` go with this value, a tensor or what stands in a configuration."""
        if not fnmatchcase(name, self.pattern):
            return False
        if not self.only:
            return True
        if isinstance(value, Tensor):
            return any(bool((value == number).all()) for number in self.only)
        return any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in self.only)

    def __str__(self) -> str:
        return self.pattern + (f" = {' or '.join(map(repr, self.only))}" if self.only else "")


# Keys that mean the same, and nothing here, beside any file.
COMMON_KEYS = (
    Harmless("dtype", "tensor files say it"),
    Harmless("torch_dtype", "the same"),
    Harmless("device", "where it was trained"),
    Harmless("seed", "of training"),
    Harmless("model_name", "config.yaml or the user names the model"),
)


class LayerFile:
    """The tensors of one layer, and the settings in configuration files beside them; keeps a record of what was taken.

    Keys of nested objects are joined by dots (`metadata.hook_name`). Asking whether something is there, or for shapes, takes
    nothing.
    """

    def __init__(self, tensors: TensorFile, settings: Mapping[str, Setting] | None = None) -> None:
        self._tensors = tensors
        self._settings = dict(settings_beside(tensors.path) if settings is None else settings)
        self._taken: set[str] = set()
        self._taken_keys: set[str] = set()
        self._taken_notes: set[str] = set()

    # ---- what is there

    @property
    def path(self) -> Path:
        """Where the tensors lie, for messages."""
        return self._tensors.path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all tensors."""
        return self._tensors.shapes

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors.entries)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def has_key(self, *names: str) -> bool:
        """Whether a configuration beside the file has one of these keys."""
        return any(name in self._settings for name in names)

    def value(self, name: str, default: Any = None) -> Any:
        """The value of a key, without taking it: for `detect`."""
        return self._settings[name].value if name in self._settings else default

    def describe(self) -> str:
        """Names and shapes of tensors, for messages."""
        return self._tensors.describe()

    # ---- what is taken

    def tensor(self, name: str) -> Tensor:
        """Tensor ``name``, as a view of the file; FileFormatError if it is not there."""
        self._taken.add(name)
        return self._tensors.tensor(name)

    def matrix(self, name: str) -> Tensor:
        """Tensor ``name`` with two axes; FileFormatError if it has others."""
        found = self.tensor(name)
        if found.ndim != 2:
            raise FileFormatError(f"{self.path}: {name} must be a matrix, found shape {tuple(found.shape)}.")
        return found

    def shaped(self, name: str, *shape: int) -> Tensor:
        """Tensor ``name`` of floating-point numbers in this shape; FileFormatError if it is another."""
        found = self.tensor(name)
        if tuple(found.shape) != shape or not found.is_floating_point():
            raise FileFormatError(
                f"{self.path}: {name} is {found.dtype} of shape {tuple(found.shape)}; floating point of shape {shape} "
                "is expected."
            )
        return found

    def number(self, name: str) -> float:
        """The one number in tensor ``name``; FileFormatError if it has others, or is not above 0 and finite."""
        self._taken.add(name)
        found = self._tensors.scalar(name)
        if not 0 < found < float("inf"):
            raise FileFormatError(f"{self.path}: {name} must be a positive number, found {found}.")
        return found

    def optional(self, name: str) -> Tensor | None:
        """Tensor ``name``, or None."""
        return self.tensor(name) if name in self else None

    def integer(self, name: str) -> int:
        """The one whole number in tensor ``name``."""
        self._taken.add(name)
        number = self._tensors.scalar(name)
        if number != number // 1 or abs(number) > 2**53:
            raise FileFormatError(f"{self.path}: {name} must be a whole number, found {number}.")
        return int(number)

    def key(self, *names: str, default: Any = None) -> Any:
        """The value of a key that has several spellings or places; FileFormatError if these disagree."""
        found = {name: self._settings[name] for name in names if name in self._settings}
        self._taken_keys.update(found)
        given = {name: setting for name, setting in found.items() if setting.value is not None}
        if not given:
            return default
        (first, setting), *others = given.items()
        for name, other in others:
            if other.value != setting.value:
                raise FileFormatError(
                    f"{self.path}: {first} is {shortened(setting.value)} ({setting.path.name}), but {name} is "
                    f"{shortened(other.value)} ({other.path.name}). Correct one of them."
                )
        return setting.value

    def expect(self, name: str, found: Any, what: str) -> None:
        """Take key ``name``; FileFormatError unless it is missing, null, or says what the tensors say."""
        said = self.key(name)
        if said is not None and said != found:
            raise FileFormatError(
                f"{self.path}: {self._settings[name].path.name} says {name} = {shortened(said)}, but {what} {found!r}. "
                "They do not belong together: copy both again."
            )

    def note(self, name: str) -> str | None:
        """A value of the safetensors file's own metadata."""
        self._taken_notes.add(name)
        return self._tensors.metadata.get(name)

    # ---- what is left

    def require_all_understood(self, reader: str, tensors: Iterable[Harmless], keys: Iterable[Harmless]) -> None:
        """Raise FileFormatError, naming all of them, if tensors, keys or notes are neither taken nor harmless."""
        tensors, keys = [*tensors], [*COMMON_KEYS, *keys]
        unread = {name: setting for name, setting in self._settings.items() if name not in self._taken_keys}
        left = {
            "tensors": [
                f"{name} {self.shapes[name]}"
                for name in sorted(self.names - self._taken)
                if not any(row.covers(name, self._sample(name, row)) for row in tensors)
            ],
            "keys": [
                f"{name} = {shortened(setting.value)} ({setting.path.name})"
                for name, setting in sorted(unread.items())
                if not any(row.covers(name, setting.value) for row in keys)
            ],
            "notes": [
                f"{name} = {shortened(text)} (the file's metadata)"
                for name, text in sorted(self._tensors.metadata.items())
                if name not in self._taken_notes and computes(name)
            ],
        }
        if not any(left.values()):
            return
        said = " and ".join(f"{what} {_some(names)}" for what, names in left.items() if names)
        raise FileFormatError(
            f"{self.path}: {said} are not understood by the reader of {reader}. They may be a threshold, a scale, a "
            "normalisation or an activation function, without which other features would be computed. "
            f"Used are {_listed(self._taken | self._taken_keys)}; harmless are {_listed(map(str, [*tensors, *keys]))}. "
            "Fold them into the weights with the library that wrote the file, or remove what does not matter."
        )

    def _sample(self, name: str, row: Harmless) -> Tensor | None:
        """The tensor, if the row looks at values; reading it otherwise would cost."""
        return self._tensors.tensor(name) if row.only and fnmatchcase(name, row.pattern) else None


def scalar_like(value: Any) -> bool:
    """Whether a configuration's value is a number (and not a truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: Any) -> int | None:
    """A configuration's value as a whole number above 0, or None."""
    return int(value) if scalar_like(value) and value > 0 and float(value).is_integer() else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(name if len(name) < 300 else f"{name[:300]} ..." for name in names[:_MOST_NAMED]) + more


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(set(names))
    return ", ".join(ordered[:40]) + (" ..." if len(ordered) > 40 else "") if ordered else "nothing"
