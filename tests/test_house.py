"""How the house is built: what may know of what."""

import ast
from pathlib import Path

import pytest

import melbo

PACKAGE = Path(melbo.__file__).parent
#: From the ground up: a module imports only modules that stand before it.
FLOORS = [
    "errors", "progress", "linalg", "transcoder", "iterate", "prompts", "slice", "tail", "compiled", "model", "load", "oracles", "geometry",
    "writers", "causal_map", "operator", "calibrate", "methods", "edit", "bank", "features", "rank_one", "adapters", "adapter_map", "fit",
    "ablate", "steer", "sara", "contrast", "shared_prompt", "roomy_cache", "generate", "score", "rank", "theme", "rows", "select", "judge", "elicit",
    "controls", "ways", "tables", "plot", "compare", "watch", "chat", "report", "runs", "reference", "bench", "organisms", "experiments", "cli",
]  # fmt: skip
NO_TRANSFORMERS = [
    "linalg",
    "transcoder",
    "iterate",
    "oracles",
    "geometry",
    "operator",
    "calibrate",
    "methods",
]


def imports(path):
    """Names of modules that a file imports, package-relative ones as ``.name``; those for type checking only left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        n
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and getattr(i.test, "id", "") == "TYPE_CHECKING"
        for n in ast.walk(i)
    }
    level_here = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module
            elif node.level == level_here:  # relative to the package itself
                yield from (
                    ["." + node.module.split(".")[0]]
                    if node.module
                    else ["." + a.name for a in node.names]
                )


def files(floor):
    path = PACKAGE / floor
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def test_every_module_has_its_floor():
    found = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert found - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down_only(floor):
    below = {f".{name}" for name in FLOORS[: FLOORS.index(floor)]}
    for path in files(floor):
        upward = {name for name in imports(path) if name.startswith(".")} - below - {".__version__"}
        assert not upward, f"{path.name} imports {upward}"


@pytest.mark.parametrize("floor", NO_TRANSFORMERS)
def test_the_mathematics_knows_torch_and_no_transformers(floor):
    for path in files(floor):
        assert not any(name.split(".")[0] == "transformers" for name in imports(path))


def test_public_names_exist_and_are_documented():
    for name in melbo.__all__:
        assert getattr(melbo, name).__doc__, name
    assert melbo.__all__ == sorted(
        set(melbo.__all__), key=lambda n: (not n.isupper(), n)
    )  # initials first, as ruff has it
