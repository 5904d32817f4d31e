from itertools import pairwise

import pytest

from melbo.explorer.differences import differences


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("a red cat", "a red cat", [(False, "a red cat")]),
        ("A red  cat", "a red\ncat", [(False, "A red  cat")]),
        ("a red cat", "a blue cat", [(False, "a "), (True, "red"), (False, " cat")]),
        ("so very red", "", [(True, "so very red")]),
        ("", "a red cat", []),
        (" \n", "a", [(False, " \n")]),
        ("red, red", "red", [(False, "red"), (True, ", red")]),
        ("it’s fine", "it’s not fine", [(False, "it’s fine")]),
        ("猫 red", "犬 red", [(True, "猫"), (False, " red")]),
    ],
)
def test_differing_words_are_told(text, other, expected):
    found = list(differences(text, other))
    assert found == expected
    assert "".join(piece for _, piece in found) == text


def test_pieces_alternate_and_make_up_the_text():
    text = "one two <b>three</b> four\n\nfive!  "
    found = list(differences(text, "two three five six"))
    assert "".join(piece for _, piece in found) == text
    assert all(a[0] != b[0] for a, b in pairwise(found))
