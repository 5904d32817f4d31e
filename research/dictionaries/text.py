"""English text that ships with Python: its help topics and the docstrings of its library."""

import ast
import hashlib
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

#: Parts of the library that are tests, or are not Python's own.
_OTHERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
#: Characters that a document has at least.
_SHORTEST = 500


def documents() -> dict[str, str]:
    """Documents by name: a help topic, or all docstrings of a module of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {f"topic {name}": text for name, text in topics.items()}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not _OTHERS & set(name.parts):
            found[name.as_posix()] = docstrings(path)
    return {name: found[name] for name in sorted(found) if len(found[name]) >= _SHORTEST}


def docstrings(path: Path) -> str:
    """All docstrings of a module, with blank lines between them; none where it cannot be parsed."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def split(found: dict[str, str], share: int = 10) -> tuple[list[str], list[str]]:
    """Documents to train on, and whole documents that are held out, one in ``share``.

    Which are held out depends on their names only.

    Args:
        found: Documents by name.
        share: One document in this many is held out.
    """
    kept = {name for name in found if int(hashlib.sha256(name.encode()).hexdigest(), 16) % share}
    train = [text for name, text in found.items() if name in kept]
    return train, [text for name, text in found.items() if name not in kept]
