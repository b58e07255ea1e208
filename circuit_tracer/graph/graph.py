"""The attribution graph of one prompt: who contributed how much to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from circuit_tracer.arguments import typed
from circuit_tracer.errors import InputError, warn
from circuit_tracer.graph.attention_scores import AttentionScore
from circuit_tracer.graph.balance import Reconstruction, RowBalance
from circuit_tracer.graph.config import GraphConfig
from circuit_tracer.graph.dictionary_parts import ATTENTION, DictionaryPart, parts_of
from circuit_tracer.graph.edge_heads import EdgeHeads
from circuit_tracer.graph.edges import Edges
from circuit_tracer.graph.found import Found, forget
from circuit_tracer.graph.graph_checks import check_lengths, check_nodes, check_types
from circuit_tracer.graph.nodes import NodeTable
from circuit_tracer.graph.order import Blocks, layered_blocks, topological_blocks
from circuit_tracer.graph.shared_matrix import SharedMatrix
from circuit_tracer.graph.targets import LogitTarget, TargetTable
from circuit_tracer.graph.unfinished import Unfinished
from circuit_tracer.graph.validation import ValidationReport
from circuit_tracer.graph.words import feature_noun, left_over

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure

    from circuit_tracer.attention import EdgeExplanation, ScoreExplanation
    from circuit_tracer.circuits.supernodes import Grouping
    from circuit_tracer.graph.files.view import View


class Graph:
    """Nodes of one prompt and the direct effects among them.

    Nodes are selected features, error nodes (`l * P + p`), tokens, targets, in this order: `N = N_s + L * P + P + K` (errors
    of attention come behind the others, if a dictionary replaces it). An edge is the direct effect of its source on the
    pre-activation (or the demeaned logit) of its target, in that target's own units.

    Edges may be changed, by assigning ``adjacency_matrix`` or within it. Then validation, edge_heads, grouping and story,
    which were of the edges before, are gone, ``residual`` says by how much the rows miss their sums, and files do not keep
    the balance.

    Args:
        input_string: The prompt as text.
        input_tokens: (P,) ids.
        active_features: int64 (N_f, 3) rows (layer, position, index), sorted, all that were active.
        adjacency_matrix: ``Edges``, or a dense (N, N) matrix with rows = targets.
        cfg: Any object or mapping with the field names of circuit-tracer or transformers.
        selected_features: int64 (N_s,) ascending rows of ``active_features`` that are nodes.
        activation_values: (N_f,) in the dictionary's own units.
        logit_targets: K targets, or the ids of tokens, as a tensor.
        logit_probabilities: (K,) their weights.
        scan: Where the transcoders come from.
        vocab_size: Default cfg.d_vocab; ids from there on are virtual.
        scan_name: circuit-tracer's later name of it.
        balance: The sum rule, a row each.
        targets: Default: logits at the last position.
        token_strings: P texts.
        reconstruction: Quality of the transcoders here.
        provenance: Plain JSON values that say how the graph was made.
        validation: What interventions on the graph have found.
        unfinished: Of a trace that was interrupted, what it needs to go on (`attribute(..., resume=graph)`).
        edge_heads: Which attention heads edges run through (`circuit_tracer.attention.explain_edges`).
        scores: Why heads look where they look (`explain_score`), those that were kept.
        labels: What its features are called, by (layer, index) (`circuit_tracer.features.kept.keep_features`).
        records: Examples of them, by (layer, index).
        grouping: Its nodes in groups (`circuit_tracer.circuits.keep_grouping`).
        story: What was told of them (`circuit_tracer.circuits.story.tell`).
        parts: The dictionaries that its features belong to, if they are several.

    Raises:
        InputError: If these do not fit together.
        NumericalError: For an edge that is not finite.

    Examples:
        >>> graph.n_pos, graph.n_layers, graph.token_texts[1:3]
        (9, 4, ['the', 'capital'])
        >>> graph.nodes.ids()[-1], graph.residual < 1e-5
        ('5_101_8', True)
    """

    # By the edges that it has; groupings and stories as JSON values (`circuits.kept_grouping`, `Story.from_json`).
    validation, grouping, story = Found[ValidationReport](), Found[dict[str, Any]](), Found[dict[str, Any]]()

    def __init__(
        self,
        input_string: str,
        input_tokens: Tensor,
        active_features: Tensor,
        adjacency_matrix: Tensor | Edges,
        cfg: Any,
        selected_features: Tensor,
        activation_values: Tensor,
        logit_targets: Sequence[LogitTarget] | Tensor,
        logit_probabilities: Tensor,
        scan: str | list[str] | None = None,
        vocab_size: int | None = None,
        *,
        scan_name: str | list[str] | None = None,
        balance: RowBalance | None = None,
        targets: TargetTable | None = None,
        token_strings: list[str] | None = None,
        reconstruction: Reconstruction | None = None,
        provenance: dict[str, Any] | None = None,
        validation: ValidationReport | None = None,
        unfinished: Unfinished | None = None,
        edge_heads: EdgeHeads | None = None,
        scores: Sequence[AttentionScore] = (),
        labels: Mapping[tuple[int, int], str] | None = None,
        records: Mapping[tuple[int, int], bytes] | None = None,
        grouping: dict[str, Any] | None = None,
        story: dict[str, Any] | None = None,
        parts: Sequence[DictionaryPart | dict[str, Any]] = (),
    ) -> None:
        self.parts = parts_of(parts)
        self.input_string = input_string
        self.input_tokens = input_tokens
        self.active_features = active_features
        self.selected_features = selected_features
        self.activation_values = activation_values
        self.cfg = GraphConfig.of(cfg)
        self.logit_targets = LogitTarget.list_of(logit_targets)
        self.scan = scan if scan is not None else scan_name
        self.vocab_size = vocab_size if vocab_size is not None else (self.cfg.d_vocab or 0)
        self.balance = balance
        self.edited = False
        self.token_strings = token_strings
        self.reconstruction = reconstruction
        self.provenance = dict(provenance or {})
        self.unfinished = unfinished
        self._edge_heads = edge_heads
        self.scores = list(scores)
        self.labels, self.records = dict(labels or {}), dict(records or {})
        self.validation, self.grouping, self.story = validation, grouping, story
        self._blocks: Blocks | None = None
        check_types(self, logit_probabilities)
        check_lengths(self, logit_probabilities)
        self.targets = (
            targets
            if targets is not None
            else TargetTable.from_logits(
                self.logit_targets, logit_probabilities, self.n_layers, self.n_pos, self.vocab_size
            )
        )
        self._edges, self._shared = _edges_and_matrix(adjacency_matrix)
        check_nodes(self)
        self._edges.validate()
        self._nodes_seen = self._node_sources()

    # What there is

    @property
    def n_pos(self) -> int:
        """P, the number of tokens."""
        return len(self.input_tokens)

    @property
    def n_layers(self) -> int:
        """L."""
        return self.cfg.n_layers

    @property
    def attention(self) -> bool:
        """Whether a dictionary replaces attention too, whose features and errors are nodes."""
        return self.parts[-1].place == ATTENTION

    @property
    def n_nodes(self) -> int:
        """N."""
        return self._edges.n_nodes

    @property
    def token_texts(self) -> list[str]:
        """P texts of the tokens for people: ``token_strings``, or ids where there are none."""
        return self.token_strings or [str(token) for token in self.input_tokens.tolist()]

    @property
    def device(self) -> torch.device:
        return self._edges.weight.device

    @property
    def scan_name(self) -> str | list[str] | None:
        """circuit-tracer's later name of ``scan``."""
        return self.scan

    @scan_name.setter
    def scan_name(self, scan: str | list[str] | None) -> None:
        self.scan = scan

    @cached_property
    def nodes(self) -> NodeTable:
        """All nodes, column by column."""
        return NodeTable.build(
            self.active_features[self.selected_features].long(),
            self.activation_values[self.selected_features],
            self.input_tokens,
            self.n_layers,
            self.targets,
            self.attention,
        )

    @property
    def edges(self) -> Edges:
        """The edges, with what was changed in ``adjacency_matrix`` since."""
        self._take_edits()
        return self._edges

    @property
    def blocks(self) -> Blocks:
        """An order for one pass from the targets down (``order.py``)."""
        edges = self.edges
        if self._blocks is None:
            self._blocks = layered_blocks(edges, self.nodes) or topological_blocks(edges)
        return self._blocks

    @property
    def edge_heads(self) -> EdgeHeads | None:
        """Which attention heads some edges run through, of the edges that the graph has."""
        self._take_edits()
        return self._edge_heads

    @edge_heads.setter
    def edge_heads(self, edge_heads: EdgeHeads | None) -> None:
        if edge_heads is not None:
            edge_heads.check(self.edges, self.n_layers, self.cfg.n_heads)
        self._edge_heads = edge_heads

    @property
    def target_weights(self) -> Tensor:
        """(N,) float64: |weight| at the targets, 0 elsewhere."""
        weights = torch.zeros(self.n_nodes, dtype=torch.float64, device=self.device)
        weights[self.nodes.layout.targets] = self.targets.weight.to(weights).abs()
        return weights

    @property
    def adjacency_matrix(self) -> Tensor:
        """The edges as a dense (N, N) matrix, row = target; what is changed in it is changed in the graph.

        It is made at the first call and stays with the graph from then on, N * N * 4 (or 8) bytes; a matrix that the graph
        was given is this one. Whatever uses the edges first looks whether it was written in. ``edges`` alone costs neither.
        """
        self._take_edits()
        if self._shared is None:
            self._shared = SharedMatrix.now(self._edges.to_dense())
        return self._shared.matrix

    @adjacency_matrix.setter
    def adjacency_matrix(self, matrix: Tensor | Edges) -> None:
        edges, shared = _edges_and_matrix(matrix)
        self._change_edges(edges)
        self._shared = shared

    def _take_edits(self) -> None:
        """What others wrote into the matrix they were given becomes the edges; nodes are made anew, once what they are made of
        is another.
        """
        if (seen := self._node_sources()) != self._nodes_seen:
            self.__dict__.pop("nodes", None)
            check_nodes(self)
            self._nodes_seen, self._blocks = seen, None
        if self._shared is not None and (now := SharedMatrix.now(self._shared.matrix)).may_differ(self._shared):
            if not self._edges.equals_dense(now.matrix):
                self._change_edges(Edges.from_dense(now.matrix))
            self._shared = now

    def _node_sources(self) -> tuple[object, ...]:
        """What `nodes` is made of, as it is now."""
        made_of = (self.active_features, self.selected_features, self.activation_values, self.input_tokens)
        versions = [0 if each.is_inference() else each._version for each in made_of]
        return (self.cfg.n_layers, id(self.targets), *map(id, made_of), *versions)

    def _change_edges(self, edges: Edges) -> None:
        if edges.n_nodes != self.n_nodes:
            raise InputError(f"the new adjacency matrix has {edges.n_nodes} nodes, the graph has {self.n_nodes}")
        edges.validate()
        self._edges, self._blocks, self.edited = edges, None, True
        self._edge_heads = None
        forget(self)

    @property
    def logit_probabilities(self) -> Tensor:
        """(K,) the weights of the targets."""
        return self.targets.weight

    @logit_probabilities.setter
    def logit_probabilities(self, weights: Tensor) -> None:
        if weights.shape != self.targets.weight.shape:
            raise InputError(
                f"logit_probabilities has shape {tuple(weights.shape)}; there are {len(self.targets)} targets"
            )
        self.targets.weight = weights

    @property
    def logit_token_ids(self) -> Tensor:
        """(K,) int64 ids of the targets, virtual ones included."""
        ids = [target.vocab_idx for target in self.logit_targets]
        return torch.tensor(ids, dtype=torch.long, device=self.logit_probabilities.device)

    @property
    def logit_tokens(self) -> Tensor:
        """Deprecated name of ``logit_token_ids``."""
        warn("logit_tokens is deprecated; use logit_token_ids", DeprecationWarning)
        return self.logit_token_ids

    @property
    def residual(self) -> float | None:
        """The worst relative residual of the sum rule over all rows; None if the file did not keep the balance."""
        return None if self.balance is None else float(self.balance.residual(self.edges).max())

    def require_balance(self, max_residual: float | None = None, remedy: str = "") -> None:
        """Refuse a graph whose rows do not add up. Graphs without balance pass.

        Args:
            max_residual: The largest residual that is let through, if larger than what is promised.
            remedy: What to do, in a sentence, for the message.

        Raises:
            NumericalError: If a row's residual is above what is promised for the model's dtype (``PROMISED_RESIDUAL``), above
                `max_residual`, and above what the graph was allowed when it was traced. It names the worst row.
        """
        recorded = self.provenance.get("residual_allowed")
        allowed = [limit for limit in (max_residual, recorded) if isinstance(limit, int | float)]
        if self.balance is not None:
            self.balance.require(self.edges, self.nodes, self.cfg.dtype, max(allowed, default=None), remedy)

    def __repr__(self) -> str:
        layout = self.nodes.layout
        n_errors = (1 + layout.attention) * layout.n_layers
        counts = (
            f"{layout.n_features:,} of {len(self.active_features):,} active {feature_noun(self)}s, "
            f"{n_errors}x{layout.n_pos} {left_over(self, many=True)}, {layout.n_pos} tokens, "
            f"{layout.n_targets} targets, {len(self.edges):,} edges"
        )
        shown = ", ".join(
            f"{label!r} {weight:.3f}"
            for label, weight in list(zip(self.targets.label, self.targets.weight.tolist(), strict=True))[:3]
        )
        more = ", ..." if layout.n_targets > 3 else ""
        return f"Graph({self.input_string!r}: {counts}; targets: {shown}{more}; scan={self.scan!r}, {self.device})"

    def explain_edge(self, source: int | str, target: int | str, model: Any, *, paths: int = 10) -> EdgeExplanation:
        """The attention heads that an edge runs through; see ``attention/edges.py``.

        Args:
            source: Number of the node, or its id such as "3_41_5".
            target: The same of the node that it goes into.
            model: The `ReplacementModel` that the graph was traced with.
            paths: How many whole paths of heads to list.

        Returns:
            The splits by first and last head, by number of heads, and the strongest paths.

        Raises:
            CircuitTracerError: As `circuit_tracer.attention.explain_edge`.

        Examples:
            >>> edge = graph.explain_edge("0_78_7", "5_101_8", model)
            >>> edge.strongest(1)["through"][0].layer, edge.strongest(1)["through"][0].head
            (1, 0)
        """
        from circuit_tracer.attention.edges import explain_edge

        return explain_edge(self, source, target, model, paths=paths)

    def explain_score(
        self,
        model: Any,
        layer: int,
        head: int,
        query: int,
        key: int,
        versus: int | str | None = None,
        *,
        pairs: bool = True,
    ) -> ScoreExplanation:
        """Why a head looks from a position at another; see ``attention/scores.py``.

        ``graph.scores.append(found.kept())`` keeps what was found with the graph and its files.

        Args:
            model: The `ReplacementModel` that the graph was traced with.
            layer: Of the head.
            head: Its number.
            query: Position that looks; negative ones count from the end.
            key: Position that is looked at.
            versus: Another key, or "rest"; None: the score alone.
            pairs: Take pairs of sources apart too.

        Returns:
            The score with the marginals of query and key, and their pairs.

        Raises:
            CircuitTracerError: As `circuit_tracer.attention.explain_score`.
        """
        from circuit_tracer.attention.scores import explain_score

        return explain_score(self, model, layer, head, query, key, versus, pairs=pairs)

    def supernodes(self, model: Any = None, **options: Any) -> Grouping:
        """Its nodes in groups that do one thing each; see ``circuits/grouping.py`` for the options.

        Args:
            model: The `ReplacementModel` that the graph was traced with, to measure what groups do.
            **options: Of `group_nodes`.

        Returns:
            The groups; not kept by the graph until `keep_grouping`.

        Examples:
            >>> len(graph.supernodes().supernodes) < graph.n_nodes
            True
        """
        from circuit_tracer.circuits.grouping import group_nodes

        return group_nodes(self, model, **options)

    # Moving and saving

    def to(self, device: str | torch.device) -> Graph:
        """Move all tensors, in place.

        Args:
            device: Such as "cuda".

        Returns:
            The graph itself.
        """
        self._take_edits()
        for name in ("input_tokens", "active_features", "selected_features", "activation_values"):
            setattr(self, name, getattr(self, name).to(device))
        self._edges, self.targets, self._blocks = self._edges.to(device), self.targets.to(device), None
        self._shared = None if self._shared is None else self._shared.to(device)
        self.balance = self.balance.to(device) if self.balance else None
        for name in ("reconstruction", "_edge_heads"):
            kept = getattr(self, name)
            setattr(self, name, None if kept is None else kept.to(device))
        self.__dict__.pop("nodes", None)
        self._nodes_seen = self._node_sources()
        return self

    @typed
    def save(self, path: str | Path) -> Path:
        """Write the native file (safetensors with a JSON header).

        Everything comes back on ``load``, but for the balance of edges that were changed.

        Args:
            path: The file, usually `.safetensors`.

        Returns:
            The path.

        Raises:
            ResourceError: If the disk is full.

        Examples:
            >>> from circuit_tracer import Graph
            >>> path = graph.save("dallas.safetensors")
            >>> Graph.load(path).n_nodes == graph.n_nodes
            True
        """
        from circuit_tracer.graph.files.native import save_graph

        self._take_edits()
        written = copy(self)
        written.balance = None if self.edited else self.balance
        return save_graph(written, path)

    @classmethod
    @typed
    def load(cls, path: str | Path, max_residual: float | None = None) -> Graph:
        """Read a native file.

        Args:
            path: The file.
            max_residual: The largest residual of the sum rule that is let through, if larger than what is promised.

        Returns:
            The graph, on the CPU.

        Raises:
            InputError: If there is no such file.
            FileFormatError: If it is foreign, damaged or incomplete.
            NumericalError: For rows that do not add up (`require_balance`).
        """
        from circuit_tracer.graph.files.native import load_graph

        return load_graph(path, max_residual)

    @typed
    def to_pt(self, path: str | Path) -> None:
        """Write a ``.pt`` file that circuit-tracer 0.5 reads; see ``files/pt.py``.

        Args:
            path: The file.
        """
        from circuit_tracer.graph.files.pt import save_pt

        save_pt(self, path)

    @staticmethod
    @typed
    def from_pt(path: str | Path, map_location: str | torch.device = "cpu") -> Graph:
        """Read a ``.pt`` file of any version of circuit-tracer, without running any code in it.

        Args:
            path: The file.
            map_location: Where its tensors go.

        Returns:
            The graph.

        Raises:
            InputError: If there is no such file.
            FileFormatError: If it is no such graph, or names anything but tensors and plain values.
        """
        from circuit_tracer.graph.files.pt import load_pt

        return load_pt(path, map_location)

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx DiGraph; see ``files/networkx.py`` for its attributes.

        Returns:
            Nodes by id with `kind`, `layer`, `position` and others; edges from source to target with `weight`.
        """
        from circuit_tracer.graph.files.networkx import to_networkx

        return to_networkx(self)

    @typed
    def to_json(self, slug: str, output_path: str | Path, **options: Any) -> Path:
        """Prune and write ``{slug}.json`` for the viewers; the options of ``create_graph_files``.

        Args:
            slug: The name that viewers list the graph under.
            output_path: A folder, made if needed.
            **options: Those of `create_graph_files`.

        Returns:
            The path of `{slug}.json`.

        Raises:
            InputError: For anything that a viewer would not show, naming all of it.
        """
        from circuit_tracer.graph.files.viewer_json import create_graph_files

        return create_graph_files(self, slug, output_path, **options)

    @typed
    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write one page that shows the graph offline; the options of ``viewer.page.graph_page``.

        Args:
            path: The file.
            **options: Of `graph_page`.

        Returns:
            The path.
        """
        from circuit_tracer.viewer.page import write_page

        return write_page(self, path, **options)

    @typed
    def plot(
        self,
        path: str | Path | None = None,
        *,
        style: Literal["circuit", "graph"] = "circuit",
        view: View | None = None,
        **options: Any,
    ) -> Figure:
        """A picture: of the grouped circuit, of what a view pins, or of the whole pruned graph.

        Groups are by default made by themselves (`supernodes`).

        Needs matplotlib (the extra `plot`).

        Args:
            path: An .svg, .pdf or .png to write; None: none.
            style: "circuit" for groups, "graph" for all nodes.
            view: What a person pinned, to be drawn instead of groups.
            **options: Labels, theme ("light" or "dark"), thresholds and others of `circuit_figure` and `graph_figure`.

        Returns:
            The matplotlib figure.

        Raises:
            InputError: For a view or a grouping with style "graph".
            CircuitTracerError: Without matplotlib.
        """
        from circuit_tracer.circuits.pictures import draw

        return draw(self, path, style, view, **options)

    def _repr_html_(self) -> str:
        """In a notebook the graph shows itself."""
        from circuit_tracer.viewer.page import graph_frame

        return graph_frame(self)


def _edges_and_matrix(given: Tensor | Edges) -> tuple[Edges, SharedMatrix | None]:
    """The edges, and the matrix that they were given as, in which its owner may go on to write."""
    if isinstance(given, Edges):
        return given, None
    edges = Edges.from_dense(given)
    return edges, SharedMatrix.now(given) if given.dtype == edges.weight.dtype else None
