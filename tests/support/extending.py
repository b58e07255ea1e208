"""CONTRIBUTING.md as a program: its blocks, followed in a copy of the sources."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.support.warm_python import WarmPython

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^( *)```(\w+) file=(\S+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINKED = ("circuit_tracer/demo/weights",)


@dataclass(frozen=True)
class Block:
    """A new file, or an edit: lines of a ``diff``, which begin with a space, + or -."""

    kind: str
    path: str
    text: str

    def follow(self, root: Path) -> None:
        """Write the file, which must be new; or make the edit, whose old lines must stand in the file once."""
        path = root / self.path
        if self.kind != "diff":
            assert not path.exists(), f"{self.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text, encoding="utf-8")
            return
        lines = self.text.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{self.path} has these lines {text.count(old)} times:\n{old}"
        path.write_text(text.replace(old, new), encoding="utf-8")


def blocks(section: str) -> list[Block]:
    """Of a section of CONTRIBUTING.md, in order."""
    parts = _SECTION.split((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    text = dict(zip(parts[1::2], parts[2::2], strict=True))[section]
    return [Block(kind, path, textwrap.dedent(body)) for _, kind, path, body in _BLOCK.findall(text)]


def _linked(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(folder) / name).relative_to(ROOT).as_posix() in _LINKED}


class Sources:
    """A copy of the sources, compiled modules with them; what is large is linked to."""

    def __init__(self, root: Path, python: WarmPython) -> None:
        self.root, self.python = root, python
        for name in ("circuit_tracer", "kernels", "tests"):
            shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=_linked)
        for name in _LINKED:
            (root / name).symlink_to(ROOT / name)
        shutil.copy(ROOT / "pyproject.toml", root)

    def follow(self, section: str) -> list[Block]:
        """The steps of a section."""
        steps = blocks(section)
        assert steps, f"CONTRIBUTING.md has no blocks under {section!r}"
        for block in steps:
            block.follow(self.root)
        return steps

    def run(self, *arguments: str) -> str:
        """What Python prints in the copy; an error shows what it said."""
        code, printed, errors = self.python.run(arguments, self.root)
        assert code == 0, f"{printed[-3000:]}\n{errors[-3000:]}"
        return printed

    def script(self, text: str) -> str:
        """The same of a script, which imports the copy."""
        check = f"import circuit_tracer; assert circuit_tracer.__file__.startswith({str(self.root)!r})\n"
        return self.run("-c", check + textwrap.dedent(text))
