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


class Experiment(ABC):
    """A question about models, as a frozen dataclass of its settings.

    Attributes:
        question: What is asked.
    """

    question: ClassVar[str]

    @classmethod
    def read(cls, path: str | Path, scale: str) -> Self:
        """Settings from a TOML file, out of its table ``scale`` (``"laptop"``, ``"paper"``).

        Raises:
            MelboError: No such file or table, a setting that there is not, or one that is missing.
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
        return cls(**given)

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
