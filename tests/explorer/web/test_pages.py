import re

import pytest
from browser import LAPTOP, NARROW, Explorer
from browser import browser as browser
from browser import chromium as chromium
from explored import audit, demo, large
from playwright.sync_api import expect

import melbo
from melbo import FeatureSet
from melbo.explorer.run_view import RunView
from melbo.explorer.steered import Models

pytestmark = pytest.mark.slow

ASKED = "Tell me how to bake a cake"
# where on the map a feature is that is not the chosen one, and which it is
PLACE_OF_ANOTHER = """() => {
  const chart = getElement(document.querySelector("[data-testid=map]").id.slice(1)).chart;
  const points = chart.getOption().series[0].data;
  const places = points.map((point) => chart.convertToPixel({seriesIndex: 0}, point.value));
  const alone = (i) => places.every(
    (place, j) => i === j || Math.hypot(place[0] - places[i][0], place[1] - places[i][1]) > 25
  );
  const other = points.findIndex((point, i) => point.symbolSize < 10 && alone(i));
  return [...places[other], points[other].feature];
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    run = demo(folder)
    (large(folder / "large") / "labels.json").write_text("{")
    audit(folder / "audit", FeatureSet.load(run)[:4])
    return folder


@pytest.fixture(scope="module")
def explorer(folder):
    explorer = Explorer(*(folder / name for name in ("audit", "run", "large")))
    yield explorer
    assert "Traceback" not in explorer.close()


@pytest.fixture(scope="module")
def model(folder):
    """The model of the run, in this process."""
    return Models(lambda run: melbo.load(str(folder / "model"), dtype="float32")).of(folder / "run")


def open_run(page, explorer, name):
    page.goto(f"{explorer.base}/run?name={name}")
    expect(page.locator(".ag-row").first).to_be_visible()
    return page


def pick(page, row):
    """Click on a row of the table; returns the feature it is of."""
    cells = page.locator(".ag-center-cols-container [col-id=name]")
    index = int(
        page.locator(f".ag-pinned-left-cols-container [row-index='{row}'] [col-id=id]").inner_text()
    )
    cells.nth(row).click()
    expect(page.get_by_test_id("feature")).to_have_text(f"Feature {index}")
    return index


def column(page, name):
    """Cells of a column, from the top."""
    rows = page.locator(".ag-center-cols-container .ag-row").all()
    rows.sort(key=lambda row: int(row.get_attribute("row-index")))
    return [row.locator(f"[col-id={name}]").inner_text() for row in rows]


def start_chat(page):
    page.get_by_role("tab", name="chat").click()
    expect(page.get_by_label("say something")).to_be_visible()


def say(page, text, tokens=24):
    page.get_by_label("tokens at most").fill(str(tokens))
    page.get_by_label("say something").fill(text)
    page.get_by_label("say something").press("Enter")


def expected(model, mix, tokens=24):
    return model.reply([{"role": "user", "content": ASKED}], mix, tokens) or "(empty reply)"


def test_the_first_view_of_512_features_builds_those_that_are_seen(browser, explorer):
    """The page at first does not grow with the number of features."""

    def first_view(name):
        page = browser.page()
        page.goto(f"{explorer.base}/run?name={name}", wait_until="commit")
        page.locator(".ag-row").first.wait_for()
        page.locator(".m-say mark").first.wait_for()
        return page.evaluate("document.querySelectorAll('*').length")

    few, many = first_view("run"), first_view("large")
    assert many < 2 * few


def test_features_are_searched_ordered_filtered_and_picked(browser, explorer, folder):
    run = RunView(folder / "large")
    page = open_run(browser.page((1366, 768)), explorer, "large")
    expect(page.get_by_test_id("count")).to_have_text("512 of 512")

    page.get_by_label("text in replies").fill("marmalade porridge")
    expect(page.get_by_test_id("count")).to_have_text("1 of 512")
    assert pick(page, 0) == 7
    expect(page.locator(".m-say mark", has_text="marmalade porridge").first).to_be_visible()
    expect(page.locator(".m-ask")).to_have_count(32)
    page.get_by_label("text in replies").fill("")
    expect(page.get_by_test_id("count")).to_have_text("512 of 512")

    page.locator(".ag-header-cell[col-id=v2]").click()
    novelty = sorted((row.values[2] for row in run.rows), reverse=True)
    expect(page.locator("[row-index='0'] [col-id=v2]")).to_have_text(f"{novelty[0]:.2f}")
    assert column(page, "v2")[:5] == [f"{value:.2f}" for value in novelty[:5]]
    page.locator(".ag-header-cell[col-id=v2]").click()
    expect(page.locator("[row-index='0'] [col-id=v2]")).to_have_text(f"{novelty[-1]:.2f}")

    page.get_by_role("button", name="active", exact=True).click()
    count = sum(row.flag == "active" for row in run.rows)
    expect(page.get_by_test_id("count")).to_have_text(f"{count} of 512")
    assert set(column(page, "flag")) == {"active"}

    index = pick(page, 2)
    page.wait_for_url(f"**feature={index}")
    page.keyboard.press("ArrowDown")
    beneath = page.locator(".ag-pinned-left-cols-container [row-index='3'] [col-id=id]")
    expect(page.get_by_test_id("feature")).to_have_text(f"Feature {beneath.inner_text()}")


def test_a_permalink_opens_its_feature(browser, explorer):
    page = browser.page()
    page.goto(f"{explorer.base}/run?name=large&feature=7")
    expect(page.get_by_test_id("feature")).to_have_text("Feature 7")


def test_without_its_model_a_run_can_be_read(browser, explorer):
    page = open_run(browser.page(), explorer, "large")
    page.get_by_role("tab", name="chat").click()
    expect(page.get_by_test_id("readonly")).to_contain_text("no longer at /gone")
    page.get_by_role("tab", name="similar").click()
    page.get_by_role("button", name=re.compile(r"^256 ")).click()
    expect(page.get_by_test_id("feature")).to_have_text("Feature 256")
    page.get_by_role("tab", name="curves").click()
    expect(page.locator(".m-figure svg")).to_have_count(1)


def test_a_feature_is_picked_from_the_map(browser, explorer):
    page = open_run(browser.page(), explorer, "run")
    before = page.get_by_test_id("feature").inner_text()
    page.get_by_role("tab", name="map").click()
    canvas = page.get_by_test_id("map").locator("canvas")
    expect(canvas).to_be_visible()
    place = page.evaluate(PLACE_OF_ANOTHER)
    canvas.click(position={"x": place[0], "y": place[1]})
    expect(page.get_by_test_id("feature")).not_to_have_text(before)
    expect(page.get_by_test_id("feature")).to_have_text(f"Feature {place[2]}")


def test_replies_are_steered_and_streamed(browser, explorer, model):
    page = open_run(browser.page(), explorer, "run")
    first = pick(page, 0)
    start_chat(page)
    say(page, ASKED, tokens=400)
    steered, unsteered = page.get_by_test_id("steered"), page.get_by_test_id("unsteered")
    lengths = set()
    while len(lengths) < 4:
        lengths.add(len(steered.inner_text()))
        page.wait_for_timeout(20)
    page.get_by_role("button", name="stop").click()

    page.get_by_role("button", name="start over").click()
    page.get_by_role("button", name=f"add feature {first}").click()
    say(page, ASKED)
    own, mixed = expected(model, {}), expected(model, {first: 1.0})
    assert own != mixed
    expect(unsteered).to_have_text(f"unsteered{own}")
    expect(steered).to_have_text(f"steered{mixed}")

    slider = page.get_by_role("slider", name=f"strength of {first}")
    slider.locator("[tabindex='0']").press("ArrowLeft")
    expect(page.get_by_test_id("strength")).to_have_text("× 0.9")
    expect(steered).to_have_text(f"steered{expected(model, {first: 0.9})}")
    page.get_by_role("button", name=f"flip sign of {first}").click()
    expect(page.get_by_test_id("strength")).to_have_text("× −0.9")
    expect(steered).to_have_text(f"steered{expected(model, {first: -0.9})}")

    second = pick(page, 3)
    page.get_by_role("button", name=f"add feature {second}").click()
    both = expected(model, {first: -0.9, second: 1.0})
    expect(steered).to_have_text(f"steered{both}")
    expect(unsteered).to_have_text(f"unsteered{own}")


def test_a_change_of_strength_leaves_the_unsteered_reply_whole(browser, explorer, model):
    page = open_run(browser.page(), explorer, "run")
    index = pick(page, 0)
    start_chat(page)
    page.get_by_role("button", name=f"add feature {index}").click()
    say(page, ASKED, tokens=200)
    expect(page.get_by_test_id("unsteered")).to_contain_text(expected(model, {}, 3))
    page.get_by_role("button", name=f"flip sign of {index}").click()
    mixed = expected(model, {index: -1.0}, 200)
    expect(page.get_by_test_id("steered")).to_have_text(f"steered{mixed}")
    expect(page.get_by_test_id("unsteered")).to_have_text(f"unsteered{expected(model, {}, 200)}")


def test_faults_are_told_and_a_stopped_reply_is_left(browser, explorer, model):
    page = open_run(browser.page(), explorer, "run")
    start_chat(page)
    say(page, ASKED, tokens=1_000_000)
    expect(page.get_by_test_id("steered")).to_contain_text("reads at most 200000")
    page.get_by_role("button", name="start over").click()
    say(page, ASKED, tokens=100_000)
    expect(page.get_by_test_id("steered")).to_contain_text(expected(model, {}, 3))
    page.get_by_role("button", name="stop").click()
    expect(page.get_by_test_id("unsteered")).to_have_text("unsteered(stopped)")
    page.get_by_role("button", name="start over").click()
    expect(page.get_by_test_id("steered")).to_have_count(0)
    say(page, ASKED)
    expect(page.get_by_test_id("unsteered")).to_have_text(f"unsteered{expected(model, {})}")


def test_sessions_at_once_do_not_mix_their_steering(browser, explorer, model):
    pages = [open_run(browser.page(), explorer, "run") for _ in range(2)]
    chosen = [pick(page, row) for page, row in zip(pages, (1, 4), strict=True)]
    for page, index in zip(pages, chosen, strict=True):
        start_chat(page)
        page.get_by_role("button", name=f"add feature {index}").click()
    for page in pages:
        say(page, ASKED, tokens=60)
    for page, index in zip(pages, chosen, strict=True):
        mixed = expected(model, {index: 1.0}, 60)
        expect(page.get_by_test_id("steered")).to_have_text(f"steered{mixed}")
        own = expected(model, {}, 60)
        expect(page.get_by_test_id("unsteered")).to_have_text(f"unsteered{own}")


def test_a_closed_tab_ends_its_reply(browser, explorer, model):
    closed, other = (open_run(browser.page(), explorer, "run") for _ in range(2))
    for page in (closed, other):
        start_chat(page)
    # takes minutes, for which nobody waits here
    say(closed, ASKED, tokens=100_000)
    expect(closed.get_by_test_id("steered")).to_contain_text(expected(model, {}, 3))
    say(other, ASKED)
    other.wait_for_timeout(500)
    expect(other.get_by_test_id("steered")).to_have_text("steered…")
    closed.close()
    expect(other.get_by_test_id("unsteered")).to_have_text(f"unsteered{expected(model, {})}")


def test_findings_come_first_and_lead_to_their_runs(browser, explorer, folder):
    page = browser.page()
    page.goto(explorer.base)
    findings = page.get_by_test_id("finding")
    expect(findings.first).to_contain_text("marmalade, porridge")
    expect(findings.first).to_contain_text("It is <b>high</b>.")
    findings.first.get_by_label("label").fill("jam")
    findings.first.get_by_role("button", name="star").click()
    page.reload()
    expect(findings.first.get_by_label("label")).to_have_value("jam")
    page.get_by_role("link", name="steer with it").click()
    expect(page.locator(".ag-center-cols-container .ag-row")).to_have_count(4)


def test_two_runs_stand_beside_each_other(browser, explorer):
    page = browser.page()
    page.goto(f"{explorer.base}/beside?left=run&right=audit/directions/31")
    expect(page.get_by_test_id("count")).to_have_text(["64 of 64", "4 of 4"])
    left = page.locator(".m-run").first
    left.locator(".ag-pinned-left-cols-container [row-index='1']").click()
    # the second run is the beginning of the first
    index = int(left.locator("[row-index='1'] [col-id=id]").inner_text())
    page.get_by_role("button", name=f"most like {index} of the other run").click()
    expect(left.get_by_test_id("feature")).to_have_text(f"Feature {index}")


@pytest.mark.parametrize("size", [LAPTOP, NARROW], ids=["laptop", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_follow_the_scheme(browser, explorer, size, scheme):
    page = browser.page(size, scheme)
    for path in ("/", "/run?name=run", "/beside?left=run&right=large"):
        page.goto(explorer.base + path)
        page.locator(".ag-row, [data-testid=finding]").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], path
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", colour)[:3]))
        assert (brightness > 600) is (scheme == "light"), path


def test_labels_outlive_a_restart_and_others_need_the_token(browser, explorer, folder):
    run = folder / "large"
    page = open_run(browser.page(), explorer, "large")
    expect(page.get_by_test_id("set-aside")).to_contain_text("labels.set-aside-1.json")
    assert (run / "labels.set-aside-1.json").read_text() == "{"
    index = pick(page, 3)
    page.get_by_label("label", exact=True).fill("<b>jam</b>")
    page.get_by_label("note").fill("on all prompts")
    page.get_by_role("button", name="star").click()
    pick(page, 5)
    expect(page.locator("[row-index='3'] [col-id=name]")).to_have_text("<b>jam</b>")

    again = Explorer(run, host="0.0.0.0")
    assert "?token=" in again.address
    stranger = browser.page().request.get(f"{again.base}/run")
    assert stranger.status == 403
    assert "token" in stranger.text()
    page = browser.page()
    page.goto(again.address)
    expect(page.locator(".ag-row").first).to_be_visible()
    assert "token" not in page.url
    page.get_by_label("labels").click()
    page.get_by_role("option", name="starred").click()
    expect(page.get_by_test_id("count")).to_have_text("1 of 512")
    assert pick(page, 0) == index
    expect(page.get_by_label("label", exact=True)).to_have_value("<b>jam</b>")
    expect(page.get_by_label("note")).to_have_value("on all prompts")
    page.context.close()
    assert "Traceback" not in again.close()
