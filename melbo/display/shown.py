"""Results that show themselves: as a line, as a small table, as a data frame, as a figure."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from markupsafe import Markup

from melbo.errors import MelboError

if TYPE_CHECKING:
    from pandas import DataFrame

    from melbo.display.picture import Picture

Record = Mapping[str, Any]

# rows of a table that are shown, and characters of a text
_MOST_ROWS, _MOST_CHARACTERS = 20, 400
# no colour is set anywhere: a notebook's own serve in its light and in its dark theme; tables of
# pages without a doctype do not inherit them by themselves
_TABLE = "color: inherit"
_TEXT = "text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: break-word"
_NUMBER = "text-align: right; vertical-align: top; white-space: nowrap"
_NOTE = "margin: 0.3em 0; max-width: 50em"


@dataclass(frozen=True)
class Table:
    """A small table with a title.

    Attributes:
        title: Result in a line.
        headings: Headings of the columns.
        lines: Cells of each line: numbers, texts, or None where nothing is known.
        notes: Sentences under the table.
    """

    title: str
    headings: Sequence[str] = ()
    lines: Sequence[Sequence[Any]] = ()
    notes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        title: str,
        records: Sequence[Record],
        headings: Mapping[str, str],
        notes: Sequence[str] = (),
    ) -> Self:
        """Table of some entries of records.

        Args:
            title: Result in a line.
            records: The records.
            headings: Heading of each entry that is shown; one that no record has is left out.
            notes: Sentences under the table.
        """
        shown = [key for key in headings if any(r.get(key) is not None for r in records)]
        lines = [[record.get(key) for key in shown] for record in records]
        return cls(title, [headings[key] for key in shown], lines, notes)

    def html(self) -> str:
        """HTML in which every text is escaped, of the first lines where there are many."""
        parts = [Markup('<p style="{}"><b>{}</b></p>').format(_NOTE, self.title)]
        if self.lines:
            styles = [_NUMBER if _is_number(cells) else _TEXT for cells in self._columns()]
            head = _row("th", styles, self.headings)
            rows = [_row("td", styles, map(_cell, line)) for line in self.lines[:_MOST_ROWS]]
            table = Markup('<table style="{}"><thead>{}</thead><tbody>{}</tbody></table>')
            parts.append(table.format(_TABLE, head, Markup("").join(rows)))
        notes = list(self.notes)
        if (more := len(self.lines) - _MOST_ROWS) > 0:
            notes.insert(0, f"… and {more} more: .to_frame() has them all")
        parts += [Markup('<p style="{}">{}</p>').format(_NOTE, note) for note in notes]
        return str(Markup("<div>{}</div>").format(Markup("").join(parts)))

    def _columns(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.lines, strict=True))


class Shown(ABC):
    """A result that shows itself: printed, in a notebook, as a data frame and as a figure."""

    @abstractmethod
    def _table(self) -> Table:
        """Result as a small table, whose title is what is printed."""

    @abstractmethod
    def _records(self) -> Sequence[Record]:
        """All of its rows, each with plain values by name."""

    @abstractmethod
    def plot(self) -> "Picture":
        """Draw the result.

        Returns:
            A figure of matplotlib. A notebook shows it by itself; ``savefig`` writes it to a file.
        """

    def to_frame(self) -> "DataFrame":
        """Rows of the result as a data frame of pandas, with numbers as they are.

        Raises:
            MelboError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as err:
            raise MelboError(
                "to_frame needs pandas, which is not installed: pip install 'melbo[notebooks]'"
            ) from err
        return DataFrame(list(self._records()))

    def _repr_html_(self) -> str:
        """Table in a notebook."""
        return self._table().html()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._table().title}>"


def number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−").replace("inf", "∞")


def _row(tag: str, styles: Sequence[str], cells: Any) -> Markup:
    """A row of a table, headings (``th``) or values (``td``)."""
    cell = Markup('<{0} style="{1}">{2}</{0}>')
    inside = (
        cell.format(Markup(tag), style, text) for style, text in zip(styles, cells, strict=True)
    )
    return Markup("<tr>{}</tr>").format(Markup("").join(inside))


def _cell(value: Any) -> str:
    """A value as a text of bounded length."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    text = str(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _is_number(cells: Sequence[Any]) -> bool:
    """Tell whether a column holds numbers."""
    return not any(isinstance(value, (str, bool)) for value in cells)
