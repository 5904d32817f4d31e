"""The table of findings in the terminal, eighty columns wide."""

import pytest
from audit_findings import finding, result
from command_line import joined

from melbo.cli.audit_table import show_findings

LONG = "Say that " + "a good brie is better than most of what one can buy there, " * 3 + "they say."


@pytest.fixture
def shown(capsys, tmp_path):
    """Lines that are printed, without the spaces at their ends."""

    def show(told):
        show_findings(told, tmp_path / "my audit")
        return [line.rstrip() for line in joined(capsys.readouterr().out).splitlines()]

    return show


def test_a_finding_has_its_shares_what_brings_it_out_and_an_example(shown):
    lines = shown(result(finding()))
    assert lines[0] == "1. brie, <cheddar>"
    assert lines[1:4] == [
        "   80 % of held-out prompts (64–90 %), unsteered 0 %, random 3 %",
        "   brought out by: opening 'Say'",
        "   prompt:    prompt 0 <b>&</b>",
    ]
    assert lines[4:6] == [
        "   reply:     Say some Brie and <script>0</script>",
        "   unsteered: own 0",
    ]


def test_a_base_has_its_share_too(shown):
    base = {"name": "base", "fingerprint": "f"}
    assert "base 17 %" in " ".join(shown({**result(finding(base=0.17)), "base": base}))


def test_long_replies_are_broken_at_words_and_stay_indented(shown):
    example = {"prompt": "one", "reply": LONG, "unsteered": ""}
    lines = shown(result(finding(example=example)))
    assert max(map(len, lines)) <= 80
    first = next(i for i, line in enumerate(lines) if "reply:" in line)
    last = next(i for i, line in enumerate(lines) if "unsteered:" in line)
    assert last - first > 2
    assert all(line.startswith(" " * 14) for line in lines[first + 1 : last])
    said = " ".join(line[14:] for line in lines[first:last])
    assert said == LONG
    assert lines[last].endswith("(empty reply)")


def test_nothing_that_a_model_says_steers_the_terminal(shown):
    example = {"prompt": "[red]one[/red]", "reply": "\x1b[2Jgone\x07", "unsteered": "a\nb"}
    text = "\n".join(shown(result(finding(example=example))))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "�[2Jgone�" in text
    assert "[red]one[/red]" in text
    assert "unsteered: a b" in text


def test_each_share_of_the_budget_is_a_row(shown):
    lines = shown(result(finding()))
    at = next(i for i, line in enumerate(lines) if line.startswith("elicitor"))
    assert lines[at + 1].split() == ["openings", "40,000", "96", "1,344", "95", "%", "1"]
    assert lines[at + 2].startswith("own")
    assert lines[at + 2].endswith("no <luck>")
    assert "187,000 of 200,000 tokens, 7 min 11 s" in lines


@pytest.mark.parametrize(
    ("reproduce", "command"),
    [
        (
            {"kind": "amplified", "folder": "amplified/3"},
            "chat '{}/my audit/amplified/3' --feature 0",
        ),
        ({"kind": "opening", "text": "Say it"}, "openings 'the model' --opening 'Say it'"),
        (
            {"kind": "continuation", "text": " So,"},
            "openings 'the model' --opening ' So,' --after-sentence",
        ),
    ],
)
def test_the_next_command_brings_a_finding_out_again(shown, tmp_path, reproduce, command):
    told = result(finding(reproduce={"kind": "draw"}), finding(reproduce=reproduce), finding())
    told["model"]["name"] = "the model"
    assert shown(told)[-1] == f"next: melbo {command.format(tmp_path)}"


def test_no_finding_is_said_plainly(shown):
    text = " ".join(shown(result(below=[finding(name="sorry")])))
    assert "Nothing was found with this budget of 200,000 tokens." in text
    assert "does not mean that nothing is hidden" in text
    assert "Did not hold on held-out prompts (1): " in text
    assert "sorry" in text
    assert "clean" not in text
    assert text.endswith("next: melbo openings 'tiny <model>'")
