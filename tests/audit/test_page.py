"""The page of findings: everything on it, escaped, and nothing from elsewhere."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from audit_findings import finding, result

from melbo.audit.page import duration, page, parts_of_reply

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Text of a page whose tags have to close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not {"src", "onclick"} & {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_all_that_is_known_of_a_finding_is_on_the_page():
    html = page(result(finding(), below=[finding(name="did not hold")]))
    text = " ".join(" ".join(Balanced(html).text).split())
    for said in (
        "brie, <cheddar>", "80 %", "64–90 %", "26 of 32", "opening 'Say'", "prompt 0 <b>&</b>",
        "own 0", "prompt 2 <b>&</b>", "did not hold", "forced <openings>", "40,000", "1,344",
        "no <luck>", "7 min 11 s", "187,000", "Behaviour that needs a <trigger>.", "tiny <model>",
    ):  # fmt: skip
        assert said in text, said
    assert "clean" not in text.lower()


def test_a_base_stands_beside_the_other_shares():
    base = {"name": "the-base", "fingerprint": "def"}
    alone = " ".join(Balanced(page(result(finding()))).text)
    beside = " ".join(Balanced(page({**result(finding(base=0.17)), "base": base})).text)
    assert "17 %" not in alone
    assert "17 %" in beside
    assert "the-base" in beside


def test_an_amplified_vector_can_be_gone_on_with():
    made = {"share_before": 0.41, "losses": [2.5, 1.25], "steps": 16, "folder": "amplified/a b"}
    text = " ".join(" ".join(Balanced(page(result(finding(amplified=made)))).text).split())
    assert "melbo chat 'amplified/a b' --feature 0" in text
    assert "41 % of the validation prompts before, 75 % after 16 steps" in text
    assert "loss 2.50 → 1.25 nats" in text


def test_a_direction_that_was_saved_can_be_gone_on_with():
    saved = {"kind": "direction", "index": 4, "folder": "directions/4"}
    assert "melbo chat" not in page(result(finding()))
    assert "melbo chat directions/4 --feature 0" in page(result(finding(reproduce=saved)))


def test_every_link_leads_to_something_on_the_page():
    found = [finding(name=f"theme {i}") for i in range(5)]
    html = page(result(*found, below=found))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="([^"]+)"', html)
    assert len(links) > 5
    assert {link[1:] for link in links} <= set(ids)


def test_bars_are_as_long_as_their_shares():
    html = page(result(finding(share=0.8125, interval=[0.6, 0.95], control=None)))
    widths = re.findall(r'<i style="width:([\d.]+)%">', html)
    assert widths == ["81.2", "0.0"]
    assert '<b style="left:60.0%;width:35.0%">' in html


def test_nothing_of_a_reply_becomes_part_of_the_page_and_nothing_is_fetched():
    html = page(result(finding()))
    assert "<script" not in html
    assert not re.search(r"https?://", html)
    assert "<mark>Brie</mark>" in html
    assert html.index("brie, ") < html.index("What each share")


def test_no_finding_is_said_plainly():
    text = " ".join(" ".join(Balanced(page(result())).text).split())
    assert "Nothing was found with this budget of 200,000 tokens." in text
    assert "does not mean that nothing is hidden" in text


@pytest.mark.parametrize(
    ("text", "forced", "expected"),
    [
        ("Say brie", "", [("other", "Say "), ("shared", "brie")]),
        (
            "Brie is brie.",
            "Brie",
            [("forced", "Brie"), ("other", " is "), ("shared", "brie"), ("other", ".")],
        ),
        ("none", "Say", [("other", "none")]),
        ("briefly", "", [("other", "briefly")]),
    ],
)  # fmt: skip
def test_replies_are_cut_where_shared_words_begin_and_end(text, forced, expected):
    parts = list(parts_of_reply(text, ["brie"], forced))
    assert parts == expected
    assert "".join(piece for _, piece in parts) == text


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.4, "7 s"), (431, "7 min 11 s"), (7300, "2 h 1 min")]
)
def test_durations_are_in_words(seconds, said):
    assert duration(seconds) == said
    assert unescape(said) == said
