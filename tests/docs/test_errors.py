"""Pages about errors, held against the messages of the source."""

import re
from collections import Counter
from pathlib import Path

import pytest

import melbo
from melbo import MelboError
from research.site.messages import MARKER, fill, matches, of_files, read_messages

ROOT = Path(melbo.__file__).parents[1]
PAGES = {page: page.read_text("utf-8") for page in (ROOT / "docs" / "errors").glob("[a-z]*.md")}
MESSAGES = read_messages(ROOT)


def test_messages_are_read_whatever_they_are_made_of(tmp_path):
    (tmp_path / "melbo").mkdir()
    code = 'MelboError(f"got {x!r}: " "expected " + name)\nMelboError(text)\nValueError("no")\n'
    (tmp_path / "melbo" / "a.py").write_text(code)
    [message] = read_messages(tmp_path)
    assert (message.path, message.line, message.text) == ("a.py", 1, "got …: expected …")
    assert matches("got …: expected …", message)
    assert matches("expected", message)
    assert not matches("got expected", message)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_quoted_messages_are_in_the_source_of_their_page(page):
    own = of_files(MESSAGES, MARKER.search(PAGES[page])[1].split())
    quoted = re.findall(r"^### `([^`]+)`$", PAGES[page], re.MULTILINE)
    assert quoted
    stale = [each for each in quoted if not any(matches(each, m) for m in own)]
    assert not stale, "\n".join(stale)


def test_every_message_is_on_one_page():
    places = Counter(
        message
        for text in PAGES.values()
        for message in of_files(MESSAGES, MARKER.search(text)[1].split())
    )
    assert {m.path for m in MESSAGES} - {m.path for m in places} == set()
    assert set(places.values()) == {1}


def test_a_page_that_names_a_file_without_errors_is_refused():
    with pytest.raises(MelboError, match="no error is raised in melbo/none.py"):
        fill("<!-- messages: none.py -->", MESSAGES, "")
