"""What <TAB> offers for values. Where nothing is offered, shells complete names of files, folders included, by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

GRAPHS = (".safetensors", ".pt", ".json", ".json.gz")
DICTIONARIES = ("neurons", "gemma", "llama")
DEVICES = ("cpu", "cuda", "mps")
SITES = ("resid", "attn_out", "mlp_out", "head", "none")

Offered = Callable[[str], list[str]]


def words(*known: str, several: bool = False) -> Offered:
    """Of some words, those that begin so, once something is there. several: of a list with commas, for its last word."""

    def offered(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        return [before + comma + word for word in known if incomplete and word.startswith(last)]

    return offered


def presets(incomplete: str) -> list[str]:
    """Presets of training."""
    folder = Path(__file__).parents[1] / "training" / "presets"
    return sorted(each.stem for each in folder.glob("*.yaml") if each.stem.startswith(incomplete))


def graphs(incomplete: str) -> list[str]:
    """Files that may be graphs; nothing where a folder begins so too, into which the shell goes."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        there = [each for each in Path(folder or slash or ".").iterdir() if each.name.startswith(name)]
    except OSError:
        return []
    shown = [each for each in there if name or not each.name.startswith(".")]
    if any(each.is_dir() for each in shown):
        return []
    return sorted(folder + slash + each.name for each in shown if each.name.endswith(GRAPHS))
