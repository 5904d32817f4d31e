"""The package as others get it: what a wheel holds, and messages that suit Python."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import melbo

ROOT = Path(melbo.__file__).parents[1]
#: Commands of other programs, whose options messages may name.
OTHERS = re.compile(r"pip install|llama-gguf-split")
OPTION = re.compile(r"(?<![\w-])--[a-z]")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Files of the package that building a wheel copies, below ``melbo``."""
    where = tmp_path_factory.mktemp("build")
    build = "from setuptools import setup; setup()"
    told = ("-q", "egg_info", "-e", where, "build_py", "-d", where)
    subprocess.run([sys.executable, "-c", build, *map(str, told)], cwd=ROOT, check=True)
    return {
        str(path.relative_to(where / "melbo"))
        for path in where.rglob("melbo/**/*")
        if path.is_file()
    }


def test_an_installed_package_tells_type_checkers_that_it_has_types(wheel):
    assert "py.typed" in wheel


def test_a_wheel_holds_all_that_is_read_at_run_time(wheel):
    kept = {
        str(path.relative_to(ROOT / "melbo"))
        for path in (ROOT / "melbo").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wheel == kept


def messages(path):
    """Texts of the errors that a file raises, each with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MelboError":
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            yield node.lineno, "".join(text for text in texts if isinstance(text, str))


def test_errors_of_the_library_name_no_option_without_the_argument_beside_it():
    shells = {ROOT / "melbo" / "cli", ROOT / "melbo" / "explorer" / "web"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {text}"
        for path in sorted((ROOT / "melbo").rglob("*.py"))
        if not shells & set(path.parents)
        for line, text in messages(path)
        if OPTION.search(text) and not OTHERS.search(text)
        # "contrast=('Sure', 'Sorry'), or --contrast Sure Sorry" serves both
        if not re.search(r"\w=|on the command line|\(--system\)", text)
    ]
    assert not wrong, "\n".join(wrong)
