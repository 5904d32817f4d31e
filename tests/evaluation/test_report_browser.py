"""A report in a real browser, opened from disk with the network off."""

import csv
import io
import json

import pytest
from browser import LAPTOP, NARROW
from browser import browser as browser
from browser import chromium as chromium
from explored import PLANTED, PLANTED_WORDS, large
from playwright.sync_api import expect

from melbo.evaluation.report import report

pytestmark = pytest.mark.slow

NUM, PROMPTS, CONTROLS = 24, 6, 3
# features 3, 9 and 12 say the same; some replies of feature 0 are what a spreadsheet would run
SAME = {3: "cheddar brie gouda", 9: "brie gouda cheddar", 12: "gouda cheddar brie"}
FORMULAS = ["=1+1", '@SUM(A1) "quoted", and\nmore', "-2 is a number", "+3", " = 4", "plain, text"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report of a small run."""
    folder = large(tmp_path_factory.mktemp("small"), NUM, PROMPTS, CONTROLS, tokens=20)
    path = folder / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        if row["kind"] == "feature" and row["feature"] in SAME:
            row["text"] = f"{SAME[row['feature']]} {row['text'][:10]}"
        if (row["kind"], row["feature"]) == ("feature", 0):
            row["text"] = FORMULAS[row["prompt"]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return report(folder)


def opened(browser, file, anchor="", size=LAPTOP, scheme="light"):
    """A page with the report, which has asked for nothing but itself."""
    page = browser.page(size, scheme)
    page.context.set_offline(True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri() + anchor)
    assert asked == [file.as_uri()]
    return page


def shown(page):
    """Ids of the rows that can be seen, from the top."""
    return page.eval_on_selector_all(".vec:not([hidden])", "rows => rows.map((row) => row.id)")


def test_a_large_report_is_small_and_sorts_and_searches(browser, tmp_path):
    file = report(large(tmp_path, 512, 32, 32, tokens=28))
    text = (tmp_path / "completions.jsonl").read_text(encoding="utf-8")
    said = [json.loads(line)["text"] for line in text.split("\n") if line]
    assert sum(map(len, said)) / len(said) > 100  # as long as 24 tokens of prose
    assert file.stat().st_size < 5e6
    page = opened(browser, file)
    expect(page.locator("#count")).to_have_text("512 of 512 features")
    page.get_by_role("searchbox").fill(" ".join(PLANTED_WORDS))
    expect(page.locator("#count")).to_have_text("1 of 512 features")
    assert shown(page) == [f"feature-{PLANTED}"]
    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="NLL").click()
    values = page.eval_on_selector_all(
        ".vec:not([hidden])",
        """rows => {
          const heads = [...document.querySelectorAll(".sort th")];
          const nll = heads.findIndex((head) => head.textContent === "NLL");
          return rows.map((row) => +row.rows[0].cells[nll].dataset.value);
        }""",
    )
    assert len(values) == 512
    assert values == sorted(values)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, NARROW])
def test_the_page_does_not_scroll_sideways_and_can_be_read(browser, page_file, size, scheme):
    page = opened(browser, page_file, size=size, scheme=scheme)
    widest = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    assert page.evaluate(widest) <= size[0]
    page.locator("#feature-5 .more").click()
    replies = page.locator("#feature-5 li")
    expect(replies).to_have_count(PROMPTS)
    for reply in replies.all():
        box = reply.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")


def test_a_link_to_a_feature_opens_it_and_survives_a_reload(browser, page_file):
    page = opened(browser, page_file, "#feature-12")
    for _ in range(2):
        expect(page.locator("#feature-12.open")).to_be_in_viewport()
        expect(page.locator("#feature-12 .ask")).to_have_count(PROMPTS)
        assert page.locator(".vec.open").count() == 1
        page.reload()
    # a filter that hides it gives way
    page.get_by_role("searchbox").fill("no reply says this")
    assert shown(page) == []
    page.evaluate("location.hash = '#feature-7'")
    expect(page.locator("#feature-7.open")).to_be_in_viewport()
    page.evaluate("location.hash = '#random-1'")
    expect(page.locator("#random-1.open")).to_be_in_viewport()


def test_an_address_that_names_nothing_opens_nothing(browser, page_file):
    page = opened(browser, page_file, "#feature-999")
    assert len(shown(page)) == NUM
    assert page.locator(".vec.open").count() == 0


def test_points_lead_to_their_rows(browser, page_file):
    page = opened(browser, page_file)
    links = page.locator("figure a")
    assert links.count() == NUM + CONTROLS
    page.locator("figure a[*|href='#feature-5']").first.click()
    expect(page.locator("#feature-5.open")).to_be_in_viewport()
    assert page.url.endswith("#feature-5")
    ranking = json.loads((page_file.parent / "ranking.json").read_text())
    row = next(row for row in ranking["features"] if row["index"] == 5)
    title = page.locator("figure a[*|href='#feature-5'] title").first.text_content()
    assert title == f"feature 5: ‖Δ‖ {row['effect']:.3g}, NLL {row['held_out']['nll']:.3g}"


def test_a_group_is_shown_alone(browser, page_file):
    page = opened(browser, page_file)
    group = page.locator(".groups li").filter(has_text="cheddar")
    assert {"brie", "cheddar", "gouda"} <= set(
        group.locator("strong").inner_text().replace(",", "").split()
    )
    group.get_by_role("link", name="group").click()
    expect(page.locator("#count")).to_have_text(f"{len(SAME)} of {NUM} features")
    assert set(shown(page)) == {f"feature-{i}" for i in SAME}
    page.locator("#ungroup").click()
    expect(page.locator("#count")).to_have_text(f"{NUM} of {NUM} features")


def test_the_table_as_csv_holds_what_is_shown_and_no_formula(browser, page_file):
    page = opened(browser, page_file)
    page.get_by_role("button", name="α").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "features.csv"
    content = download.value.path().read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    head, *rows = csv.reader(io.StringIO(content[3:].decode(), newline=""))
    assert [f"feature-{row[1]}" for row in rows] == shown(page)
    assert head[:4] == ["place", "feature", "flag", "group"]
    assert "on held-out prompts: NLL" in head
    assert len(head) == len(rows[0])
    alphas = [float(row[head.index("on the fit’s prompts: α")]) for row in rows]
    assert alphas == sorted(alphas, reverse=True)
    first = next(row for row in rows if row[1] == "0")
    # the last four of the prompts are held out, and come first
    expected = [FORMULAS[p].strip() for p in (1, 2, 3, 4, 5, 0)]
    assert first[-PROMPTS:] == [f"'{text}" if text[0] in "=+-@" else text for text in expected]


def test_what_is_printed_is_whole(browser, page_file):
    page = opened(browser, page_file)
    page.get_by_role("searchbox").fill("gouda")
    page.locator("#feature-9 .more").click()
    page.emulate_media(media="print")
    for row, number in (("#feature-3", PROMPTS), ("#feature-9", PROMPTS)):
        seen = page.locator(f"{row} li:visible")
        expect(seen).to_have_count(number)
        cut = seen.evaluate_all("rows => rows.filter((r) => r.scrollHeight > r.clientHeight + 1)")
        assert not cut
    assert page.locator("#feature-5").is_hidden()
    assert page.locator(".tools").is_hidden()
    page.emulate_media(media="screen")
    page.get_by_role("searchbox").fill("")
    page.emulate_media(media="print")
    expect(page.locator("#feature-5 li:visible")).to_have_count(4)
    assert page.pdf().startswith(b"%PDF")
