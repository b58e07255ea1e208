"""Every script of examples/ runs in an empty folder, says what it claims and leaves only the files that it names.

A new script is a row of CLAIMS: regular expressions, each of which finds something in what the script prints. A page that
shows a script, and a block of text right behind it, shows what it prints.
"""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.code_blocks import PAGES, Block, blocks, not_printed

FOLDER = Path(__file__).parents[2] / "examples"
ELSEWHERE = {"modal_run": "runs on Modal; tests/many/test_many_documents.py reads its command"}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ELSEWHERE)
LONGEST = 60  # lines

CLAIMS: dict[str, tuple[str, ...]] = {
    "compare": (
        r"the nodes account for -16\.23\d* of -16\.23",
        r"-4\.49  Texas \(places\)",
        r"without 'Texas \(places\)' at Dallas: (-15\.\d+), accounted for \1",
    ),
    "explain_attention": (
        r"edge (\d+\.\d+) = direct 0\.000 \+ first heads \1",
        r"L1H0 picks up 10\d% of it",
        r"L1H0 set to its mean: Austin 0\.997 -> 0\.000",
        r"without Texas \(places\), norms frozen: 14\.58 -> 9\.95",  # 4.63 less, as the graph says
        r"without Texas \(places\), norms live: 14\.58 -> 2\d\.",
    ),
    "group": (
        r"Texas  <-  “Dallas” \+100%",
        r"1\d of 14 sentences hold",
        r"in the place of Texas, the model would say “Sacramento”",
    ),
    "heads": (r"without L1H0: 0 of 8 right", r"without L1H1: 8 of 8 right"),
    "intervene": (
        r"without Texas, constrained: Austin 0\.997 -> 0\.9",
        r"without Texas, direct: Austin 0\.997 -> 0\.000",
        r"California instead: Sacramento 0\.000 -> 0\.99",
    ),
    "label_features": (
        r"0/78: 108 of 22,968 tokens, such as .*<<",
        r"\(0, 78\): 'Texas', by openai:stand-in, score 0\.[89]",
        r"asked again: 0 questions",
    ),
    "long_prompt": (
        r"interrupted: the graph holds the 309 features computed so far of 618",
        r"the same to the bit: True",
        r"the sums hold to \de-0[67]",
    ),
    "many_prompts": (
        r"20 of 72 rows, then 72\nanswered right: 72 of 72",
        r"misses its sum by \de-0[67]",
        r"33% of the graphs keep 0/9, \"capital\"",
    ),
    "monitor": (
        r"1: state at 'Oakland is in'\n2: nothing",
        r"unsteered San Diego is Sacramento, steered San Diego is Austin from token 8 on",
    ),
    "neurons": (
        r"500 neurons, and every row adds up",
        r"Austin without the first 50: 0\.[12]\d\d, without 50 others: 0\.99",
    ),
    "own_activations": (
        r"0\.0\d+ of the MLPs' output is missing on held-out rows",
        r"not measured: Replacement and graphs: the model is not here",
    ),
    "patch": (
        r"\+1\.000  layer 0, resid at Dallas / Oakland",
        r"\+0\.47\d  layer 0, Texas \(places\) at Dallas / Oakland",
        r"from 1 gradients, worst: \+0\.0\d for \+1\.00",
    ),
    "probe": (
        r"stream +AUC 0\.9",
        r"'Oakland is in': \+\d\.\d+, fires\n'Munich is in': -\d\.\d+, silent",
        r"all of them together: predicted (-0\.\d+), measured \1",
    ),
    "publish": (
        r"https://neuronpedia\.org/gemma-2-2b/graph\?slug=dallas",
        r"refused: native holds no README\.md",
        r"10 files, 1\.6 MB: published/",
    ),
    "steer": (
        r"Dallas is in: Texas \| California",
        r"vector times 0\.5: Texas\nvector times 1: California\nvector times 2: California Denmark Denmark",
    ),
    "train": (
        r"39 steps: 0\.0\d+ of the MLPs' output is missing\n78 steps: 0\.0",
        r"top-1 with all MLPs replaced: 7\d%, by a random dictionary \d%",
        r"traced with it: Graph",
    ),
    "validate": (
        r"constrained +edges against interventions: Spearman 1\.00, slope 1\.00",
        r"live +edges against interventions: Spearman 0\.83",
        r"without Texas: 0\.000, as many others: 0\.9",
        r"Do not trust that features feed features as the MLPs do",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_is(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    words = ast.get_docstring(ast.parse(text), clean=False) or ""
    assert f"    python examples/{name}.py" in words
    assert len(text.splitlines()) <= LONGEST
    assert CLAIMS.get(name), f"write down in CLAIMS what {name}.py prints"
    assert f"]({name}.py)" in (FOLDER / "README.md").read_text(encoding="utf-8"), "give it a row of examples/README.md"


@pytest.mark.slow("runs every script, each a few seconds")
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs_and_holds_what_it_claims(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")["__doc__"]
    out = capsys.readouterr().out
    for claim in CLAIMS[name]:
        assert re.search(claim, out), f"{claim!r} is not in:\n{out}"
    for shown in shown_behind(FOLDER / f"{name}.py"):
        assert not (other := not_printed(shown, out)), f"{shown}: {name}.py does not print {other}"
    for file in re.findall(r"[\w./-]+\.(?:csv|html|json|jsonl|md|safetensors|svg)\b", words):
        assert any(tmp_path.rglob(file)), f"{name}.py names {file} and does not write it"
    for path in tmp_path.iterdir():
        assert path.name in words, f"{name}.py writes {path.name} and does not say so"


def shown_behind(script: Path) -> Iterator[Block]:
    """What pages show as a script's output."""
    for page in PAGES:
        yield from (text for code, text in pairwise(blocks(page)) if code.snippet == script and text.language == "text")
