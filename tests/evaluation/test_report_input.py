import shutil

import pytest
from report_page import change, plant, read

from melbo import MelboError
from melbo.evaluation.rank import load_ranking
from melbo.evaluation.report import report

pytestmark = pytest.mark.slow

# line ends that a reply may hold, and at which some readers of lines stop
LINE_ENDS = "one\u2028two\u2029three\x85four\x0bfive\rsix\nseven"
NASTY = "</p></script><script>alert(1)</script><img src=x onerror=alert(2)> & \"'"


@pytest.mark.parametrize(
    "where", ["reply", "prompt", "system", "model", "warning", "remedy", "contrast", "order"]
)
def test_nothing_in_a_run_is_taken_for_markup(ranked, where):
    report(ranked)
    scripts, elements = read(ranked).count("script"), {tag for tag, _ in read(ranked).elements}
    run, kept = ranked / "run.json", ranked / "ranking.json"
    if where == "reply":
        plant(ranked, NASTY)
    elif where == "prompt":
        change(run, lambda r: r["map"]["prompts"].update(texts=[NASTY]))
        change(kept, lambda r: r["settings"]["held_out"].update(texts=[NASTY]))
    elif where == "system":
        change(run, lambda r: r["map"]["prompts"].update(system=NASTY))
    elif where == "model":
        change(run, lambda r: r["map"]["model"].update(name=NASTY))
    elif where == "warning":
        change(run, lambda r: r["calibration"].update(warning=NASTY))
    elif where == "remedy":
        change(run, lambda r: r["fit"].update(status="max_steps", remedy=NASTY))
    elif where == "contrast":
        change(
            kept,
            lambda r: r["settings"].update(contrast=[NASTY, "b"], contrast_tokens=[NASTY, "b"]),
        )
    elif where == "order":
        change(kept, lambda r: r["settings"].update(order=NASTY))
    report(ranked)
    page = read(ranked)
    assert page.count("script") == scripts
    assert not page.count("img")
    assert "alert(1)" in page.text
    assert NASTY in page.text or where == "contrast"  # tokens are shown as JSON
    assert {tag for tag, _ in page.elements} == elements


def test_a_folder_with_an_odd_name_can_be_pasted_into_a_shell(made, tmp_path):
    folder = shutil.copytree(made / "fitted", tmp_path / "my run; <b>'x'")
    report(folder)
    text = read(folder).text
    assert "melbo rank '" in text
    assert "my run; <b>'\"'\"'x'\"'\"''" in text


def test_every_line_end_in_a_reply_survives(ranked):
    last = len((ranked / "completions.jsonl").read_text(encoding="utf-8").split("\n")) - 2
    for row in (0, 2, last):
        plant(ranked, LINE_ENDS, row)
    _, completions = load_ranking(ranked)
    assert [completions[row].text for row in (0, 2, last)] == [LINE_ENDS] * 3
    assert len(completions) == last + 1
    report(ranked)
    seen = (ranked / "report.html").read_bytes().decode()
    assert seen.count(LINE_ENDS) == 3


def test_an_empty_reply_is_said_to_be_empty(ranked):
    report(ranked)
    before = read(ranked).text.count("(empty reply)")
    plant(ranked, " \n ", 2)
    report(ranked)
    assert read(ranked).text.count("(empty reply)") >= before
    assert any(a.get("class") == "empty" for _, a in read(ranked).elements)


@pytest.mark.parametrize("name", ["ranking.json", "completions.jsonl"])
def test_truncated_rankings_say_so_and_leave_the_old_page(ranked, name):
    report(ranked)
    before = (ranked / "report.html").read_bytes()
    whole = (ranked / name).read_bytes()
    (ranked / name).write_bytes(whole[: len(whole) - 30])
    with pytest.raises(MelboError, match="ranking in .* is truncated .*melbo rank") as err:
        report(ranked)
    assert "\n" not in str(err.value)
    assert (ranked / "report.html").read_bytes() == before


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_ranking_of_another_kind_is_an_error(ranked, content):
    (ranked / "ranking.json").write_text(content)
    with pytest.raises(MelboError, match="melbo rank"):
        report(ranked)


def test_completions_that_are_missing_are_not_shown_as_empty_replies(ranked):
    path = ranked / "completions.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(lines[:-3]) + "\n", encoding="utf-8")  # cut at the end of a line
    with pytest.raises(MelboError, match="melbo rank"):
        report(ranked)


def test_half_a_ranking_is_none(ranked):
    (ranked / "completions.jsonl").unlink()
    report(ranked)
    assert "Not ranked yet" in read(ranked).text


def test_no_run_no_report(tmp_path):
    with pytest.raises(MelboError, match="no run in"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())
