"""Tables, data frames and figures of results, whatever texts and numbers are in them."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import ClassVar

import pytest
from matplotlib.figure import Figure

from melbo import MelboError
from melbo.display.figures import Curve, blank, draw_curves, finished
from melbo.display.shown import Shown, Table, number

BAD = "<script>alert('x')</script> & \"quoted\""


class Listed(Shown):
    rows: ClassVar = [{"name": BAD, "share": 0.25}, {"name": "b", "share": None}]

    def _table(self):
        return Table.of("two & more", self._records(), {"name": "name <i>", "share": "share"})

    def _records(self):
        return self.rows

    def plot(self):
        return finished(blank()[0])


class Read(HTMLParser):
    """Tags and texts of a page; every tag that was opened has to be closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_every_text_is_escaped_and_read_back_as_it_was():
    read = Read(Listed()._repr_html_())
    assert {BAD, "name <i>", "two & more", "0.25", "–"} <= set(read.texts)
    assert "script" not in read.tags
    assert read.tags.count("tr") == 3


def test_no_colour_is_set_so_that_both_themes_of_a_notebook_can_be_read():
    page = Listed()._repr_html_().replace("&#", "")
    assert not re.search(r"color: (?!inherit)|background|#[0-9a-f]{3}", page)


def test_long_tables_and_texts_are_cut_and_say_so():
    table = Table("many", ("n", "text"), [(i, "x" * 1000) for i in range(25)])
    read = Read(table.html())
    assert read.tags.count("tr") == 21
    assert "… and 5 more: .to_frame() has them all" in read.texts
    assert max(map(len, read.texts)) == 400


def test_a_column_that_no_record_fills_is_left_out():
    rows = [{"a": 1, "b": None}, {"a": 2}]
    assert Table.of("t", rows, {"a": "A", "b": "B"}).headings == ["A"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-2.0, "−2"), (12345.6, "12,346"), (math.inf, "∞"), (-1e-9, "−1e−09")],
)
def test_numbers_have_three_digits_or_all_before_the_point(value, text):
    assert number(value) == text


def test_printing_tells_the_title_only():
    assert repr(Listed()) == "<Listed: two & more>"


def test_a_data_frame_holds_the_rows_as_they_are():
    frame = Listed().to_frame()
    assert list(frame.columns) == ["name", "share"]
    assert frame["name"].tolist() == [BAD, "b"]
    assert frame["share"].isna().tolist() == [False, True]


def test_a_missing_pandas_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        MelboError, match=r"^to_frame needs pandas.*pip install 'melbo\[notebooks\]'$"
    ):
        Listed().to_frame()


def test_a_figure_shows_itself_and_leaves_none_open():
    code = (
        "import sys\nfrom melbo.display.figures import blank\n"
        "assert 'matplotlib' not in sys.modules\ncanvas, axes = blank()\n"
        "png = canvas._repr_png_()\nprint(png[1:4].decode(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "PNG False\n"


def test_curves_stand_one_above_the_other_with_their_levels_and_the_scale():
    x, curves = [1.0, 2.0, 4.0], [Curve("one", [1, 2, 3], 2.5, "wanted"), Curve("two", [0, -1, 1])]
    canvas = draw_curves((4, 3), "R", x, curves, at=3.0)
    assert isinstance(canvas, Figure)
    first, second = canvas.axes
    assert list(first.lines[0].get_ydata()) == [1, 2, 3]
    assert 2.5 in first.lines[1].get_ydata()
    assert [note.get_text() for note in first.texts] == ["wanted", "R = 3"]
    assert second.get_xlabel() == "R"
    assert second.get_ylim()[0] == -1
    assert first.get_xscale() == "log"
