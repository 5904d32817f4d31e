import json
import math
import re

import pytest
from report_page import change, plant, read
from toys import smooth

from melbo import Linear, fit
from melbo.discovery.fit import fit_seeds
from melbo.evaluation.rank import load_ranking
from melbo.evaluation.report import report
from melbo.methods import METHODS, Iterative


@pytest.mark.parametrize("state", ["fitted", "ranked"])
def test_one_page_that_needs_nothing_else(request, state):
    folder = request.getfixturevalue(state)
    assert report(folder) == folder / "report.html"
    page, source = read(folder), (folder / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name.split(":")[-1] in (
                "src",
                "href",
                "srcset",
                "data",
                "action",
                "poster",
                "background",
                "ping",
            ):
                assert value.startswith("#"), f"<{tag} {name}={value}>"
            assert not name.startswith("on"), f"<{tag} {name}>"
    assert not re.search(
        r"https?:|//www\.|@import|\bfetch\(|XMLHttpRequest|\bimport\s*\(|WebSocket", source
    )
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)'\"]*)", source))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [
        a[name][1:] for _, a in page.elements for name in ("href", "xlink:href") if name in a
    ]
    assert set(targets) <= set(ids)
    assert page.elements[0][0] == "html"
    assert source.startswith("<!doctype html>")


def test_shows_what_was_said_by_whom(ranked):
    report(ranked)
    ranking, completions = load_ranking(ranked)
    text = read(ranked).text
    for c in completions:
        assert c.text.strip() in text
    for prompt in ("dog and sun", "he or she", "red or blue ?", "Tell me how to bake a cake"):
        assert prompt in text
    names = [
        " ".join(m)
        for m in re.findall(
            r'aria-label="Whole replies of (feature|control) (\d+)"',
            (ranked / "report.html").read_text(),
        )
    ]
    assert names == [f"{r['kind']} {r['index']}" for r in ranking["features"] + ranking["controls"]]


def test_replies_stand_with_their_feature_and_prompt(ranked):
    rows = [
        json.loads(line)
        for line in (ranked / "completions.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    for i, row in enumerate(rows):
        plant(ranked, f"«{row['kind']} {row['feature']} {row['prompt']}»", i)
    report(ranked)
    source = (ranked / "report.html").read_text(encoding="utf-8")
    bodies = source.split("<tbody")[1:]
    assert len(bodies) == 5
    for body in bodies:
        kind, index = re.search(r'aria-label="Whole replies of (\w+) (\d+)"', body).groups()
        assert re.findall("«(.*?)»", body) == [
            f"{kind} {index} {p}" for p in (2, 0, 1)
        ]  # held-out ones first
    assert re.findall("«(.*?)»", source.split("<tbody")[0]) == [
        f"unsteered None {p}" for p in (2, 0, 1)
    ]


def test_an_unranked_run_says_which_command_to_run(fitted):
    report(fitted)
    text = read(fitted).text
    assert "Not ranked yet" in text
    assert f"melbo rank {fitted}" in text
    assert f"melbo sample {fitted} --feature 0" in text
    assert read(fitted).count("table") == 0


def test_a_ranked_run_says_how_to_go_on_with_its_first_feature(ranked):
    report(ranked)
    first = json.loads((ranked / "ranking.json").read_text())["features"][0]["index"]
    text = read(ranked).text
    assert "Not ranked yet" not in text
    assert f"melbo chat {ranked} --feature {first}" in text
    assert f"melbo sample {ranked} --feature {first} --prompt 'red or blue ?'" in text


def test_warnings_are_printed_when_there_are_any(fitted):
    note = "the curve is not monotone (it falls at R = 2): look at it before trusting R"
    change(
        fitted / "run.json",
        lambda r: (
            r["calibration"].update(warning=None),
            r["fit"].update(status="converged", remedy="fine, nothing to say"),
        ),
    )
    report(fitted)
    calm = read(fitted)
    assert not any("warn" in a.get("class", "").split() for _, a in calm.elements)
    assert "fine, nothing to say" not in calm.text
    change(fitted / "run.json", lambda r: r["calibration"].update(warning=note))
    report(fitted)
    assert f"Calibration: {note}." in read(fitted).text
    change(
        fitted / "run.json",
        lambda r: r["fit"].update(status="interrupted", remedy="fit again for the rest"),
    )
    report(fitted)
    text = read(fitted).text
    assert f"Calibration: {note}." in text
    assert "Fit: fit again for the rest." in text


def test_curves_are_drawn_with_a_text_alternative(fitted):
    report(fitted)
    page = read(fitted)
    pictures = [a for tag, a in page.elements if tag == "svg"]
    assert len(pictures) == 2
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)
    sweeps = len(json.loads((fitted / "run.json").read_text())["fit"]["history"])
    assert f"at sweep {sweeps}" in pictures[1]["aria-label"]


def test_settings_are_all_there(ranked):
    report(ranked)
    text = read(ranked).text
    run = json.loads((ranked / "run.json").read_text())
    for value in (
        run["map"]["model"]["sha256"],
        run["created"],
        *run["versions"].values(),
        "LlamaForCausalLM",
        "yes − no",
    ):
        assert value in text


STABILITY = {
    "seeds": 3,
    "cosine": [0.11, 0.22, 0.33],
    "mean": 0.22,
    "baseline": 0.14,
    "signed": True,
    "explained": [1.0, 2.0, 3.0],
}


def found_again(folder):
    """Kind and index of each row, and its third number from the end, as sorted by and as shown."""
    for body in (folder / "report.html").read_text(encoding="utf-8").split("<tbody")[1:]:
        kind, index = re.search(r'aria-label="Whole replies of (\w+) (\d+)"', body).groups()
        yield kind, int(index), *re.findall(r'<td data-value="([^"]*)">([^<]*)</td>', body)[-3]


def test_a_ranked_run_says_which_features_other_seeds_found_again(ranked):
    report(ranked)
    before = read(ranked)
    assert "ound again" not in before.text
    change(ranked / "run.json", lambda r: r.update(stability=STABILITY))
    report(ranked)
    page = read(ranked)
    expected = {("feature", i, str(c), f"{c:.2f}") for i, c in enumerate(STABILITY["cosine"])} | {
        ("control", i, "", "") for i in range(2)
    }
    assert set(found_again(ranked)) == expected
    heads = [a["title"] for tag, a in page.elements if "data-first" in a]
    assert heads[-3] == (
        "best cosine among the features of another seed, mean over the other seeds; "
        "random directions 0.14"
    )
    assert page.count("th") == before.count("th") + 2  # a heading and its group
    assert all(
        int(a["colspan"]) == len(heads)
        for tag, a in page.elements
        if tag == "td" and int(a.get("colspan", 3)) > 3
    )
    assert "over 3 seeds mean best cosine 0.22, random 0.14" in page.text
    assert "signs arbitrary" not in page.text
    change(ranked / "run.json", lambda r: r["stability"].update(signed=False))
    report(ranked)
    assert "signs arbitrary" in read(ranked).text


def test_stability_needs_no_ranking(fitted):
    change(fitted / "run.json", lambda r: r.update(stability=STABILITY))
    report(fitted)
    assert "over 3 seeds mean best cosine 0.22, random 0.14" in read(fitted).text


@pytest.mark.parametrize("state", ["fitted", "ranked"])
def test_stability_of_a_larger_set_is_not_shown_for_some_of_it(request, state):
    folder = request.getfixturevalue(state)
    change(folder / "run.json", lambda r: r.update(stability={**STABILITY, "cosine": [0.1] * 4}))
    report(folder)
    assert "ound again" not in read(folder).text


def test_what_several_seeds_give_is_shown(tmp_path):
    fit_seeds(smooth(), Linear(3, 1.0), 2, progress=False).features.save(tmp_path)
    report(tmp_path)
    assert "over 2 seeds mean best cosine 1.00, random 0." in read(tmp_path).text


def test_the_spread_of_the_directions_is_told(tmp_path):
    features = fit(smooth(), Linear(3, 1.0), progress=False).features
    features.save(tmp_path / "three")
    report(tmp_path / "three")
    random = (2 / (math.pi * 12)) ** 0.5
    said = f"condition number 1; mean |cos| 0.00, random {random:.2f}; 3 effective of 3"
    assert said in read(tmp_path / "three").text
    features[[0, 1, 1]].save(tmp_path / "twice")
    report(tmp_path / "twice")
    assert "condition number ∞; mean |cos| 0.33" in read(tmp_path / "twice").text
    assert "1.8 effective of 3" in read(tmp_path / "twice").text


def test_writing_it_again_gives_the_same_page(ranked):
    report(ranked)
    before = (ranked / "report.html").read_bytes()
    report(ranked)
    assert (ranked / "report.html").read_bytes() == before
    assert not list(ranked.glob("*.part"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_report(tmp_path, method):
    fit(smooth(), METHODS[method](3, 1.0), progress=False).features.save(tmp_path)
    report(tmp_path)
    page = read(tmp_path)
    assert METHODS[method].__name__ in page.text
    assert "melbo rank" not in page.text  # no language model, nothing to generate with
    assert page.count("svg") == issubclass(METHODS[method], Iterative)


@pytest.mark.parametrize("by", ["alpha", "effect", "contrast", "kl", "novel"])
def test_every_order_has_a_report(ranked, by):
    change(ranked / "ranking.json", lambda r: r.update(by=by))
    report(ranked)
    assert read(ranked).count("tbody") == 5


def test_no_active_random_direction(ranked):
    change(
        ranked / "ranking.json",
        lambda r: r["summary"].update(best_control=None, above_best_control=None),
    )
    report(ranked)
    assert "no random direction is active" in read(ranked).text
