"""The names that ``import melbo`` offers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import melbo


def imports_for_type_checkers():
    """Module of each name that is imported under ``if TYPE_CHECKING``, below the package."""
    tree = ast.parse(Path(melbo.__file__).read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    assert all(isinstance(node, ast.ImportFrom) and node.level == 0 for node in block.body)
    names = [(node.module.removeprefix("melbo."), a) for node in block.body for a in node.names]
    assert all(alias.name == alias.asname for _, alias in names)  # explicit exports
    return {alias.name: module for module, alias in names}


@pytest.mark.parametrize("name", melbo.__all__)
def test_every_name_is_documented_where_it_is_defined(name):
    value = getattr(melbo, name)
    assert inspect.getdoc(value)
    assert value.__module__ == f"melbo.{melbo._MODULES[name]}"
    assert value.__name__ == name


def test_type_checkers_see_the_same_names():
    assert imports_for_type_checkers() == melbo._MODULES


def test_names_are_listed():
    assert melbo.__all__ == sorted(melbo._MODULES)
    assert set(dir(melbo)) == {*melbo.__all__, "__version__"}
    assert isinstance(melbo.__version__, str)
    with pytest.raises(AttributeError, match="module 'melbo' has no attribute 'nothing'"):
        melbo.nothing  # noqa: B018


def test_importing_melbo_waits_for_nothing():
    code = "import sys, melbo; print(*{'torch', 'transformers', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""
