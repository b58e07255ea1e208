"""What of circuit-tracer 0.5.0 works here: its names, its files, the examples of its page on PyPI, its own tests and notebooks.

    python -m benchmarks.upstream --peer PEER [--checkout FOLDER]

PEER is the environment that peer/setup_peer.sh makes. The source distribution on PyPI is fetched and looked through for tests
and notebooks; that of 0.5.0, the only version there, has none. Those of the tag v0.5.0 of decoderesearch/circuit-tracer, which
is not on PyPI, are run (tests) and read (notebooks: what they import) in a checkout, if one is given. Status 1 if anything
fails for a missing name, or a file is read differently.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.machine import describe, write_results
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.processes import answer, peer_command
from benchmarks.comparison.upstream_names import VERSION, compare
from circuit_tracer import Graph, ReplacementModel, attribute, compute_graph_scores, prune_graph

MODEL = ROOT / "tests" / "interventions" / "peer"
SDIST = "circuit-tracer==0.5.0"
NEEDS = {  # what a test that cannot apply here is for
    "TransformerLens": r"transformer_lens|HookedTransformer",
    "nnsight": r"\bnnsight\b(?!.*backend)|NNSight",
    "a GPU": r"CUDA",
    "the hub": r"offline|could not get .* from the Hugging Face hub|LocalEntryNotFound|ConnectError",
}
MISSING = re.compile(r"cannot import name|has no attribute|No module named 'circuit_tracer|unexpected keyword argument")


def names() -> dict[str, Any]:
    """Every public name, looked up here."""
    import typer.main

    from circuit_tracer.cli.main import app

    model = ReplacementModel.from_pretrained(MODEL / "model", MODEL / "clt", device="cpu")
    graph = attribute(torch.tensor([1, 17, 4, 33]), model)
    group: Any = typer.main.get_command(app)
    context = group.make_context("circuit-tracer", [], resilient_parsing=True)
    commands = [group.get_command(context, name) for name in ("attribute", "start-server")]
    options = {option for command in commands for each in command.params for option in each.opts}
    options |= {f"--{option[2:].replace('-', '_')}" for option in options}
    instances = {"Graph": graph, "PruneResult": prune_graph(graph), "ReplacementModel": model, "GraphConfig": graph.cfg}
    found, faults = compare(instances, options)
    reasons = Counter(name.why for name in found if name.verdict != "same")
    verdicts = Counter(name.verdict for name in found)
    return {"of": VERSION, **verdicts, "missing": [fault._asdict() for fault in faults], "reasons": dict(reasons)}


def files(peer: Path, work: Path) -> list[dict[str, Any]]:
    """Our `.pt`, read and written again by circuit-tracer, and that read here."""
    results = []
    for transcoder in ("clt", "plt", "plt-skip"):
        model = ReplacementModel.from_pretrained(MODEL / "model", MODEL / transcoder, device="cpu")
        graph = attribute("the capital of Texas is", model)
        ours, theirs = work / f"{transcoder}.pt", work / f"{transcoder}-again.pt"
        graph.to_pt(ours)
        seen = answer([*peer_command(peer, "read_graph.py"), str(ours), str(theirs)])
        back = Graph.from_pt(theirs)
        difference = max(abs(a - b) for a, b in zip(seen["scores"], compute_graph_scores(graph), strict=True))
        same = seen["targets"] == [list(target) for target in graph.logit_targets] and torch.equal(
            back.adjacency_matrix, graph.adjacency_matrix
        )
        results.append({"transcoder": transcoder, "same": same, "largest difference of the scores": difference})
    return results


def examples(peer: Path, work: Path) -> list[dict[str, str]]:
    """The Python examples of its page on PyPI, with tiny models in place of the published ones."""
    found = next(peer.glob("lib/python*/site-packages/circuit_tracer-0.5.0.dist-info/METADATA")).read_text(
        encoding="utf-8"
    )
    results = []
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", found, re.DOTALL), 1):
        here = re.sub(r'"google/gemma[^"]*"', repr(str(MODEL / "model")), code)
        here = re.sub(r'"gemma(-3)?"', repr(str(MODEL / "clt")), here)
        start = "from circuit_tracer import ReplacementModel\n" + here
        ended = subprocess.run([sys.executable, "-c", start], cwd=work, capture_output=True, text=True)
        last = ended.stderr.strip().splitlines()[-1:] if ended.returncode else ["passed"]
        results.append(
            {"example": f"{number}: {code.strip().splitlines()[0]}", "outcome": last[0].replace(str(ROOT), "")}
        )
    return results


def distribution(work: Path) -> dict[str, Any]:
    """What the source distribution on PyPI has of tests and notebooks."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        SDIST,
        "-d",
        str(work),
    ]
    if subprocess.run(command, capture_output=True).returncode:
        return {"fetched": False}
    with tarfile.open(next(work.glob("circuit_tracer-*.tar.gz"))) as archive:
        members = archive.getnames()
    tests = [name for name in members if "/tests/" in name]
    return {"fetched": True, "tests": len(tests), "notebooks": sum(name.endswith(".ipynb") for name in members)}


def own_tests(checkout: Path, work: Path) -> dict[str, Any]:
    """Its tests, run against this package."""
    report = work / "report.xml"
    (work / "pytest.ini").write_text("[pytest]\n")
    options = [
        "-c",
        str(work / "pytest.ini"),
        "--rootdir",
        str(checkout),
        "--import-mode=importlib",
        f"--junitxml={report}",
    ]
    # in a folder of its own, so that the package of the checkout is not the one that is imported
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--continue-on-collection-errors",
        *options,
        str(checkout / "tests"),
    ]
    subprocess.run(command, cwd=work, capture_output=True)
    outcomes: Counter[str] = Counter()
    missing = []
    for case in ElementTree.parse(report).iter("testcase"):
        trouble = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        text = "" if trouble is None else f"{trouble.get('message')}\n{trouble.text}"
        why = next((need for need, pattern in NEEDS.items() if re.search(pattern, text)), None)
        if trouble is None:
            outcomes["passed"] += 1
        elif why is None and MISSING.search(text):
            missing.append(f"{case.get('classname')}.{case.get('name')}: {text.strip().splitlines()[-1][:200]}")
        else:
            outcomes[f"needs {why}" if why else "failed otherwise"] += 1
    return {**outcomes, "failed for a missing name": missing}


def notebooks(checkout: Path) -> dict[str, Any]:
    """Whether everything that its notebooks import of circuit-tracer is here."""
    found, missing = 0, []
    for path in sorted(checkout.glob("demos/*.ipynb")):
        for name, module in _imports(json.loads(path.read_text(encoding="utf-8"))):
            try:
                home = importlib.import_module(module)
                found += name is None or hasattr(home, name)
                missing += [f"{path.name}: {module}.{name}"] if name is not None and not hasattr(home, name) else []
            except ImportError:
                missing.append(f"{path.name}: {module}")
    return {"imports that are here": found, "missing": missing}


def _imports(notebook: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    for cell in notebook["cells"]:
        lines = "".join(cell["source"]).splitlines() if cell["cell_type"] == "code" else []
        try:
            tree = ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("!", "%"))))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("circuit_tracer"):
                yield from ((alias.name, str(node.module)) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((None, alias.name) for alias in node.names if alias.name.startswith("circuit_tracer"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--checkout", type=Path)
    args = parser.parse_args()
    peer = args.peer.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results: dict[str, Any] = {
            "names": names(),
            "files": files(peer, work),
            "examples": examples(peer, work),
            "source distribution": distribution(work),
            "its tests": "not on PyPI, and no checkout given",
            "its notebooks": "not on PyPI, and no checkout given",
        }
        if args.checkout is not None:
            results["its tests"] = own_tests(args.checkout.resolve(), work)
            results["its notebooks"] = notebooks(args.checkout.resolve())
    write_results(RESULTS / "upstream.json", describe() | results)
    print(json.dumps(results, indent=1))
    wrong = bool(results["names"]["missing"]) or not all(each["same"] for each in results["files"])
    if args.checkout is not None:
        wrong |= bool(results["its tests"]["failed for a missing name"] or results["its notebooks"]["missing"])
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
