"""An experiment: settings, cases, one measurement a case, and a table and a picture of its rows."""

import math
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NewType, Self, TypeVar, get_args, get_type_hints

from melbo.errors import MelboError
from melbo.progress import track
from melbo.records import ResultLog, Row, environment, write_atomically

#: Version of what experiments measure, in the key of every row: raise it when something that is
#: not a setting changes the figures, so that rows from before are measured again.
VERSION = 1
#: Rows of the published experiments, a folder for each.
RESULTS = Path(__file__).parents[1] / "results"
_SETTINGS = Path(__file__).parent / "settings"

#: Number of a layer. Any other whole number among the settings is a count.
Layer = NewType("Layer", int)

# by type of setting: the types that TOML may give it as, its name in messages, its least value
_KINDS: dict[Any, tuple[tuple[type, ...], str, float]] = {
    str: ((str,), "a string", -math.inf),
    int: ((int,), "a whole number of at least 1", 1),
    Layer: ((int,), "a whole number", -math.inf),
    float: ((int, float), "a number", -math.inf),
}

Typed = TypeVar("Typed")


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """A question about models, as a frozen dataclass of its settings.

    Attributes:
        question: The question.
        varied: Names of the settings that say which rows there are, not what is in them.
        folder: Folder of the file that the settings were read from; no setting itself.
    """

    question: ClassVar[str]
    varied: ClassVar[tuple[str, ...]] = ()
    folder: Path = field(default=Path(), compare=False)

    @classmethod
    def read(cls, path: str | Path, preset: str) -> Self:
        """Read the settings from a table of a TOML file.

        Args:
            path: The file.
            preset: Name of the table, ``"laptop"`` or ``"paper"`` in the files that come along.

        Raises:
            MelboError: There is no such file or table, a setting is unknown, missing or of the
                wrong kind, or `check` refuses them.
        """
        given = _read_table(path, preset)
        known = {f.name: f for f in cls._setting_fields()}
        expected = ", ".join(known)
        if unknown := ", ".join(sorted(given.keys() - known.keys())):
            raise MelboError(f"{path}: no setting {unknown}: expected {expected}")
        required = [name for name, f in known.items() if f.default is MISSING]
        if missing := ", ".join(name for name in required if name not in given):
            raise MelboError(f"{path}: the setting {missing} is missing: expected {expected}")
        hints = get_type_hints(cls)
        for name, value in given.items():
            _check(path, name, value, hints[name])
        made = cls(**given, folder=Path(path).parent)
        try:
            made.check()
        except MelboError as err:
            raise MelboError(f"{path}: {err}") from err
        return made

    @abstractmethod
    def check(self) -> None:
        """Refuse settings of the right kind that make no sense.

        Raises:
            MelboError: There is such a setting.
        """

    @classmethod
    def _setting_fields(cls) -> list[Field[Any]]:
        return [f for f in fields(cls) if f.name != "folder"]

    def describe(self) -> Row:
        """Every setting, as JSON has it."""
        given = {f.name: getattr(self, f.name) for f in self._setting_fields()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}

    @property
    def settings(self) -> Row:
        """The settings that key the rows, as JSON has them.

        They are those that differ from their default and are not varied from row to row: a new
        setting with a default leaves the rows from before valid.
        """
        defaults = {f.name: f.default for f in self._setting_fields()}
        kept = {k: v for k, v in self.describe().items() if k not in self.varied}
        return {k: v for k, v in kept.items() if v != defaults[k]}

    @property
    @abstractmethod
    def cases(self) -> list[Row]:
        """The measurements to make; everything in a case is in its row."""

    @abstractmethod
    def prepare(self) -> Any:
        """Make what all cases need: the model, prompts, a scale."""

    @abstractmethod
    def measure(self, ready: Any, case: Row) -> Row:
        """Measure one case.

        Args:
            ready: Result of `prepare`.
            case: The case.
        """

    @abstractmethod
    def table(self, rows: Sequence[Row]) -> str:
        """The rows as a table in Markdown."""

    @abstractmethod
    def picture(self, rows: Sequence[Row]) -> bytes:
        """The rows as a picture, a PNG."""


def settings_file(name: str) -> Path:
    """The file with the settings of a published experiment."""
    return _SETTINGS / f"{name}.toml"


def typed(kind: type[Typed], rows: Sequence[Mapping[str, Any]]) -> list[Typed]:
    """Rows as instances of a dataclass, without the keys that it has no field for.

    Args:
        kind: The dataclass. A field with a default may be missing in a row.
        rows: The rows. Spaces in their keys are underscores in the names of fields.
    """
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # a type that is a dataclass
    each = [{key.replace(" ", "_"): value for key, value in row.items()} for row in rows]
    return [kind(**{k: v for k, v in row.items() if k in names}) for row in each]


def own_rows(experiment: Experiment, rows: ResultLog) -> list[Row]:
    """Rows of a log that belong to the cases of an experiment, in the order of the cases."""
    return [row for case in experiment.cases for row in rows.of(case)]


def run(experiment: Experiment, folder: str | Path, progress: bool = True) -> Iterator[Row]:
    """Measure the cases that have no row yet; table and picture are made anew after every row.

    Args:
        experiment: The experiment.
        folder: Folder of its rows, table and picture.
        progress: Whether to draw a bar.

    Yields:
        New rows.
    """
    folder = Path(folder)
    rows = ResultLog(folder / "rows.jsonl")
    left = rows.missing(experiment.cases)
    if not left:
        _draw(experiment, rows, folder)
        return
    ready = experiment.prepare()
    with track(len(left), "cases", progress) as bar:
        for case in left:
            rows.add({**case, **experiment.measure(ready, case), "environment": environment()})
            _draw(experiment, rows, folder)
            bar.update()
            yield rows.rows[-1]


def _draw(experiment: Experiment, rows: ResultLog, folder: Path) -> None:
    """Write table and picture of the rows that belong to an experiment."""
    if own := own_rows(experiment, rows):
        write_atomically(
            {
                folder / "table.md": experiment.table(own).encode(),
                folder / "picture.png": experiment.picture(own),
            }
        )


def _read_table(path: str | Path, preset: str) -> Row:
    """A table of a TOML file, its lists as tuples.

    Raises:
        MelboError: There is no such file or table.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise MelboError(
            f"cannot read {path} ({getattr(err, 'strerror', None) or err}): expected a TOML file"
        ) from err
    if not isinstance(tables.get(preset), dict):
        presets = ", ".join(k for k, v in tables.items() if isinstance(v, dict))
        raise MelboError(f"{path} has no table [{preset}]: expected one of {presets}")
    given: Row = tables[preset]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _check(path: str | Path, name: str, value: Any, hint: Any) -> None:
    """Refuse a setting whose value cannot be.

    Args:
        path: The file, for the message.
        name: The setting.
        value: Its value, a list as a tuple.
        hint: Its type in the dataclass.

    Raises:
        MelboError: The value is of another type, a count is less than one, or a list is empty or
            holds a value twice.
    """
    inner = get_args(hint)  # of tuple[int, ...], int and an ellipsis; of a pair, two types
    each, many = inner[0] if inner else hint, value if inner else (value,)
    types, kind, least = _KINDS[each]
    fits = (
        isinstance(many, tuple)
        and len(many) > 0
        and all(isinstance(v, types) and not isinstance(v, bool) for v in many)
        and (types == (str,) or all(v >= least for v in many))
        and (not inner or ... in inner or len(many) == len(inner))
    )
    if not fits:
        length = "one or more" if ... in inner else len(inner)
        expected = f"a list of {length}, each {kind}" if inner else kind
        raise MelboError(f"{path}: {name} is {value!r}: expected {expected}")
    if inner and len(set(many)) < len(many):
        raise MelboError(f"{path}: {name} is {value!r}: expected no value twice")
