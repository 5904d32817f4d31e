import pytest

from melbo import MelboError
from research.pages import fill, stale_pages, write_pages

TABLES = {"one": "| a |\n| --- |\n| 1 |\n", "some/two": "| b |\n"}
PAGE = """# A page

<!-- table: one -->
old
<!-- end -->

Between.

<!-- table: some/two -->
<!-- end -->
"""
FILLED = """# A page

<!-- table: one -->

| a |
| --- |
| 1 |

<!-- end -->

Between.

<!-- table: some/two -->

| b |

<!-- end -->
"""


def test_tables_are_put_between_their_markers_and_nothing_else_changes():
    assert fill(PAGE, TABLES) == FILLED
    assert fill(FILLED, TABLES) == FILLED
    assert fill("no table\n", TABLES) == "no table\n"


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("\n<!-- table: three -->\n<!-- end -->\n", "line 2: no table three: expected one of one,"),
        ("<!-- table: one -->\n", "the table one has no <!-- end -->"),
        (
            "<!-- table: one -->\n<!-- table: some/two -->\n<!-- end -->\n",
            "line 2: the table one before has no <!-- end -->",
        ),
        ("text\n<!-- end -->\n", "line 2: <!-- end --> without a table before it"),
    ],
)
def test_markers_that_cannot_be_are_refused_in_one_line(page, says, tmp_path):
    with pytest.raises(MelboError, match=says):
        fill(page, TABLES)
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(MelboError) as refused:
        stale_pages(tmp_path, TABLES)
    assert str(tmp_path / "page.md") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pages_are_stale_until_they_are_written(tmp_path):
    (tmp_path / "below").mkdir()
    stale, fresh, other = (
        tmp_path / "below" / "stale.md",
        tmp_path / "fresh.md",
        tmp_path / "other.txt",
    )
    stale.write_text(PAGE)
    fresh.write_text(FILLED)
    other.write_text(PAGE)
    assert stale_pages(tmp_path, TABLES) == {stale: FILLED}
    assert stale.read_text() == PAGE
    assert write_pages(tmp_path, TABLES) == [stale]
    assert stale.read_text() == FILLED
    assert other.read_text() == PAGE
    assert write_pages(tmp_path, TABLES) == []
