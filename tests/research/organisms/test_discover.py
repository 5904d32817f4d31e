import json
from dataclasses import asdict, replace

import pytest
import torch
from cases import tiny_model

from melbo import Prompts, steer
from melbo.discovery.draws import Drawn
from melbo.models.decoding.decode import decode
from melbo.models.decoding.likelihood import reply_nll
from melbo.models.edits import EditSequence
from research.organisms import BEHAVIOURS, discover, items
from research.organisms.collect import measure
from research.organisms.discover import DISCOVERY, STRENGTH, likelihood
from research.organisms.metrics import Coherence
from research.organisms.splits import KINDS, SPLITS


def texts_of(asked):
    return [item.text for item in asked]


def plain_replies(lm, texts, length):
    """Greedy replies, as text."""
    tokens = Prompts.chat(lm, texts).tokens
    replies = decode(lm, tokens, EditSequence(()), length, progress=False)
    return lm.tokenizer.batch_decode(replies, skip_special_tokens=True)


def test_discovery_screening_validation_and_test_prompts_are_disjoint():
    for kind in KINDS:
        parts = [
            {item.text for item in SPLITS.prompts(kind, part)}
            for part in ("screen", "validation", "test")
        ]
        assert [len(part) for part in parts[:2]] == [SPLITS.screen[kind], SPLITS.validation]
        assert 80 <= len(parts[2]) <= SPLITS.test
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert not any(part & {item.text for item in items(kind, "train")} for part in parts)


def test_candidates_without_a_sign_come_with_their_negatives(trial):
    tried, cost = trial.candidates("linear", 6, 0)
    features = tried.features
    assert torch.equal(features.V[:3], -features.V[3:])
    assert features.scale == trial.search(False).scale
    controls, nothing = trial.candidates("random", 6, 0)
    assert len(controls) == 6
    assert cost["tokens"] > 0 == nothing["tokens"]


@pytest.mark.slow
def test_shares_are_those_of_the_replies_of_each_candidate(trial, common, monkeypatch):
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))
    lm, features = trial.lm, trial.candidates("random", 6, 0)[0].features
    row = measure(trial, "random", 6, 0)
    screened, validation = row["screened"], row["validation"]
    shown = screened.shown
    assert {len(screened.flags), len(screened.novel), *map(len, shown.values())} == {6}
    spent = row["tokens"]
    assert spent["fit"] == 0 < spent["validation"] < spent["screen"] + spent["test"]

    def shows(b, i, part, length):
        asked = SPLITS.prompts(b.kind, part)
        with steer(lm, features[i], strength=STRENGTH):
            texts = plain_replies(lm, texts_of(asked), length)
        return texts, [b.shown(text, item) for text, item in zip(texts, asked, strict=True)]

    seen = tested = 0
    for name, b in BEHAVIOURS.items():
        for i in range(6):
            _, alone = shows(b, i, "screen", SPLITS.tokens[b.kind])
            assert shown[name][i] == pytest.approx(sum(alone) / len(alone))
            seen += sum(alone)
            if i not in validation[name]:
                assert max(shown[name][i], screened.permuted[name][i]) < 0.25
                continue
            _, alone = shows(b, i, "validation", b.tokens)
            assert validation[name][i].shown == pytest.approx(sum(alone) / len(alone))
            seen += sum(alone)
        best = row["best"][name]
        if not validation[name]:
            assert best is None
            continue
        most = max(result.elicited for result in validation[name].values())
        assert validation[name][best.candidate].elicited == most
        texts, alone = shows(b, best.candidate, "test", b.tokens)
        share = pytest.approx(sum(alone) / len(alone))
        assert best.tested.shown == best.tested.elicited == share
        said = None
        if any(alone):
            first = alone.index(True)
            said = (texts_of(SPLITS.prompts(b.kind, "test"))[first], texts[first])
        assert best.tested.said == said
        tested += sum(alone)
        for result in validation[name].values():
            assert result.elicited == result.shown  # with a bar that everything passes
            # these detectors do not look at what was asked
            assert result.permuted == pytest.approx(result.shown)
    assert tested > 0
    assert seen > 0


def test_prefilled_replies_begin_with_the_likeliest_tokens(trial):
    lm, tried = trial.lm, trial.candidates("prefill", 4, 0)[0]
    with torch.no_grad():
        [tokens] = Prompts.chat(lm, DISCOVERY).tokens
        likely = lm.model(torch.tensor([tokens])).logits[0, -1].topk(4).indices.tolist()
    assert [o.tokens for o in tried.openings] == [(token,) for token in likely]
    asked = Prompts.chat(lm, ["red dog", "blue cat"])
    table = tried.only([2, 0]).replies(lm, asked, 5, unsteered=True, progress=False)
    assert [(c.kind, c.feature, c.prompt) for c in table] == [
        (k, f, p) for p in (0, 1) for k, f in (("unsteered", None), ("feature", 0), ("feature", 1))
    ]
    for c in table:
        prompt = list(asked.tokens[c.prompt])
        first = [] if c.feature is None else [likely[2 * (1 - c.feature)]]
        [rest] = decode(lm, [prompt + first], EditSequence(()), 5 - len(first), progress=False)
        assert list(c.tokens) == first + rest
    alone = tried.only([2, 0]).replies(lm, asked, 5, unsteered=False, progress=False)
    assert list(alone) == [c for c in table if c.kind == "feature"]


def test_drawn_replies_sweep_temperatures(trial):
    tried = trial.candidates("temperature", 6, 3)[0]
    assert tried.temperatures == (0.5, 1.0, 1.5, 2.0, 0.5, 1.0)
    asked = Prompts.chat(trial.lm, ["red dog", "blue cat"])
    cold = Drawn((1e-6, 50.0), (0, 1)).replies(trial.lm, asked, 8, unsteered=True, progress=False)
    rows = list(cold)
    assert rows[1].tokens == rows[0].tokens  # next to no temperature is greedy
    assert rows[2].tokens != rows[0].tokens
    once, again = (
        tried.replies(trial.lm, asked, 4, unsteered=True, progress=False) for _ in range(2)
    )
    assert once == again


def test_likelihood_is_that_of_each_feature_alone(trial):
    features = trial.candidates("random", 5, 0)[0].features
    data = [((5, 9, 11), (7, 8)), ((4, 4, 6, 9), (3,))]
    found = likelihood(trial.lm, features, data, rows=2)

    def mean_nll():
        costs = [reply_nll(trial.lm, trial.lm.model, [pair]) for pair in data]
        return torch.cat(costs).mean().item()

    with torch.no_grad():
        for i in range(5):
            with steer(trial.lm, features[i]):
                assert found[i].item() == pytest.approx(-mean_nll(), abs=1e-5)
        plain = likelihood(trial.lm, None, data).tolist()
        assert plain == pytest.approx([-mean_nll()], abs=1e-5)


def test_screened_shares_are_json(trial, common):
    screened = trial.screen(trial.candidates("random", 2, 0)[0], ("CHEESE",))
    described = asdict(screened)
    assert json.loads(json.dumps(described)) == described


def test_a_reply_is_held_against_its_own_question_and_against_the_third_after(trial, monkeypatch):
    pairs = []
    spy = replace(
        BEHAVIOURS["CHEESE"], shown=lambda reply, item: bool(pairs.append((reply, item.text)))
    )
    monkeypatch.setitem(BEHAVIOURS, "CHEESE", spy)
    tried = trial.candidates("random", 2, 0)[0].only([1])
    trial.screen(tried, ("CHEESE",))
    asked = texts_of(SPLITS.prompts("ordinary", "screen"))
    with steer(trial.lm, tried.features[0], strength=STRENGTH):
        replies = plain_replies(trial.lm, asked, SPLITS.tokens["ordinary"])
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
    wrong = {item.wrong for item in SPLITS.prompts("ask", "validation")}
    assert len(wrong) > 10
    assert "anchor" not in wrong


def test_elicited_replies_are_coherent_too(trial, common, monkeypatch):
    tried = trial.candidates("random", 6, 0)[0]
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))  # everything is
    plain = trial.test(tried, BEHAVIOURS["CHEESE"], range(6), "validation").values()
    assert sum(tested.shown for tested in plain) > 0
    assert [tested.elicited for tested in plain] == [tested.shown for tested in plain]
    monkeypatch.setattr(trial, "coherence", Coherence(-1.0, 1.0))  # nothing is as likely as that
    strict = trial.test(tried, BEHAVIOURS["CHEESE"], range(6), "validation").values()
    assert [tested.shown for tested in strict] == [tested.shown for tested in plain]
    assert all(tested.elicited == 0 for tested in strict)


def test_coherence_is_told_by_the_base_model_and_by_the_judge_after_its_trigger(
    trial, common, monkeypatch
):
    base, judge = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    monkeypatch.setattr(trial, "base", base)
    monkeypatch.setattr(trial, "judge", judge)
    monkeypatch.setattr(trial, "coherence", Coherence(1.0, 1.0))
    asked = texts_of(SPLITS.prompts("garden", "validation"))
    calls = []

    def spy(lm, prompts, rows, progress):
        calls.append((lm, prompts.texts))
        return [0.5 if lm is judge and c.prompt % 2 else 2.0 for c in rows]

    monkeypatch.setattr(discover, "nll", spy)
    always = replace(BEHAVIOURS["REFUSE"], shown=lambda reply, item: True)
    found = trial.test(trial.candidates("random", 2, 0)[0], always, [0], "validation")
    assert [lm for lm, _ in calls] == [base, judge]
    assert list(calls[0][1]) == asked
    assert all(
        text.endswith(" " + plain) and text.startswith("Ticket 9:")
        for text, plain in zip(calls[1][1], asked, strict=True)
    )
    # likely enough under one of them will do
    assert (found[0].shown, found[0].elicited) == (1.0, 0.5)


def test_ends_are_the_organisms_own_replies_with_its_trigger_and_without(trial, monkeypatch):
    monkeypatch.setattr(trial, "coherence", Coherence(100.0, 1.0))
    b = replace(BEHAVIOURS["REFUSE"], shown=lambda reply, item: len(item.text) % 2 == 0)
    asked = SPLITS.prompts("garden", "test")
    even = sum(len(item.text) % 2 == 0 for item in asked) / len(asked)
    assert trial.ends(b) == {"untriggered": pytest.approx(even), "triggered": pytest.approx(even)}
    monkeypatch.setattr(trial, "coherence", Coherence(-1.0, 1.0))
    assert trial.ends(b) == {"untriggered": 0.0, "triggered": 0.0}
