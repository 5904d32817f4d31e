"""Shape of the house: which room may know of which, how large things are, and how they speak."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import melbo

PACKAGE = Path(melbo.__file__).parent
ROOT = PACKAGE.parent
#: From the ground up. A file at the root imports only files before it; a module of a room imports
#: root files, its own room and rooms before it.
FILES = ["errors", "progress", "records"]
ROOMS = [
    "display",
    "maths",
    "models",
    "maps",
    "methods",
    "bilinear",
    "features",
    "dictionary",
    "discovery",
    "evaluation",
    "audit",
    "explorer",
    "cli",
]
FLOORS = [*FILES, *ROOMS]
NO_TRANSFORMERS = [
    "display",
    "maths",
    "methods",
    *(
        f"maps.{name}"
        for name in ("base", "smooth", "function", "jacobian", "calibrate", "calibration")
    ),
]
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_ENTRIES = 400, 60, 18
FRAGMENTS = ("What", "Of", "Those", "Whether", "Which", "How")
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path):
    """Modules and names that a file imports anywhere, as (dotted name, line).

    Those for type checking only are left out.
    """
    tree = tree_of(path)
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)


def floor_of(path):
    """Root file or room that a file of the package belongs to; None for the package's face."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def listed(path, line):
    return f"{path.relative_to(ROOT)}:{line}"


def wrongs_of(floor, path):
    """Imports that do not point down, relative ones, and those of research, as (name, line)."""
    if floor in FILES:
        allowed = FILES[: FILES.index(floor)]
    else:
        allowed = [*FILES, *ROOMS[: ROOMS.index(floor) + 1]]
    for name, line in imports_of(path):
        first, _, rest = name.partition(".")
        upward = first == "melbo" and rest.split(".")[0] not in allowed
        if upward or first in ("", "research", "tests"):
            yield name, line


def test_every_entry_has_its_floor():
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert entries - {"__init__", "__pycache__", "py.typed"} == set(FLOORS)
    assert all((PACKAGE / room / "__init__.py").is_file() for room in ROOMS)
    assert len(entries - {"__pycache__"}) <= MOST_ENTRIES


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down_only(floor):
    files = [path for path in python_files("melbo") if floor_of(path) == floor]
    assert files
    wrongs = [
        f"{listed(path, line)} imports {name}"
        for path in files
        for name, line in wrongs_of(floor, path)
    ]
    assert not wrongs, "\n".join(wrongs)


def test_upward_imports_are_seen(tmp_path):
    code = (
        "from typing import TYPE_CHECKING\nimport melbo.maths.linalg\nfrom melbo import records\n"
        "if TYPE_CHECKING:\n    import melbo.cli\nelse:\n    import melbo.evaluation.rank\n"
        "def f():\n    from melbo.features import sara\n    import research\n    from . import x\n"
        "    from melbo import fit\n"
    )
    path = tmp_path / "module.py"
    path.write_text(code)
    assert sorted(line for _, line in wrongs_of("models", path)) == [7, 9, 10, 11, 12]


def test_the_face_imports_nothing_but_by_its_table():
    tree = tree_of(PACKAGE / "__init__.py")
    checked = {
        alias.asname: node.module.removeprefix("melbo.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert checked == melbo._MODULES
    outside = {name for name, _ in imports_of(PACKAGE / "__init__.py") if name.startswith("melbo")}
    assert outside == {"melbo.records.own_version"}


def test_the_mathematics_names_no_transformers():
    for path in python_files("melbo"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if any(f"{module}.".startswith(f"{name}.") for name in NO_TRANSFORMERS):
            assert not [n for n, _ in imports_of(path) if n.split(".")[0] == "transformers"], path


def test_the_mathematics_is_imported_without_transformers():
    modules = [
        name
        for _, name, _ in pkgutil.walk_packages(melbo.__path__, "melbo.")
        if any(f"{name}.".startswith(f"melbo.{part}.") for part in NO_TRANSFORMERS)
    ]
    assert len(modules) > len(NO_TRANSFORMERS)
    code = f"import {', '.join(modules)}, sys; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_no_module_is_hidden_by_a_function():
    names = [name for _, name, _ in pkgutil.walk_packages(melbo.__path__, "melbo.")]
    for name in names:
        importlib.import_module(name)
    for name in melbo.__all__:
        getattr(melbo, name)
    for name in names:
        parent, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(parent), last)
        assert found is importlib.import_module(name), f"{name} is hidden by {found}"


def test_public_names_exist_and_are_documented():
    for name in melbo.__all__:
        assert getattr(melbo, name).__doc__, name
    assert melbo.__all__ == sorted(set(melbo.__all__))


def test_files_and_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in python_files("melbo", "research", "tests")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]
    for path in python_files("melbo", "research"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long.append(f"{listed(path, node.lineno)} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


def test_docstrings_open_with_a_noun_or_a_verb():
    fragments = [
        f"{listed(path, getattr(node, 'lineno', 1))} {doc.splitlines()[0]}"
        for path in python_files("melbo", "research")
        for node in ast.walk(tree_of(path))
        if isinstance(node, DEFINITIONS) and (doc := ast.get_docstring(node))
        if re.split(r"\W", doc, maxsplit=1)[0] in FRAGMENTS
    ]
    assert not fragments, "\n".join(fragments)


def written_files():
    """Files in which the method may be cited."""
    kinds = {".py", ".md", ".j2", ".toml"}
    folders = [ROOT / name for name in ("melbo", "research", "docs", "tests")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return [path for path in paths if path.suffix in kinds and path != Path(__file__)]


def test_citations_of_the_method_lead_somewhere():
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\b", method, re.MULTILINE))
    cited, old = [], []
    for path in written_files():
        text = " ".join(path.read_text(encoding="utf-8").replace("#:", "").split())
        for several in re.findall(r"method\.md((?:,? (?:and )?§\d+(?:–\d+)?)+)", text):
            cited += [(path, number) for number in re.findall(r"\d+", several)]
        found = re.findall(r"\bMETHOD(?:\.md)?,? §\d+|\bBENCHMARK(?:\.md| §)|\(method §\d+", text)
        old += [f"{path.relative_to(ROOT)}: {each}" for each in found]
    assert not old, "\n".join(["write docs/method.md §N:", *old])
    assert cited
    lost = [f"{p.relative_to(ROOT)}: §{number}" for p, number in cited if number not in sections]
    assert not lost, "\n".join(lost)
