"""Files of text."""

import pytest

from melbo import MelboError
from melbo.models.text.documents import read_documents


def test_a_file_is_a_text_and_json_lines_are_several(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('"three\\nfour"\n{"text": "five"}\n', encoding="utf-8")
    found = read_documents([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert found == ["one\n\ntwo\n", "three\nfour", "five"]


@pytest.mark.parametrize(
    ("content", "said"), [(b" \n", "is empty"), (b"caf\xe9", "not UTF-8"), (None, "cannot read")]
)
def test_a_file_without_text_is_refused(tmp_path, content, said):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MelboError, match=said):
        read_documents([path])


def test_no_file_is_refused():
    with pytest.raises(MelboError, match="got no text"):
        read_documents([])
