"""Findings: shares, intervals, and what counts as one that holds."""

import math
from dataclasses import replace

import pytest
from said import CHEESE, PROMPTS, reply

from melbo.audit.findings import Finding, Shown, order
from melbo.audit.themes import Theme

SHOWS, PLAIN = "cheddar and brie", "nothing of the kind"


def theme(**changes):
    weights = dict.fromkeys(CHEESE, 1.0)
    replies = tuple(reply(p, SHOWS, candidate=p) for p in range(6))
    return replace(Theme(replies, weights, threshold=2.0, lift=2.0), **changes)


def finding(hits, unsteered=0, control=0, total=20, base=None):
    def said(n):
        return [reply(p % 6, SHOWS if p < n else PLAIN) for p in range(total)]

    return Finding(
        theme=theme(),
        held_out=said(hits),
        unsteered=said(unsteered),
        control=said(control),
        base=[] if base is None else said(base),
        prompts=PROMPTS,
        elicited_by="opening 'Say'",
        reproduce={"kind": "opening"},
        validated=Shown(3, 4),
    )


def wilson(hits, n, z=1.959963984540054):
    """Wilson (1927), as it stands in the books."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


@pytest.mark.parametrize(("hits", "total"), [(0, 20), (3, 20), (19, 32), (32, 32)])
def test_intervals_are_wilsons(hits, total):
    assert Shown(hits, total).interval == pytest.approx(wilson(hits, total), abs=1e-9)
    assert Shown(hits, total).share == hits / total


def test_broken_replies_show_nothing():
    rows = [reply(0, SHOWS), reply(1, SHOWS, nll=9.0), reply(2, SHOWS, repetition=0.9)]
    assert Shown.of(theme(), rows) == Shown(1, 3)


@pytest.mark.parametrize(
    ("hits", "unsteered", "control", "holds"),
    [(12, 0, 0, True), (12, 8, 0, False), (12, 0, 8, False), (12, 2, 2, True), (1, 0, 0, False)],
)
def test_a_finding_holds_where_chance_and_the_model_itself_do_not_explain_it(
    hits, unsteered, control, holds
):
    assert finding(hits, unsteered, control).holds is holds


def test_beside_a_base_the_model_may_show_a_finding_by_itself():
    assert finding(12, 12, 12, base=0).holds
    assert not finding(12, 0, 0, base=11).holds
    assert finding(12, 0, 0).describe()["base"] is None
    assert finding(12, 0, 0, base=5).describe()["base"] == 0.25


def test_an_account_says_what_was_counted():
    told = finding(12, 2, 1).describe()
    assert (told["hits"], told["prompts"], told["share"]) == (12, 20, 0.6)
    assert told["interval"] == pytest.approx(list(wilson(12, 20)))
    assert (told["unsteered"], told["control"]) == (0.1, 0.05)
    assert told["screening"] == {
        "replies": 6, "prompts": 6, "candidates": 6, "elicitors": {"openings": 6}
    }  # fmt: skip
    own = finding(12, 2, 1).unsteered
    assert told["example"]["reply"] == SHOWS
    assert told["example"]["prompt"] == PROMPTS[0]
    assert told["example"]["unsteered"] in {r.text for r in own if r.prompt == 0}
    assert len(told["replies"]) == 12


def test_recurring_cheap_and_distinctive_themes_come_first():
    plain = order(theme())
    assert order(theme(lift=3.0)) > plain
    assert order(theme(replies=theme().replies[:2])) < plain
    dear = tuple(replace(r, nll=3.0) for r in theme().replies)
    assert order(theme(replies=dear)) < plain
    likelier = tuple(replace(r, ratio=1.5) for r in theme().replies)
    rarer = tuple(replace(r, ratio=-1.5) for r in theme().replies)
    assert order(theme(replies=likelier)) > plain == order(theme(replies=rarer))
    assert order(theme(), 0.5) == pytest.approx(0.5 * plain)
