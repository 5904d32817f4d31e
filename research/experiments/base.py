"""What an experiment is: settings, cases, one measurement a case, and what is made of the rows."""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_type_hints

from melbo.discovery.recipes import RECIPES, check_number
from melbo.errors import MelboError
from melbo.progress import track
from melbo.records import ResultLog, Row, environment, write_atomically

_KINDS: dict[type, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
}  # what each may be given as
_COUNTS = (
    "shuffles",
    "number",
    "num_factors",
    "validation",
    "test",
    "horizon",
    "max_new_tokens",
    "sweeps",
)


class Experiment(ABC):
    """A question about models, as a frozen dataclass of its settings.

    Attributes:
        question: What is asked.
        varied: Settings that say which rows there are, not what is in them.
    """

    question: ClassVar[str]
    varied: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, path: str | Path, scale: str) -> Self:
        """Settings from a TOML file, out of its table ``scale`` (``"laptop"``, ``"paper"``).

        Raises:
            MelboError: No such file or table, a setting that there is not, one that is missing, or one that cannot be.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
            raise MelboError(
                f"cannot read {path} ({getattr(err, 'strerror', None) or err}): expected a TOML file"
            ) from err
        if not isinstance(tables.get(scale), dict):
            raise MelboError(
                f"{path} has no table [{scale}]: expected one of {', '.join(k for k, v in tables.items() if isinstance(v, dict))}"
            )
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # every experiment is a dataclass
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in tables[scale].items()
        }
        unknown, missing = (
            given.keys() - known.keys(),
            [n for n, f in known.items() if f.default is MISSING and n not in given],
        )
        if unknown or missing:
            what = (
                f"no setting {', '.join(sorted(unknown))}"
                if unknown
                else f"the setting {', '.join(missing)} is missing"
            )
            raise MelboError(f"{path}: {what}: expected {', '.join(known)}")
        hints = get_type_hints(cls)
        for name, value in given.items():
            _check(path, name, value, hints[name])
        made: Any = cls(**given)
        check_number(given.get("recipes", (given.get("recipe"),)), getattr(made, "num_factors", 0))
        return made

    @property
    def settings(self) -> Row:
        """Every setting but what is varied from row to row, as JSON has it: rows of others are not taken for these."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.varied}  # type: ignore[arg-type]  # as above
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()
        }

    @property
    @abstractmethod
    def cases(self) -> list[Row]:
        """What is measured, one row each; everything in a case is in its row."""

    @abstractmethod
    def prepare(self) -> Any:
        """What all cases need: the model, prompts, a scale."""

    @abstractmethod
    def measure(self, ready: Any, case: Row) -> Row:
        """One case."""

    @abstractmethod
    def table(self, rows: Sequence[Row]) -> str:
        """What rows say, in Markdown."""

    @abstractmethod
    def picture(self, rows: Sequence[Row]) -> bytes:
        """What rows say, as a PNG."""


def run(experiment: Experiment, folder: str | Path, progress: bool = True) -> Iterator[Row]:
    """Measure what has no row in ``folder`` yet; table and picture are made anew after every row.

    Yields:
        New rows.

    Raises:
        MelboError: The folder holds something else.
    """
    folder = Path(folder)
    rows = ResultLog(folder / "rows.jsonl")
    left = rows.missing(experiment.cases)
    if left:
        ready = experiment.prepare()
        with track(len(left), "cases", progress) as bar:
            for case in left:
                rows.add({**case, **experiment.measure(ready, case), "environment": environment()})
                draw(experiment, rows, folder)
                bar.update()
                yield rows.rows[-1]
    draw(experiment, rows, folder)


def draw(experiment: Experiment, rows: ResultLog, folder: Path) -> None:
    """Table and picture of the rows that belong to an experiment."""
    own = [row for case in experiment.cases for row in rows.of(case)]
    if own:
        write_atomically(
            {
                folder / "table.md": experiment.table(own).encode(),
                folder / "picture.png": experiment.picture(own),
            }
        )


def _check(path: str | Path, name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the kind that the dataclass says.

    Raises:
        MelboError: It is not, or a list is empty or says something twice, a count less than one, a way unknown or one of adapters.
    """
    inner = get_args(kind)  # of a tuple, what is in it; a pair has two, another one and an ellipsis
    each, many = inner[0] if inner else kind, value if inner else (value,)
    fits = (
        isinstance(many, tuple)
        and len(many) > 0
        and all(isinstance(v, _KINDS[each]) and not isinstance(v, bool) for v in many)
    )
    fits = fits and (not inner or ... in inner or len(many) == len(inner))
    if not fits or (name in _COUNTS and value < 1):
        what = f"a {each.__name__}" + (" of at least 1" if name in _COUNTS else "")
        if inner:
            what = f"a list of {len(inner) if ... not in inner else 'one or more'}, each {what}"
        raise MelboError(f"{path}: {name} is {value!r}: expected {what}")
    if inner and len(set(many)) < len(many):
        raise MelboError(f"{path}: {name} is {value!r}: expected no value twice")
    wrong = (
        [recipe for recipe in many if recipe not in RECIPES or RECIPES[recipe].adapters]
        if name in ("recipe", "recipes")
        else []
    )
    if wrong:
        raise MelboError(
            f"{path}: no way {', '.join(wrong)}: expected some of {', '.join(n for n, w in RECIPES.items() if not w.adapters)}"
        )
