"""What was found with the edges that a graph has: gone as soon as they change."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, overload

T = TypeVar("T")
_KEPT = "_found_"


class HasEdges(Protocol):
    """A graph, as far as this file knows."""

    @property
    def edges(self) -> Any:
        """Read after changes: what was found before them is gone."""


class Found(Generic[T]):
    """An attribute of a graph that holds a T, or None: nothing found, or with other edges than it has now."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.kept_as = f"{_KEPT}{name}"

    @overload
    def __get__(self, graph: None, owner: type) -> Found[T]: ...
    @overload
    def __get__(self, graph: HasEdges, owner: type) -> T | None: ...
    def __get__(self, graph: HasEdges | None, owner: type) -> Found[T] | T | None:
        """What there is, after changes of the edges have been seen."""
        if graph is None:
            return self
        graph.edges  # noqa: B018  which takes what was written in the matrix
        value: T | None = vars(graph).get(self.kept_as)
        return value

    def __set__(self, graph: HasEdges, value: T | None) -> None:
        vars(graph)[self.kept_as] = value


def forget(graph: HasEdges) -> None:
    """All of it: the edges are others."""
    for name in [name for name in vars(graph) if name.startswith(_KEPT)]:
        del vars(graph)[name]
