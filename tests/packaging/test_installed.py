"""What a user gets from `pip install -e .` and from a wheel: every file, and types that a checker sees through."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.smoke import run_command, smoke

pytestmark = pytest.mark.slow(
    "three builds, two installations, two type checks, and the first commands of both: a minute"
)

ROOT = Path(__file__).parents[2]
PROJECT = ("pyproject.toml", "README.md", "LICENSE", "circuit_tracer", "kernels")
DATA = ("py.typed", "demo/weights/", "training/presets/", "viewer/static/")
BUILD = """
from pathlib import Path
from setuptools import build_meta

direct = build_meta.build_wheel("direct")
sdist = build_meta.build_sdist(".")
print(Path("direct", direct).resolve(), Path(sdist).resolve(), sep="\\n")
"""
WHEEL_OF_SDIST = "from setuptools import build_meta; build_meta.build_wheel(r'{0}')"

# Types of others would take most of the time, and are not what is asked about.
CHECKER = """
[mypy]
strict = true
ignore_missing_imports = true
[mypy-torch.*,numpy.*,transformers.*,triton.*,pydantic.*,networkx.*,rich.*,typer.*,starlette.*,safetensors.*]
follow_imports = skip
"""
MISUSE = """\
from circuit_tracer.kernels.decode import decode_
import circuit_tracer
decode_(1, 2, 3, 4, 5)
circuit_tracer.atribute
"""
EXPECTED = """\
misuse.py:3: error: Too many arguments for "decode_"  [call-arg]
misuse.py:3: error: Argument 2 to "decode_" has incompatible type "int"; expected "SparseActivations"  [arg-type]
misuse.py:4: error: Module has no attribute "atribute"; maybe "attribute"?  [attr-defined]
"""
TYPES = """
from typing import assert_type
from circuit_tracer import Graph

assert_type(model, ReplacementModel)
assert_type(graph, Graph)
"""


def _run(python: Path | str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run([str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def _python(python: Path | str, *arguments: str, cwd: Path) -> str:
    found = _run(python, *arguments, cwd=cwd)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project: builds leave files beside it."""
    copy = tmp_path_factory.mktemp("tree")
    for name in PROJECT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheels(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of the tree, and that of its source distribution."""
    direct, sdist = (Path(line) for line in _python(sys.executable, "-c", BUILD, cwd=tree).splitlines()[-2:])
    unpacked = tmp_path_factory.mktemp("sdist")
    shutil.unpack_archive(sdist, unpacked, filter="data")
    (source,) = unpacked.iterdir()
    _python(sys.executable, "-c", WHEEL_OF_SDIST.format(unpacked), cwd=source)
    return {"tree": direct, "sdist": next(unpacked.glob("*.whl"))}


@pytest.mark.parametrize("origin", ["tree", "sdist"])
def test_a_wheel_holds_every_file(wheels: dict[str, Path], origin: str) -> None:
    package = ROOT / "circuit_tracer"
    files = [path for folder in (package, package / "kernels") for path in folder.rglob("*") if path.is_file()]
    expected = {
        str(path.relative_to(ROOT))
        for path in files
        if path.suffix == ".py" or path.relative_to(package).as_posix().startswith(DATA)
    }
    with zipfile.ZipFile(wheels[origin]) as wheel:
        packed = [entry for entry in wheel.infolist() if ".dist-info/" not in entry.filename]
        assert {entry.filename for entry in packed} == expected
        assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in packed)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(
    request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The interpreter of an environment with the project in it and the dependencies of this one; where the package is."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    what = ["-e", str(tree)] if request.param == "editable" else [str(request.getfixturevalue("wheels")["tree"])]
    pip = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-build-isolation"]
    _python(sys.executable, *pip, "--ignore-installed", *what, cwd=folder)
    return python, tree if request.param == "editable" else site


def test_kernels_are_a_part_of_the_package(installed: tuple[Path, Path], tmp_path: Path) -> None:
    python, home = installed
    at = _python(python, "-c", "from circuit_tracer import kernels; print(kernels.__file__)", cwd=tmp_path)
    assert at.strip() == str(home / "circuit_tracer" / "kernels" / "__init__.py")


def test_the_first_commands_need_nothing_of_the_repository(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """From a tree, which has every file, the first of them is enough."""
    environment = installed[0].parents[1]
    if installed[1].name == "site-packages":
        smoke(environment)
    else:
        assert "Austin" in run_command(environment, "demo", folder=tmp_path)


def test_a_type_checker_of_a_user_sees_through(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """Also the README's first example, which must pass."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1] + TYPES)
    (tmp_path / "misuse.py").write_text(MISUSE)
    (tmp_path / "mypy.ini").write_text(CHECKER)
    mypy = ("-m", "mypy", "--python-executable", str(installed[0]), "example.py", "misuse.py")
    found = _run(sys.executable, *mypy, cwd=tmp_path)
    assert found.stdout.splitlines()[:-1] == EXPECTED.splitlines(), found.stdout + found.stderr
