"""Migration of committed rows to keys that do not depend on wording (once; to be removed).

python research/results/migrate.py FILE ...    rewrites these files of rows in place

- ``way`` becomes ``recipe``, in a row and in its settings.
- ``method``, the repr of a method, becomes its name and the settings that differ from the defaults
  of its class, R left out (`melbo.methods.base.Method.identity`).
- ``benchmark``, a hash over prompts and sources of detectors, becomes the version 1.
- Settings lose ``dtype`` where it is the default; prompts that are shipped are named without their
  folder, and so are organisms.
"""

import ast
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from melbo.methods.ascent import Melbo
from melbo.methods.base import Method
from melbo.methods.exponential import CPE, Exponential
from melbo.methods.linear import Linear, ProjectedLinear
from melbo.methods.quadratic import Quadratic
from melbo.records import Row, write_atomically

_METHODS: dict[str, type[Method]] = {
    kind.__name__: kind for kind in (CPE, Exponential, Linear, Melbo, ProjectedLinear, Quadratic)
}
_BENCHMARKS = {"8f15da3fc271fd3e": 1}
_DEFAULTS = {"dtype": "auto"}
_PROMPTS, _ORGANISMS = "experiments/", "benchmarks/organisms/"


def migrate_row(row: Row) -> Row:
    """A row with its new keys, in the order of the old ones; a migrated row stays as it is.

    Args:
        row: A row of an organism or of an experiment.
    """
    made: Row = {}
    for key, value in row.items():
        if key == "way":
            made["recipe"] = value
        elif key == "method" and isinstance(value, str):
            made[key] = identity(value)
        elif key == "benchmark":
            made[key] = _BENCHMARKS.get(value, value)
        elif key == "settings":
            made[key] = _settings(value)
        else:
            made[key] = value
    return made


def identity(text: str) -> dict[str, Any]:
    """Name of a method and its settings that differ from their defaults, from its repr.

    Args:
        text: The repr.

    Raises:
        ValueError: It is no call of a known method with settings by name.
    """
    call = ast.parse(text, mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
        raise ValueError(f"{text!r} is no repr of a method")
    if call.func.id not in _METHODS:
        raise ValueError(f"{text!r}: expected one of {', '.join(_METHODS)}")
    defaults = {f.name: f.default for f in fields(_METHODS[call.func.id])}
    given = {str(setting.arg): ast.literal_eval(setting.value) for setting in call.keywords}
    changed = {k: v for k, v in given.items() if k != "scale" and v != defaults[k]}
    return {"name": call.func.id, **changed}


def _settings(settings: Row) -> Row:
    made: Row = {}
    for key, value in settings.items():
        if key in _DEFAULTS and value == _DEFAULTS[key]:
            continue
        if key == "prompts" and isinstance(value, str):
            value = value.removeprefix(_PROMPTS)
        if key == "model":
            value = value.removeprefix(_ORGANISMS)
        made["recipe" if key == "way" else key] = value
    return made


def migrate(path: Path) -> int:
    """Rewrite a file of rows, and give their number.

    Args:
        path: The file, one JSON object a line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.dumps(migrate_row(json.loads(line))) + "\n" for line in lines]
    write_atomically({path: "".join(rows).encode()})
    return len(rows)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {migrate(Path(name))} rows")
