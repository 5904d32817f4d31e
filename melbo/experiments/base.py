"""What an experiment is: settings, cases, one measurement a case, and what is made of the rows."""

import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from ..bench import environment
from ..errors import MelboError
from ..features import write_whole
from ..progress import track
from ..rows import Row, Rows
from ..ways import WAYS, check_number

_COUNTS = ("shuffles", "number", "num_factors", "validation", "test", "horizon", "max_new_tokens", "sweeps")


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
            raise MelboError(f"cannot read {path} ({getattr(err, 'strerror', None) or err}): expected a TOML file") from err
        if scale not in tables:
            raise MelboError(f"{path} has no table [{scale}]: expected one of {', '.join(tables)}")
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # every experiment is a dataclass
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in tables[scale].items()}
        unknown, missing = given.keys() - known.keys(), [n for n, f in known.items() if f.default is MISSING and n not in given]
        if unknown or missing:
            what = f"no setting {', '.join(sorted(unknown))}" if unknown else f"the setting {', '.join(missing)} is missing"
            raise MelboError(f"{path}: {what}: expected {', '.join(known)}")
        for name, value in given.items():
            _check(path, name, value, known[name].type)
        made: Any = cls(**given)
        check_number(given.get("ways", (given.get("way"),)), getattr(made, "num_factors", 0))
        return made

    @property
    def settings(self) -> Row:
        """Every setting but what is varied from row to row, as JSON has it: rows of others are not taken for these."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.varied}  # type: ignore[arg-type]  # as above
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

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
    rows = Rows(folder / "rows.jsonl")
    left = rows.missing(experiment.cases)
    if left:
        ready = experiment.prepare()
        with track(len(left), "cases", progress) as bar:
            for case in left:
                rows.add({**case, **experiment.measure(ready, case), "environment": environment()})
                draw(experiment, rows, folder)
                bar.update()
                yield rows.every[-1]
    draw(experiment, rows, folder)


def draw(experiment: Experiment, rows: Rows, folder: Path) -> None:
    """Table and picture of the rows that belong to an experiment."""
    own = [row for case in experiment.cases for row in rows.of(case)]
    if own:
        write_whole({folder / "table.md": experiment.table(own).encode(), folder / "picture.png": experiment.picture(own)})


def _check(path: str | Path, name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the kind that the dataclass says.

    Raises:
        MelboError: It is not, or a list is empty, a count less than one, a way unknown or one of adapters.
    """
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    listed = not isinstance(kind, type) or text == "tuple"
    fits = (isinstance(value, tuple) and len(value) > 0) if listed else isinstance(value, kinds[text]) and not isinstance(value, bool)
    if not fits or (text == "int" and name in _COUNTS and value < 1):
        what = "a list with something in it" if listed else f"a {text}" + (" of at least 1" if name in _COUNTS else "")
        raise MelboError(f"{path}: {name} is {value!r}: expected {what}")
    ways = value if name == "ways" else (value,) if name == "way" else ()
    wrong = [way for way in ways if way not in WAYS or WAYS[way].adapters]
    if wrong:
        raise MelboError(f"{path}: no way {', '.join(map(str, wrong))}: expected some of {', '.join(n for n, w in WAYS.items() if not w.adapters)}")
