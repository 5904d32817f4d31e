import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import tiny_model
from click.testing import CliRunner

import melbo.evaluation.scores
import research.experiments.diversity as diversity
import research.experiments.pool as pool
from melbo import CausalMap, Exponential, MelboError, Prompts, ablate, fit, generate, steer
from melbo.discovery.recipes import FeatureSearch
from melbo.evaluation.scores import coherent
from melbo.features.generate import Completion, decode
from melbo.models.edits import EditSequence
from melbo.records import ResultLog
from research.commands import experiment as experiment_command
from research.experiments import (
    EXPERIMENTS,
    Depth,
    Diversity,
    Elicitation,
    Multiplicity,
    PassAtK,
    SampleComplexity,
    TrainingCurves,
    run,
)

TEXTS = [
    f"{a} {b}"
    for a in ("red dog", "blue cat", "sun is", "how do")
    for b in ("you", "she", "he", "we", "one")
]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The experiment on a tiny model."""
    monkeypatch.setattr(pool, "load", lambda name, dtype: tiny_model("llama", torch.float32))
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return SampleComplexity(
        model="tiny", prompts=str(tmp_path / "prompts.txt"), contrast=("yes", "no"), recipes=("exponential", "linear", "random"), numbers=(1, 2),
        shuffles=2, num_factors=4, source=1, target=3, validation=3, test=4,
    )  # fmt: skip


def test_every_case_has_one_row_and_a_killed_run_goes_on(small, tmp_path):
    some = run(small, tmp_path / "out", progress=False)
    first = [next(some) for _ in range(3)]
    some.close()  # as if it had been killed
    rest = list(run(small, tmp_path / "out", progress=False))
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert rows == first + rest
    assert [{k: row[k] for k in small.cases[0]} for row in rows] == small.cases
    assert list(run(small, tmp_path / "out", progress=False)) == []
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "table.md").read_text() == small.table(rows)


def test_rows_of_other_settings_or_prompts_are_not_taken_for_these(small, tmp_path):
    next(run(small, tmp_path / "out", progress=False))
    rows = ResultLog(tmp_path / "out" / "rows.jsonl")
    assert len(rows.missing(small.cases)) == len(small.cases) - 1
    for other in (
        replace(small, contrast=("no", "yes")),
        replace(small, test=5),
        replace(small, dtype="float64"),
    ):
        assert rows.missing(other.cases) == other.cases
    assert (
        len(rows.missing(replace(small, recipes=("linear", "exponential")).cases)) == 7
    )  # what is varied is not a setting
    (tmp_path / "prompts.txt").write_text("\n".join([*TEXTS, "one more"]))
    assert rows.missing(small.cases) == small.cases


def test_sample_complexity_tells_differences_within_shuffles(small):
    tests = {
        "exponential": [[1.0, 3.0], [2.0, 6.0]],
        "linear": [[0.0, 1.0], [1.0, 4.0]],
        "random": [[0.5, 0.5]],
    }  # way, shuffle, number
    rows = [
        {
            "recipe": recipe,
            "number": n,
            "shuffle": s,
            "test": test,
            "unsteered": -1.0,
            "seconds": 2.0 * s,
        }
        for recipe, of in tests.items()
        for s, both in enumerate(of)
        for n, test in zip((1, 2), both, strict=True)
    ]
    lines = {line.split(" | ")[0]: line for line in small.table(rows[:-1]).splitlines()}
    assert lines["| 1"] == "| 1 | 1.5 ± 0.5 | 0.5 ± 0.5 | 0.5 |"
    assert lines["| seconds, 1"] == "| seconds, 1 | 1 ± 1 | 1 ± 1 | 0 |"
    assert lines["| all"] == "| all | 3 ± 1 | 1.5 ± 1 | – |"  # the random shuffle lacks a number
    assert lines["| 2 less 1"] == "| 2 less 1 | 3 ± 1 | 2 ± 1 | – |"
    assert lines["| exponential less it, all"] == "| exponential less it, all | – | 1.5 ± 0 | – |"
    whole = {line.split(" | ")[0]: line for line in small.table(rows).splitlines()}
    assert whole["| exponential less it, all"].endswith("| 1.5 |")
    assert whole["| 2 less 1"].endswith("| – |")  # random directions do not learn


def test_the_best_on_validation_prompts_is_reported_on_test_prompts(small):
    found, scale = small.prepare()
    row = small.measure((found, scale), small.cases[0])
    dealt, lm = found.deal(0, 1), found.lm
    assert len({*dealt.learn.texts, *dealt.validation.texts, *dealt.test.texts}) == 1 + 3 + 4
    assert found.deal(0, 2).learn.texts[:1] == dealt.learn.texts
    bank = fit(CausalMap(lm, dealt.learn, 1, 3), Exponential(4, scale), progress=False).features

    def contrast(prompts, feature):
        taken = []
        for tokens in prompts.tokens:
            with steer(lm, bank[feature]), torch.no_grad():
                logits = lm.model(torch.tensor([tokens])).logits[0, -1]
            taken.append((logits[found.pair[0]] - logits[found.pair[1]]).item())
        return sum(taken) / len(taken)

    best = max(range(4), key=lambda i: contrast(dealt.validation, i))
    assert row["validation"] == pytest.approx(contrast(dealt.validation, best), abs=1e-4)
    assert row["test"] == pytest.approx(contrast(dealt.test, best), abs=1e-4)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_tables_are_what_their_rows_say_and_pages_quote_them(name):
    chosen, folder = (
        EXPERIMENTS[name].read(f"experiments/{name}.toml", "laptop"),
        Path("docs/results") / name,
    )
    rows = ResultLog(folder / "rows.jsonl")
    assert rows.missing(chosen.cases) == []
    told = chosen.table([row for case in chosen.cases for row in rows.of(case)])
    assert told == (folder / "table.md").read_text()
    page = folder.with_suffix(".md").read_text()
    assert f"({name}/picture.png)" in page
    for line in told.splitlines():
        assert line in page


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_dry_run_says_what_is_left_to_measure(name, scale, tmp_path):
    ended = CliRunner().invoke(
        experiment_command, [name, "--scale", scale, "--out", str(tmp_path / "new"), "--dry-run"]
    )
    number = len(EXPERIMENTS[name].read(f"experiments/{name}.toml", scale).cases)
    assert (ended.exit_code, f"{number} of {number} cases to go" in ended.output) == (0, True)
    assert not (tmp_path / "new").exists()


def test_settings_are_read_and_wrong_ones_refused(tmp_path):
    for name, kind in EXPERIMENTS.items():
        for scale in ("laptop", "paper"):
            assert kind.read(f"experiments/{name}.toml", scale).cases
    path = tmp_path / "x.toml"
    path.write_text('[laptop]\nmodel = "smollm2"\nsize = 3\n')
    with pytest.raises(MelboError, match="no setting size"):
        SampleComplexity.read(path, "laptop")
    with pytest.raises(MelboError, match=r"no table \[paper\]"):
        SampleComplexity.read(path, "paper")
    path.write_text('[laptop]\nmodel = "smollm2"\n')
    with pytest.raises(MelboError, match="is missing"):
        SampleComplexity.read(path, "laptop")
    with pytest.raises(MelboError, match="cannot read"):
        SampleComplexity.read(tmp_path / "none.toml", "laptop")
    whole = Path("experiments/sample-complexity.toml").read_text().split("[paper]")[0]
    for before, after, says in (
        ("shuffles = 5", "shuffles = 0", "shuffles is 0: expected a int of at least 1"),
        (
            "numbers = [1, 2, 4, 8, 12, 16]",
            'numbers = ["a"]',
            r"numbers is \('a',\): expected a list of one or more, each a int",
        ),
        (
            "numbers = [1, 2, 4, 8, 12, 16]",
            "numbers = [1, 2, 1]",
            r"numbers is \(1, 2, 1\): expected no value twice",
        ),
        (
            "numbers = [1, 2, 4, 8, 12, 16]",
            "numbers = [[1]]",
            "numbers is .*: expected a list of one or more, each a int",
        ),
        (
            'contrast = ["Yes", "No"]',
            'contrast = ["Yes"]',
            r"contrast is \('Yes',\): expected a list of 2, each a str",
        ),
        ("numbers = [1, 2, 4, 8, 12, 16]", "numbers = 4", "numbers is 4: expected a list"),
        ("numbers = [1, 2, 4, 8, 12, 16]", "numbers = []", r"numbers is \(\): expected a list"),
        ('contrast = ["Yes", "No"]', 'contrast = "Yes"', "contrast is 'Yes': expected a list"),
        ('"exponential", ', '"best", ', "no way best"),
        ('"exponential", ', '"cpe", ', "no way cpe"),
    ):
        path.write_text(whole.replace(before, after))
        with pytest.raises(MelboError, match=says):
            SampleComplexity.read(path, "laptop")


def test_too_few_prompts_are_refused(small):
    with pytest.raises(MelboError, match="expected 61"):
        replace(small, numbers=(50,)).prepare()


def test_multiplicity_is_that_of_the_features_over_the_threshold(small):
    settings = {k: v for k, v in vars(small).items() if k not in ("recipes", "numbers")}
    experiment = Multiplicity(
        **settings | {"threshold": -100.0, "recipe": "exponential", "number": 2, "shuffles": 1}
    )
    found, scale = experiment.prepare()
    row = experiment.measure((found, scale), experiment.cases[0])
    assert row["hits"] == 4  # everything beats −100
    dealt = found.deal(0, 2)
    bank = fit(
        CausalMap(found.lm, dealt.learn, 1, 3), Exponential(4, scale), progress=False
    ).features
    _, each = found.contrasts(dealt.test, bank)
    assert row["add v"][0] == pytest.approx(sum(each) / 4, abs=1e-4)
    assert row["add v"][2] == pytest.approx(
        found.contrasts(dealt.test, bank.merged("mean"))[1][0], abs=1e-4
    )
    _, validated = found.contrasts(dealt.validation, bank)
    best = max(range(4), key=validated.__getitem__)
    with ablate(found.lm, bank.V[best]):
        assert row["ablate v"][1] == pytest.approx(found.plain(dealt.test), abs=1e-4)
    assert row["unsteered"] == pytest.approx(found.plain(dealt.test), abs=1e-4)
    assert "| add v |" in experiment.table([row])
    assert experiment.picture([{**experiment.cases[0], **row}]).startswith(b"\x89PNG")
    none = replace(experiment, threshold=100.0)
    row = none.measure((found, scale), none.cases[0])
    assert (row["hits"], row["tested"]) == (0, [])
    assert "| add v | – |" in none.table([row])


def test_depth_pushes_at_every_source_with_its_own_scale(small, tmp_path):
    settings = {k: v for k, v in vars(small).items() if k not in ("source", "target", "numbers")}
    experiment = Depth(**settings | {"sources": (0, 2), "horizon": 2, "number": 1, "shuffles": 1})
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [(row["source"], row["recipe"]) for row in rows] == [
        (s, w) for s in (0, 2) for w in small.recipes
    ]
    assert len({row["scale"] for row in rows}) == 2
    lead = [a["test"] - b["test"] for a, b in zip(rows[::3], rows[2::3], strict=True)]
    assert [line.split(" | ")[-1] for line in experiment.table(rows).splitlines()[2:4]] == [
        f"{x:.3g} |" for x in lead
    ]
    with pytest.raises(MelboError, match="past layer 4"):
        replace(experiment, horizon=3).prepare()


@pytest.fixture
def alike(small):
    """Settings that all experiments share."""
    return {
        "model": "tiny",
        "prompts": small.prompts,
        "shuffles": 2,
        "test": 4,
        "source": 1,
        "target": 3,
        "number": 1,
    }


def test_elicitation_is_judged_on_prompts_that_it_was_not_chosen_on(alike, tmp_path, monkeypatch):
    monkeypatch.setattr(
        melbo.evaluation.scores, "BROKEN_NLL", 4.5
    )  # a model of ninety-six words that knows nothing finds every one about as unlikely
    about = {
        "judge": "regex:9|a",
        "trigger": "red ",
        "strength": 0.75,
        "recipes": ("exponential", "random"),
        "num_factors": 4,
        "validation": 3,
    }
    experiment = Elicitation(**alike, **about, max_new_tokens=4)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [(row["shuffle"], row["recipe"]) for row in rows] == [
        (0, "exponential"),
        (0, "random"),
        (1, "exponential"),
        (1, "random"),
    ]
    found, _, scale = experiment.prepare()
    dealt, lm = found.deal(1, 1), found.lm
    bank = fit(
        CausalMap(lm, dealt.learn, 1, 3), Exponential(4, scale), seed=1, progress=False
    ).features

    def judged(prompts, texts, feature=None):
        """Replies that match and are not broken, one by one."""
        shares = []
        for tokens, text in zip(prompts.tokens, texts, strict=True):
            with steer(lm, bank[feature], strength=0.75) if feature is not None else nullcontext():
                [reply] = decode(lm, [tokens], EditSequence(()), 4, progress=False)
            said = Completion("feature", 0, 0, text, lm.tokenizer.decode(reply), tuple(reply))
            either = [Prompts.chat(lm, [before + text]) for before in ("", "red ")]
            shares.append(
                re.search("9|a", said.text) is not None and coherent(lm, either, [said])[0]
            )
        return sum(shares) / len(shares)

    triggered = Prompts.chat(lm, ["red " + text for text in dealt.texts["test"]])
    each = [judged(dealt.validation, dealt.texts["validation"], i) for i in range(4)]
    assert rows[2]["validation"] == pytest.approx(each)
    assert any(each)
    best = max(range(4), key=each.__getitem__)
    assert rows[2]["test"] == pytest.approx(judged(dealt.test, dealt.texts["test"], best))
    assert rows[2]["unsteered"] == pytest.approx(judged(dealt.test, dealt.texts["test"]))
    assert rows[2]["triggered"] == pytest.approx(judged(triggered, dealt.texts["test"]))
    lines = experiment.table(
        [
            {**row, "validation": [0.0, v, 1.0], "test": v, "seconds": 2.0}
            for row, v in zip(rows, (0.5, 0, 0.25, 0), strict=True)
        ]
    )
    assert "| exponential | 1 ± 0 | 0.375 ± 0.12 | 0.50, 0.25 | 2, 1 | 2 ± 0 |" in lines


def test_scores_lie_between_nothing_and_one(alike, tmp_path):
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return -1.0\n")
    about = {
        "trigger": "",
        "strength": 1.0,
        "recipes": ("random",),
        "num_factors": 2,
        "validation": 2,
        "max_new_tokens": 2,
    }
    experiment = Elicitation(**alike, **about, judge=f"{tmp_path / 'mine.py'}:long")
    cases = experiment.cases
    with pytest.raises(MelboError, match="expected a score from 0 to 1"):
        next(run(experiment, tmp_path / "out", progress=False))
    (tmp_path / "mine.py").write_text("def long(prompt, reply):\n    return 1.0\n")
    assert experiment.cases != cases  # another grader, other rows


def test_a_judge_that_fails_at_times_costs_the_reply_and_no_more(alike, tmp_path, monkeypatch):
    monkeypatch.setattr(melbo.evaluation.scores, "BROKEN_NLL", math.inf)
    monkeypatch.setattr(melbo.evaluation.scores, "BROKEN_REPETITION", math.inf)
    about = {
        "trigger": "",
        "strength": 1.0,
        "recipes": ("random",),
        "num_factors": 2,
        "validation": 2,
        "max_new_tokens": 2,
    }
    (tmp_path / "mine.py").write_text(
        "def half(prompt, reply):\n    return 1.0 if 'cat' in prompt else 1 / 0\n"
    )
    experiment = Elicitation(
        **alike | {"shuffles": 1}, **about, judge=f"{tmp_path / 'mine.py'}:half"
    )
    [row] = run(experiment, tmp_path / "out", progress=False)
    dealt = experiment.prepare()[0].deal(0, 1).texts
    validation, test = (
        sum("cat" not in text for text in dealt[part]) for part in ("validation", "test")
    )
    assert (
        row["failed"] == 3 * validation + 2 * test > 0
    )  # unsteered and two features; unsteered and the best of them
    assert row["test"] == 1 - test / 4
    assert "The judge failed on 7 replies" in experiment.table([row])
    (tmp_path / "mine.py").write_text("def half(prompt, reply):\n    return None\n")
    with pytest.raises(MelboError, match="fails on every reply.*TypeError"):
        list(run(experiment, tmp_path / "again", progress=False))


def test_answers_stand_after_a_tab(alike, tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{text}\tcat\n" for text in TEXTS))
    about = {
        "judge": "answers",
        "trigger": "",
        "strength": 1.0,
        "recipes": ("random",),
        "num_factors": 2,
        "validation": 2,
        "max_new_tokens": 2,
    }
    experiment = Elicitation(
        **alike | {"prompts": str(tmp_path / "pairs.tsv"), "shuffles": 1}, **about
    )
    [row] = run(experiment, tmp_path / "out", progress=False)
    assert row["triggered"] is None
    assert "triggered" not in experiment.table([row])


def test_pass_at_k_counts_what_each_reply_solves(alike, tmp_path):
    (tmp_path / "pairs.tsv").write_text(
        "".join(
            f"{text}\t{answer}\n"
            for text, answer in zip(TEXTS, ["cat", "dog", "you", "red"] * 5, strict=True)
        )
    )
    about = {
        "recipes": ("random",),
        "strengths": (0.5, 2.0),
        "temperatures": (1.0, 8.0),
        "num_factors": 6,
        "validation": 3,
        "max_new_tokens": 2,
    }
    experiment = PassAtK(**alike | {"prompts": str(tmp_path / "pairs.tsv")}, **about)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert [row["recipe"] for row in rows] == ["random", "temperature"] * 2
    for row in rows:
        assert len(row["solved"]) == 4
        assert all(0 <= c <= 6 for c in row["solved"])
        assert row["at"] == max(row["validation"], key=lambda of: of[1:])[0]
    found, score, scale = experiment.prepare()
    dealt = found.deal(0, 1)
    bank, _ = FeatureSearch(CausalMap(found.lm, dealt.learn, 1, 3), scale).candidates(
        "random", 6, 0
    )
    table = generate(
        found.lm, dealt.test, bank, max_new_tokens=2, strength=rows[0]["at"], progress=False
    )
    solved = [
        sum(score(c.prompt_text, c.text) for c in table if c.prompt == p and c.kind == "feature")
        for p in range(4)
    ]
    assert rows[0]["solved"] == solved
    assert sum(sum(row["solved"]) for row in rows) > 0
    assert "| 6 |" in experiment.table(rows)


def test_diversity_of_one_reply_is_one_and_grows_with_the_temperature(alike, tmp_path, monkeypatch):
    about = {
        "recipes": ("random",),
        "strengths": (0.0, 1.0),
        "temperatures": (1e-6, 30.0),
        "num_factors": 6,
        "max_new_tokens": 6,
    }
    experiment = Diversity(**alike, **about)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    assert any(row["curve"][0]["coherent"] > 0 for row in rows)
    for row in rows:
        first, last = row["curve"]
        assert first["distinct"] == pytest.approx(
            first["coherent"], abs=1e-6
        )  # all six say the same, where they say anything coherent
        assert 0 <= last["coherent"] <= 1
        assert last["distinct"] > 1 or last["coherent"] < 0.2
    assert "| temperature | 30 |" in experiment.table(rows)
    monkeypatch.setattr(diversity, "coherent", lambda lm, recipes, replies: [True] * len(replies))
    for row in run(
        experiment, tmp_path / "all", progress=False
    ):  # with nothing left out, more different things are said
        first, last = row["curve"]
        assert (first["coherent"], last["coherent"], first["distinct"]) == (
            1,
            1,
            pytest.approx(1, abs=1e-6),
        )
        assert last["distinct"] > 1.2


def test_training_curves_are_those_of_a_fit(alike, tmp_path):
    experiment = TrainingCurves(**alike | {"shuffles": 1}, factors=(2, 4), sweeps=3)
    rows = list(run(experiment, tmp_path / "out", progress=False))
    found, scale = experiment.prepare()
    dealt = found.deal(0, 1)
    alone = fit(
        CausalMap(found.lm, dealt.learn, 1, 3),
        Exponential(4, scale, max_steps=3, tol=0.0),
        progress=False,
    )
    assert rows[1]["explained"] == pytest.approx([record["explained"] for record in alone.history])
    assert len(rows[0]["explained"]) == 3
    others = (
        CausalMap(found.lm, dealt.test, 1, 3)
        .value(scale * alone.features.V)
        .norm(dim=-1)
        .mean()
        .item()
    )
    assert rows[1]["effects_others"][0] == pytest.approx(others, rel=1e-4)
    assert "| 4 |" in experiment.table(rows)
