"""What commands that publish print with `--json`."""

from __future__ import annotations

from circuit_tracer.cli.answers.lines import Line


class Pushed(Line):
    """A dictionary on its way to the hub: the files, by their names there. to: its address, or a folder; null: --dry-run."""

    files: list[str]
    bytes: int
    left_out: list[str]
    to: str | None


class Uploaded(Line):
    """A graph on its way to Neuronpedia. sent: False with --dry-run. features: how many were sent with it."""

    slug: str
    model_id: str
    bytes: int
    nodes: int
    links: int
    features: int
    link: str
    sent: bool
