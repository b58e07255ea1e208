"""Execute the notebooks and keep what they show: `python -m notebooks.run [NAME ...]`, in the repository's root.

Each runs top to bottom in a folder of its own and is written back with its outputs, without what differs from run to run:
times, progress bars, paths of this machine. --model FOLDER gives the second one the weights of its model without a hub. --front
writes the badges and first cells anew and runs nothing: after the repository's address has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZE = 2**20  # bytes of a notebook, at most
SECONDS = 1800  # for a cell
PLACEHOLDER = "https://github.com/OWNER/circuit-tracing"  # until pyproject.toml names the repository in [project.urls]
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
REAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # of 2_real_model
# What no kept output may hold: folders of a machine, addresses of objects, ports of a server.
_OF_A_MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|work|Users|private|mnt|usr|opt|var)/|\b0x[0-9a-f]{8,}|127\.0\.0\.1:\d+"
)


def repository() -> str:
    """The repository's address, from pyproject.toml."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", PLACEHOLDER)).rstrip("/")


def badge(name: str) -> str:
    """The first line of the notebook NAME.ipynb: a link that opens it on Colab."""
    place = repository().removeprefix("https://github.com/")
    return f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb)"


def with_badges(text: str) -> str:
    """A text with all badges in it as they should be."""
    return re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*/(\w+)\.ipynb\)", lambda found: badge(found[1]), text)


def first_cell() -> str:
    """The first cell of code: on Colab it installs the package, elsewhere it does nothing."""
    return "\n".join(
        (
            "import sys",
            "",
            'if "google.colab" in sys.modules:  # elsewhere the package is installed already',
            f'    %pip install --quiet "circuit-tracing[plot] @ git+{repository()}"',
        )
    )


def with_front(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook with its badge and first cell as they should be."""
    title, install, *rest = notebook["cells"]
    text = "".join(title["source"]).split("\n")
    body = text[2:] if text[0].startswith("[![Open in Colab]") else text
    title = {**title, "source": "\n".join([badge(name), "", *body])}
    count = None
    if install["cell_type"] == "code" and "google.colab" in "".join(install["source"]):
        count = install["execution_count"]
    else:
        rest = [install, *rest]
    number = title["id"].split("-")[0]
    install = {"cell_type": "code", "id": f"{number}-install", "metadata": {}, "outputs": [], "execution_count": count}
    return {**notebook, "cells": [title, {**install, "source": first_cell()}, *rest]}


def code_digest(notebook: dict[str, Any]) -> str:
    """Of all code. Kept in the metadata: outputs are of this code and no other."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def executed(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of a fresh kernel that runs in ``folder``. An exception in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "COLUMNS": "100",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    environment |= {"TQDM_DISABLE": "1", "MPLBACKEND": "agg"}
    environment.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny, and sums are the same on any number of cores
    read = nbformat.from_dict({**notebook, "cells": [_without_outputs(cell) for cell in notebook["cells"]]})
    client = NotebookClient(read, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return cleaned(json.loads(nbformat.writes(read)))


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """Outputs that are the same in every run of the same code; cells numbered in their order."""
    cells = []
    for cell in notebook["cells"]:
        kept = {name: value for name, value in cell.items() if name != "execution_count"}
        kept["metadata"] = {name: value for name, value in cell["metadata"].items() if name != "execution"}
        if cell["cell_type"] == "code":
            number = 1 + sum(each["cell_type"] == "code" for each in cells)
            kept |= {"execution_count": number, "outputs": [_numbered(each, number) for each in _outputs(cell)]}
        cells.append({**kept, "source": _lines("".join(cell["source"]))})
    metadata = {
        "code_digest": code_digest(notebook),
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def texts(notebook: dict[str, Any]) -> list[str]:
    """What every cell of code prints or shows as text, in their order; "" for a cell that shows none, or is tagged "varies"."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            parts = [
                "".join(each["text"] if each["output_type"] == "stream" else each.get("data", {}).get("text/plain", ""))
                for each in cell["outputs"]
            ]
            found.append("" if "varies" in cell["metadata"].get("tags", ()) else "".join(parts))
    return found


def of_a_machine(notebook: dict[str, Any]) -> list[str]:
    """What in the outputs belongs to one machine: paths, addresses, ports."""
    shown = [json.dumps(cell.get("outputs", []), ensure_ascii=False) for cell in notebook["cells"]]
    return [
        text[max(0, found.start() - 40) : found.end() + 40] for text in shown for found in _OF_A_MACHINE.finditer(text)
    ]


def write(notebook: dict[str, Any], path: Path) -> None:
    """As Jupyter writes it. Raises ValueError for one that is too large, or that shows what belongs to this machine."""
    if found := of_a_machine(notebook):
        raise ValueError(f"{path.name} shows what belongs to this machine: {found[:3]}")
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if len(text.encode()) > SIZE:
        raise ValueError(f"{path.name} would be {len(text.encode()):,} bytes; {SIZE:,} at most. Show less")
    path.write_text(text, encoding="utf-8")


def _outputs(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Without stderr, which has progress and warnings with paths; what a stream says in several pieces is one."""
    kept: list[dict[str, Any]] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if output["name"] != "stdout":
                continue
            if kept and kept[-1]["output_type"] == "stream":
                kept[-1]["text"] = _lines("".join(kept[-1]["text"]) + text)
            else:
                kept.append({**output, "text": _lines(text)})
        else:
            data = {
                kind: _lines("".join(value)) if kind != "image/png" else value for kind, value in output["data"].items()
            }
            kept.append({**output, "data": data})
    return kept


def _numbered(output: dict[str, Any], number: int) -> dict[str, Any]:
    return {**output, "execution_count": number} if output["output_type"] == "execute_result" else output


def _without_outputs(cell: dict[str, Any]) -> dict[str, Any]:
    empty = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
    return {**cell, **empty, "source": "".join(cell["source"])}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.run", description=__doc__)
    names = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all of them by default")
    parser.add_argument("--model", type=Path, help=f"a folder with {REAL_MODEL}")
    parser.add_argument("--front", action="store_true", help="only write badges and first cells anew")
    given = parser.parse_args()
    if given.front:
        readme = HERE / "README.md"
        readme.write_text(with_badges(readme.read_text(encoding="utf-8")), encoding="utf-8")
    for name in given.names or names:
        path = HERE / f"{name}.ipynb"
        notebook = with_front(json.loads(path.read_text(encoding="utf-8")), name)
        if given.front:
            cells = [{**cell, "source": _lines("".join(cell["source"]))} for cell in notebook["cells"]]
            notebook = {
                **notebook,
                "cells": cells,
                "metadata": {**notebook["metadata"], "code_digest": code_digest(notebook)},
            }
            write(notebook, path)
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if given.model:  # found there under its name on the hub
                place = Path(folder, REAL_MODEL)
                place.parent.mkdir(parents=True)
                place.symlink_to(given.model.absolute())
            write(executed(notebook, Path(folder)), path)


if __name__ == "__main__":
    main()
