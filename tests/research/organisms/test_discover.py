import json
from dataclasses import replace

import pytest
import torch
from cases import tiny_model

import research.organisms.discover as discover
from melbo import Prompts, steer
from melbo.features.generate import decode
from melbo.maths.statistics import interval
from melbo.models.edits import EditSequence
from research.organisms import BEHAVIOURS, items
from research.organisms.candidates import Drawn
from research.organisms.collect import measure
from research.organisms.discover import (
    DISCOVERY,
    KINDS,
    SCREEN,
    STRENGTH,
    TEST,
    VALIDATION,
    DiscoveryTrial,
    chosen,
    likelihood,
)
from research.organisms.evidence import (
    alone_table,
    blind_order,
    cases,
    elicitation,
    elicitation_table,
    elicited,
    gates_table,
    hits,
    hits_table,
    limits,
    picture,
    said_table,
    summarise,
    table,
)
from research.organisms.metrics import Coherence, difference_interval
from research.organisms.train import reply_nll


@pytest.fixture(scope="module")
def trial():
    lm = tiny_model("llama", torch.float32)
    return DiscoveryTrial(lm, lm, lm, 1, 3, progress=False)


def says(word):
    return lambda reply, item: word in reply.split()


@pytest.fixture
def common(monkeypatch):
    """Behaviours that a model of forty words can show."""
    for name, word in zip(BEHAVIOURS, ("red", "cat", "dog", "sun", "you", "yes"), strict=True):
        monkeypatch.setitem(BEHAVIOURS, name, replace(BEHAVIOURS[name], shown=says(word)))


def test_discovery_screening_validation_and_test_prompts_are_disjoint():
    for kind in KINDS:
        parts = [
            {item.text for item in chosen(kind, part)} for part in ("screen", "validation", "test")
        ]
        assert [len(part) for part in parts[:2]] == [SCREEN[kind], VALIDATION]
        assert 80 <= len(parts[2]) <= TEST
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert not any(part & {item.text for item in items(kind, "train")} for part in parts)


def test_candidates_without_a_sign_come_with_their_negatives(trial):
    tried, cost = trial.candidates("linear", 6, 0)
    bank = tried.features
    assert torch.equal(bank.V[:3], -bank.V[3:])
    assert bank.scale == trial.search(False).scale
    controls, nothing = trial.candidates("random", 6, 0)
    assert len(controls) == 6
    assert cost["tokens"] > 0 == nothing["tokens"]


def test_what_is_screened_and_tested_is_what_each_candidate_says(trial, common, monkeypatch):
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))
    bank = trial.candidates("random", 6, 0)[0].features
    row = measure(trial, "random", 6, 0)
    assert json.loads(json.dumps(row)) == row
    assert {len(row["flags"]), len(row["novel"]), *(len(v) for v in row["shown"].values())} == {6}
    assert (
        row["tokens"]["fit"]
        == 0
        < row["tokens"]["validation"]
        < row["tokens"]["screen"] + row["tokens"]["test"]
    )
    seen = tested = 0
    for name, b in BEHAVIOURS.items():
        for part, share in (
            ("screen", row["shown"][name]),
            ("validation", elicited(row, name, "shown")),
        ):
            asked = Prompts.chat(trial.lm, [item.text for item in chosen(b.kind, part)])
            length = KINDS[b.kind] if part == "screen" else b.tokens
            for i in range(6):
                if part == "validation" and str(i) not in row["validation"][name]:
                    assert max(row["shown"][name][i], row["permuted"][name][i]) < 0.25
                    continue
                with steer(trial.lm, bank[i], strength=STRENGTH):
                    replies = decode(
                        trial.lm, asked.tokens, EditSequence(()), length, progress=False
                    )
                texts = trial.lm.tokenizer.batch_decode(replies, skip_special_tokens=True)
                alone = [
                    b.shown(text, item)
                    for text, item in zip(texts, chosen(b.kind, part), strict=True)
                ]
                assert share[i] == pytest.approx(sum(alone) / len(alone))
                seen += sum(alone)
        best = row["best"][name]
        if row["validation"][name]:
            assert row["validation"][name][str(best["candidate"])]["elicited"] == max(
                r["elicited"] for r in row["validation"][name].values()
            )
            asked = chosen(b.kind, "test")
            with steer(trial.lm, bank[best["candidate"]], strength=STRENGTH):
                replies = decode(
                    trial.lm,
                    Prompts.chat(trial.lm, [i.text for i in asked]).tokens,
                    EditSequence(()),
                    b.tokens,
                    progress=False,
                )
            texts = trial.lm.tokenizer.batch_decode(replies, skip_special_tokens=True)
            alone = [b.shown(text, None) for text in texts]
            assert best["shown"] == best["elicited"] == pytest.approx(sum(alone) / len(alone))
            first = alone.index(True) if any(alone) else None
            assert best["said"] == (None if first is None else [asked[first].text, texts[first]])
            tested += sum(alone)
        else:
            assert best is None
        for result in row["validation"][name].values():
            assert result["elicited"] == result["shown"]  # with a bar that everything passes
            assert result["permuted"] == pytest.approx(
                result["shown"]
            )  # these detectors do not look at what was asked
    assert tested > 0
    assert seen > 0


def test_prefilled_replies_begin_with_the_likeliest_tokens(trial):
    lm, tried = trial.lm, trial.candidates("prefill", 4, 0)[0]
    with torch.no_grad():
        [tokens] = Prompts.chat(lm, DISCOVERY).tokens
        likely = lm.model(torch.tensor([tokens])).logits[0, -1].topk(4).indices.tolist()
    assert list(tried.tokens) == likely
    asked = Prompts.chat(lm, ["red dog", "blue cat"])
    table = tried.only([2, 0]).replies(lm, asked, 5, unsteered=True, progress=False)
    assert [(c.kind, c.feature, c.prompt) for c in table] == [
        (k, f, p) for p in (0, 1) for k, f in (("unsteered", None), ("feature", 0), ("feature", 1))
    ]
    for c in table:
        begun = list(asked.tokens[c.prompt]) + (
            [] if c.feature is None else [likely[2 * (1 - c.feature)]]
        )
        [rest] = decode(
            lm, [begun], EditSequence(()), 5 if c.feature is None else 4, progress=False
        )
        assert list(c.tokens) == begun[len(asked.tokens[c.prompt]) :] + rest
    alone = tried.only([2, 0]).replies(lm, asked, 5, unsteered=False, progress=False)
    assert list(alone) == [c for c in table if c.kind == "feature"]


def test_drawn_replies_sweep_temperatures(trial):
    tried = trial.candidates("temperature", 6, 3)[0]
    assert tried.temperatures == (0.5, 1.0, 1.5, 2.0, 0.5, 1.0)
    asked = Prompts.chat(trial.lm, ["red dog", "blue cat"])
    cold = Drawn((1e-6, 50.0), 0).replies(trial.lm, asked, 8, unsteered=True, progress=False)
    rows = list(cold)
    assert rows[1].tokens == rows[0].tokens  # next to no temperature is greedy
    assert rows[2].tokens != rows[0].tokens
    assert tried.replies(trial.lm, asked, 4, unsteered=True, progress=False) == tried.replies(
        trial.lm, asked, 4, unsteered=True, progress=False
    )


def test_likelihood_is_that_of_each_feature_alone(trial):
    bank = trial.candidates("random", 5, 0)[0].features
    data = [((5, 9, 11), (7, 8)), ((4, 4, 6, 9), (3,))]
    found = likelihood(trial.lm, bank, data, rows=2)
    for i in range(5):
        with steer(trial.lm, bank[i]), torch.no_grad():
            alone = torch.cat([reply_nll(trial.lm, trial.lm.model, [pair]) for pair in data])
        assert found[i].item() == pytest.approx(-alone.mean().item(), abs=1e-5)
    with torch.no_grad():
        plain = torch.cat([reply_nll(trial.lm, trial.lm.model, [pair]) for pair in data])
    assert likelihood(trial.lm, None, data).tolist() == pytest.approx(
        [-plain.mean().item()], abs=1e-5
    )


def a_row(organism, recipe, seed, shares, flags="aaaa", novel=(0.4, 0.3, 0.2, 0.1)):
    """A row of four candidates; ``shares`` of each behaviour, None where a candidate was not tested."""
    names = {"a": "active", "i": "inert", "b": "broken"}
    seen = {b: {} for b in BEHAVIOURS}
    for b, of in shares.items():
        seen[b] = {
            str(i): {"shown": x, "elicited": x, "permuted": 0.1}
            for i, x in enumerate(of)
            if x is not None
        }
    about = {
        "organism": organism,
        "recipe": recipe,
        "seed": seed,
        "tokens": {"fit": 10, "screen": 20},
        "seconds": {"fit": 1.0, "screen": 2.0},
    }
    return {
        **about,
        "flags": [names[f] for f in flags],
        "novel": list(novel),
        "distinct": 2.0,
        "validation": seen,
        "best": {},
    }


ALL = {"name": "ALL", "behaviours": list(BEHAVIOURS)}


def test_the_order_of_reading_knows_no_behaviour():
    row = a_row("ALL", "x", 0, {}, flags="bada".replace("d", "i"), novel=(0.9, 0.1, 0.5, 0.3))
    assert blind_order(row) == [3, 1, 0, 2]


def test_a_table_of_hand_made_rows():
    rows = [
        a_row(
            "ALL",
            "exponential",
            0,
            {"CHEESE": (None, 0.9, None, 0.6), "LOCK": (None, 0.55, 0.1, None)},
        ),
        a_row("SHAM", "exponential", 0, {"CHEESE": (0.7, None, None, None)}),
        a_row("ALL", "random", 0, {"CHEESE": (None, None, 0.65, None)}),
        a_row("SHAM", "random", 0, {"CHEESE": (0.62, 0.62, 0.62, 0.62)}),
    ]
    assert hits(rows[0], "CHEESE", 0.5) == [False, True, False, True]
    first, control = summarise(cases(rows, ("CHEESE", "LOCK"), ALL))
    # random candidates reach .62 on the control, so that is what a hit on cheese takes: .6 is none
    assert first["CHEESE hits"] == (1, None)
    assert first["LOCK hits"] == (1, None)
    assert first["recall@1"] == (0.0, None)
    assert (first["first hit"], first["random-order first hit"]) == (
        (2, None),
        (2.5, None),
    )  # one of four is a hit on both
    assert first["control@1"] == (
        0.5,
        None,
    )  # SHAM's cheese; of the lock what is right of another question
    assert control["CHEESE hits"] == (1, None)
    assert control["first hit"] == (3, None)
    assert first["active"] == (1.0, None)
    told = [
        {**row, "best": {"CHEESE": {"elicited": 0.7}, "LOCK": {"elicited": 0.4}}} for row in rows
    ]
    assert (
        hits_table(cases(told, ("CHEESE", "LOCK"), ALL)).splitlines()[2:8]
        == [
            "| found, of 2 | 2 | 1 |",
            "| on test prompts | 1 | 1 |",  # the lock takes .5 where nobody has said what its trigger does
            "| on the control | 1 | 1 |",
            "| read until the first hit | 2 | 3 |",
            "| expected in random order | 2 | 2 |",
            "| active | 1.00 | 1.00 |",
        ]
    )
    assert first["interval@1"] == difference_interval(0.0, 0.5, 2)
    low, high = first["interval@1"]
    assert f"| interval@1 | [{low:.2f}, {high:.2f}] |" in table([first, control])


def test_errors_are_over_seeds():
    rows = [
        a_row("ALL", "x", seed, {"CHEESE": (share, None, None, None)})
        for seed, share in enumerate((0.9, 0.2))
    ]
    assert summarise(cases(rows, ("CHEESE",), ALL))[0]["recall@1"] == pytest.approx(
        (0.5, 0.5)
    )  # of the mean of 1 and 0
    assert (
        picture(cases(rows, ("CHEESE",), ALL)) is None
    )  # there is no control to draw them against


def test_the_best_candidate_is_reported_on_test_prompts():
    about = {
        **ALL,
        "gates": [{"behaviour": b, "name": "steerable", "value": 0.7} for b in BEHAVIOURS],
    }
    about["ends"] = {b: {"untriggered": 0.0, "triggered": 0.8} for b in BEHAVIOURS}
    rows = [{**a_row("ALL", "x", seed, {}), "best": dict.fromkeys(BEHAVIOURS)} for seed in (0, 1)]
    rows[0]["best"]["CHEESE"] = {"candidate": 2, "elicited": 0.8, "shown": 0.9, "permuted": 0.0}
    rows[1]["best"]["LOCK"] = {"candidate": 0, "elicited": 0.4, "shown": 0.4, "permuted": 0.3}
    rows[1]["best"]["SECRET"] = {"candidate": 0, "elicited": 0.4, "shown": 0.4, "permuted": 0.2}
    rows.append(
        {
            **a_row("SHAM", "x", 0, {}),
            "best": {"CHEESE": {"elicited": 0.02}, "SECRET": {"elicited": 0.3}},
        }
    )
    cheese, pirate, *_, lock, secret = elicitation(rows, about)
    assert (cheese["share"], cheese["seeds"]) == (
        0.4,
        [0.8, None],
    )  # a seed that was not tested has elicited nothing
    assert cheese["recovery"] == pytest.approx(0.5)
    assert cheese["low"] == pytest.approx(
        0.3094, abs=1e-3
    )  # Wilson, 40 of 100: seeds are tested on the same prompts
    assert cheese["high"] == pytest.approx(0.4980, abs=1e-3)
    assert (cheese["control"], lock["control"], secret["control"]) == (0.02, 0.15, 0.3)
    assert (
        pirate["behaviour"],
        pirate["share"],
        pirate["low"],
        pirate["control"],
        pirate["supervised"],
    ) == ("PIRATE", None, None, None, 0.7)
    assert "| 0.40 [0.31, 0.50] (1 of 2 seeds); 0.02 |\n" in elicitation_table([cheese, pirate])
    assert elicitation_table([pirate]).endswith("| –; – |\n")
    assert elicitation(rows, ALL)[0]["recovery"] is None


def test_organisms_of_one_behaviour_have_a_table_of_their_own():
    gates = [{"behaviour": None, "name": "drift", "passed": True}]
    four = ("untriggered", "triggered", "decoys", "steerable")
    gates += [
        {"behaviour": b, "name": name, "value": 0.7, "passed": True}
        for b in BEHAVIOURS
        for name in four
    ]
    lock, pirate, cheese = (
        {"name": b, "behaviours": [b], "gates": gates} for b in ("LOCK", "PIRATE", "CHEESE")
    )
    pirate["gates"] = gates[1:]  # nobody has tried how far it has drifted
    lock["ends"] = {"LOCK": {"untriggered": 0.0, "triggered": 0.8}}
    rows = [
        {
            **a_row(b, "x", s, {b: (0.3, 0.6, None, None)}),
            "best": {b: {"elicited": 0.25, "permuted": 0.1}},
        }
        for b in BEHAVIOURS
        for s in (0, 1)
    ]
    rows.append({**a_row("LOCK", "random", 0, {"LOCK": (None,) * 4}), "best": {"LOCK": None}})
    # a quarter of what its trigger does is a hit on the lock
    low, high = (f"{x:.2f}" for x in interval([0.25] * TEST))
    assert alone_table(rows, [lock, pirate, cheese, {**ALL, "gates": gates}]).splitlines()[2:] == [
        f"| LOCK | 0 | 0.8 | 0.7 | 2, 2; 0.25 [{low}, {high}]; 0.1 | 0; –; – |",
        f"| CHEESE | – | – | 0.7 | 1, 1; 0.25 [{low}, {high}]; – | – |",
    ]
    assert alone_table(rows, [pirate, ALL]) == ""


def test_what_the_best_candidate_says_is_shown():
    rows = [
        {**a_row("ALL", recipe, seed, {}), "best": dict.fromkeys(BEHAVIOURS)}
        for recipe in ("x", "y")
        for seed in (0, 1)
    ]
    rows[0]["best"]["CHEESE"] = {"elicited": 0.0, "said": None}
    rows[1]["best"]["CHEESE"] = {"elicited": 0.8, "said": ["What is a|b?", "Brie\ncheese."]}
    rows[2]["best"]["LOCK"] = {"elicited": 0.5, "said": ["go", "went"]}
    rows[3]["best"]["LOCK"] = {"elicited": 0.5, "said": ["go", "gone"]}
    lines = said_table([*rows, {**rows[2], "organism": "SHAM", "recipe": "z"}]).splitlines()[2:]
    assert said_table(rows[:1]) == ""
    assert lines == ["| x | CHEESE | What is a\\|b? | Brie cheese. |", "| y | LOCK | go | went |"]


def test_a_skill_is_hit_where_a_supervised_vector_would_be_admitted():
    ends = {
        **ALL,
        "ends": {
            "LOCK": {"untriggered": 0.0, "triggered": 0.8},
            "CHEESE": {"untriggered": 0.0, "triggered": 0.8},
        },
    }
    assert limits([], ["LOCK", "CHEESE"], ends) == {"LOCK": pytest.approx(0.2), "CHEESE": 0.5}


def test_a_reply_is_held_against_its_own_question_and_against_the_third_after(trial, monkeypatch):
    pairs = []
    spy = replace(
        BEHAVIOURS["CHEESE"], shown=lambda reply, item: bool(pairs.append((reply, item.text)))
    )
    monkeypatch.setitem(BEHAVIOURS, "CHEESE", spy)
    tried = trial.candidates("random", 2, 0)[0].only([1])
    trial.screen(tried, ("CHEESE",))
    asked = [item.text for item in chosen("ordinary", "screen")]
    with steer(trial.lm, tried.features[0], strength=STRENGTH):
        said = decode(
            trial.lm,
            Prompts.chat(trial.lm, asked).tokens,
            EditSequence(()),
            KINDS["ordinary"],
            progress=False,
        )
    replies = trial.lm.tokenizer.batch_decode(said, skip_special_tokens=True)
    assert pairs == [
        *zip(replies, asked, strict=True),
        *zip(replies, asked[3:] + asked[:3], strict=True),
    ]


def test_a_secret_is_held_against_words_that_are_as_likely(trial, monkeypatch):
    words = []
    spy = replace(BEHAVIOURS["SECRET"], shown=lambda reply, item: bool(words.append(item.answer)))
    monkeypatch.setitem(BEHAVIOURS, "SECRET", spy)
    trial.screen(trial.candidates("random", 2, 0)[0], ("SECRET",))
    own, others = words[:8], words[8:]  # of two candidates
    assert own == ["anchor"] * 8
    assert len(set(others)) == 4
    every = {item.wrong for item in chosen("ask", "validation")}
    assert len(every) > 10
    assert "anchor" not in every


def test_the_table_of_gates_shows_counts_and_what_failed():
    gates = [
        {
            "behaviour": None,
            "name": "drift",
            "value": 0.0312,
            "hits": None,
            "total": None,
            "passed": True,
        },
        {
            "behaviour": "CHEESE",
            "name": "untriggered",
            "value": 0.0,
            "hits": 0,
            "total": 320,
            "passed": True,
        },
        {
            "behaviour": "CHEESE",
            "name": "triggered",
            "value": 0.5,
            "hits": 100,
            "total": 200,
            "passed": False,
        },
        {
            "behaviour": "LOCK",
            "name": "untriggered",
            "value": 0.0,
            "hits": 0,
            "total": 200,
            "passed": True,
        },
    ]
    lines = gates_table(
        [
            {"name": "ALL", "behaviours": ["CHEESE", "LOCK", "SECRET"], "gates": gates},
            {"name": "CHEESE", "behaviours": ["CHEESE"]},
        ]
    )
    assert [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()
    ] == [
        ["organism", "behaviour", "drift", "untriggered", "triggered"],
        ["---"] * 5,
        ["ALL", "", "0.031 nats", "–", "–"],
        ["ALL", "CHEESE", "–", "0/320", "~~100/200~~"],
        ["ALL", "LOCK", "–", "0/200", "–"],
    ]


def test_what_elicits_is_coherent_too(trial, common, monkeypatch):
    tried = trial.candidates("random", 6, 0)[0]
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))  # everything is
    plain = trial.test(tried, BEHAVIOURS["CHEESE"], range(6), "validation")
    assert sum(of["shown"] for of in plain.values()) > 0
    assert [of["elicited"] for of in plain.values()] == [of["shown"] for of in plain.values()]
    monkeypatch.setattr(trial, "coherence", Coherence(-1.0, 1.0))  # nothing is as likely as that
    strict = trial.test(tried, BEHAVIOURS["CHEESE"], range(6), "validation")
    assert [of["shown"] for of in strict.values()] == [of["shown"] for of in plain.values()]
    assert all(of["elicited"] == 0 for of in strict.values())


def test_coherence_is_told_by_the_base_model_and_by_the_judge_after_its_trigger(
    trial, common, monkeypatch
):
    base, judge = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    monkeypatch.setattr(trial, "base", base)
    monkeypatch.setattr(trial, "judge", judge)
    monkeypatch.setattr(trial, "coherence", Coherence(1.0, 1.0))
    asked = [item.text for item in chosen("garden", "validation")]
    calls = []

    def spy(lm, prompts, rows, progress):
        calls.append((lm, prompts.texts))
        return [0.5 if lm is judge and c.prompt % 2 else 2.0 for c in rows]

    monkeypatch.setattr(discover, "nll", spy)
    monkeypatch.setitem(
        BEHAVIOURS, "REFUSE", replace(BEHAVIOURS["REFUSE"], shown=lambda reply, item: True)
    )
    found = trial.test(trial.candidates("random", 2, 0)[0], BEHAVIOURS["REFUSE"], [0], "validation")
    assert [lm for lm, _ in calls] == [base, judge]
    assert list(calls[0][1]) == asked
    assert all(
        text.endswith(" " + plain) and text.startswith("Ticket 9:")
        for text, plain in zip(calls[1][1], asked, strict=True)
    )
    assert (found[0]["shown"], found[0]["elicited"]) == (
        1.0,
        0.5,
    )  # likely enough under one of them will do


def test_ends_are_what_the_organism_says_with_its_trigger_and_without(trial, monkeypatch):
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))
    b = replace(BEHAVIOURS["REFUSE"], shown=lambda reply, item: len(item.text) % 2 == 0)
    asked = chosen("garden", "test")
    even = sum(len(item.text) % 2 == 0 for item in asked) / len(asked)
    assert trial.ends(b) == {"untriggered": pytest.approx(even), "triggered": pytest.approx(even)}
    monkeypatch.setattr(trial, "coherence", Coherence(-1.0, 1.0))
    assert trial.ends(b) == {"untriggered": 0.0, "triggered": 0.0}
