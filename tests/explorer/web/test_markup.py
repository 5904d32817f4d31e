from explored import finding

from melbo.explorer.run_view import Said
from melbo.explorer.web.markup import example, replies, say, shares

BAD = '<img src=x onerror="alert(1)">'


def test_differences_are_marked():
    html = str(replies([Said("Say it", "held-out", "a red cat", "a blue cat", "")], 3, 1))
    assert "a <mark>red</mark> cat" in html
    assert ">a blue cat<" in html
    assert "feature 3" in html
    assert "random direction 1" in html
    assert "(empty reply)" in html


def test_nothing_that_was_said_is_taken_for_markup():
    found = finding(BAD, words=[], example=None)
    shown = {"prompt": BAD, "reply": BAD, "forced": "", "unsteered": BAD}
    said = [Said(BAD, "held-out", BAD + "red", BAD, BAD)]
    for html in (replies(said, 0, 0), say(BAD, BAD), example(found, shown), shares(found)):
        assert "<img" not in str(html)


def test_shares_stand_beside_each_other():
    html = str(shares(finding("jam", base=0.5)))
    assert "75 % (55–88 %), 18 of 24 prompts" in html
    assert [html.count(f">{who}<") for who in ("unsteered", "random", "base")] == [1, 1, 1]
    assert "base" not in str(shares(finding("jam")))
