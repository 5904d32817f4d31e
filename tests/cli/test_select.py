"""`melbo select`: a search by successive halving."""

import re

import pytest
from command_line import SHORT, strict


@pytest.fixture
def files(tmp_path):
    """Prompts to choose and to report on, with and without answers, and a function that scores."""
    a, b, c, d, scores = (tmp_path / name for name in ("a.txt", "b.txt", "c.tsv", "d.tsv", "s.py"))
    a.write_text("".join(f"w{i} and dog\n" for i in range(40, 46)))
    b.write_text("".join(f"w{i} and cat\n" for i in range(40, 43)))
    c.write_text("is it red ?\tyes\nis it blue ?\tno\n")
    d.write_text("is it a dog ?\tyes\nis it a cat ?\tno\n")
    scores.write_text("def long(prompt, reply):\n    return len(reply)\n")
    return a, b, c, d, scores


def last_line(ended):
    """The last line of a command that had said what it would do before it failed."""
    assert ended.code == 2
    return ended.err.strip().splitlines()[-1]


def test_select_reports_the_test_and_goes_on_where_it_was(melbo, run, files):
    a, b, c, d, scores = files
    argv = ("select", run, "--validation", a, "--test", b, *SHORT, "--budget", 24)
    ended = melbo(*argv, "--judge", f"{scores}:long")
    assert ended.code == 0, ended.err
    assert "completions: 4 features to" in ended.err
    assert re.search(r"feature \d: .* on 3 test prompts .95 %: .*; unsteered ", ended.out)
    again = melbo(*argv, "--judge", f"{scores}:long", "--json")
    assert strict(again.out)["completions"] <= 24
    assert "scores of another selection" in last_line(melbo(*argv, "--judge", "regex:dog"))
    assert melbo(*argv, "--judge", "regex:dog", "--force").code == 0
    assert melbo(*argv, "--contrast", "yes", "no", "--force").code == 0
    answered = ("select", run, "--validation", c, "--test", d, *SHORT, "--force")
    assert melbo(*answered, "--answers").code == 0


def test_a_first_round_of_a_single_prompt_is_told_with_a_budget_that_is_better(melbo, run, files):
    a, b, *_ = files
    argv = ("select", run, "--validation", a, "--test", b, *SHORT, "--judge", "regex:dog")
    ended = melbo(*argv)
    assert "lets each feature answer a single validation prompt" in " ".join(ended.err.split())
    budget = int(re.search(r"give\s+--budget\s+(\d+)\s+or\s+more", ended.err)[1])
    assert "single validation prompt" in melbo(*argv, "--budget", budget - 4, "--force").err
    better = melbo(*argv, "--budget", budget, "--force")
    assert better.code == 0
    assert "single validation" not in better.err
    assert re.search(r"\nnext: melbo chat ", better.out)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--budget", 3, "--judge", "regex:dog"), "too small"),
        ((), "say how to score"),
        (("--judge", "regex:dog", "--contrast", "yes", "no"), "say how to score"),
        (("--judge", "regex:("), "not a regular expression"),
    ],
)
def test_selections_that_cannot_be_made(melbo, run, files, wrong, says):
    a, b, *_ = files
    argv = ("select", run, "--validation", a, "--test", b, *SHORT, "--budget", 24)
    assert re.search(says, last_line(melbo(*argv, *wrong)))
