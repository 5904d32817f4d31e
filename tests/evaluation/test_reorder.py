"""A ranking in another order, or gone on with, without replies being generated again."""

import pytest
import torch
from cases import tiny_model

from melbo import CausalMap, Exponential, MelboError, Prompts, fit
from melbo.evaluation import kept_replies
from melbo.evaluation.kept_replies import num_kept
from melbo.evaluation.rank import rank
from melbo.evaluation.ranking import ORDERS, UNDER_WAY
from melbo.evaluation.reorder import reordered

SETTINGS = {"num_controls": 3, "max_new_tokens": 4, "contrast": ("yes", "no")}
TEXTS = {"validation": ["dog and sun", "he or she"], "held_out": ["red or blue"]}


@pytest.fixture(scope="module")
def world():
    lm = tiny_model("llama")
    used, chosen, told = (
        Prompts.chat(lm, texts) for texts in (["Tell me how to bake a cake"], *TEXTS.values())
    )
    features = fit(CausalMap(lm, used, 1, 3), Exponential(4, 2.0), progress=False).features
    return lm, features, chosen, told


def ranked(world, **more):
    return rank(*world, **{**SETTINGS, "progress": False, **more})


@pytest.fixture
def folder(world, tmp_path):
    ranked(world, by="novel").save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("by", [by for by in ORDERS if by != "target"])
def test_another_order_is_as_if_it_had_been_generated_in_it(world, folder, by):
    found = reordered(folder, by, {**SETTINGS, **TEXTS, "seed": 0})
    expected = ranked(world, by=by)
    assert found.describe() == expected.describe()
    assert [c.text for c in found.completions] == [c.text for c in expected.completions]


def test_an_order_by_the_target_needs_its_score(world, folder):
    assert reordered(folder, "target", {}) is None
    ranked(world, by="target").save(folder)
    assert reordered(folder, "target", {}).by == "target"


@pytest.mark.parametrize(
    "other",
    [
        {"contrast": ("no", "yes")},
        {"num_controls": 2},
        {"max_new_tokens": 5},
        {"seed": 1},
        {"held_out": ["red or green"]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_ranking_of_other_settings_is_none(folder, other):
    assert reordered(folder, "kl", {}) is not None
    assert reordered(folder, "kl", other) is None


def test_no_ranking_and_a_truncated_one_are_none(folder, tmp_path):
    assert reordered(tmp_path / "nowhere", "kl", {}) is None
    (folder / "completions.jsonl").write_text("")
    assert reordered(folder, "kl", {}) is None


def test_the_unsteered_model_has_its_contrast(world, folder):
    lm, _, chosen, told = world
    a, b = (lm.tokenizer.convert_tokens_to_ids(word) for word in SETTINGS["contrast"])
    for split, prompts in (("validation", chosen), ("held_out", told)):
        logits = [lm.model(torch.tensor([row])).logits[0, -1] for row in prompts.tokens]
        expected = sum((each[a] - each[b]).item() for each in logits) / len(logits)
        for ranking in (ranked(world), reordered(folder, "contrast", {})):
            assert ranking.unsteered[split].contrast == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def calls(monkeypatch):
    """Numbers of prompts that replies are generated for, and Ctrl-C at the second call."""
    made, generate = [], kept_replies.generate

    def count(lm, prompts, *sets, **more):
        made.append(prompts.texts)
        if len(made) == 2:
            raise KeyboardInterrupt
        return generate(lm, prompts, *sets, **more)

    monkeypatch.setattr(kept_replies, "generate", count)
    return made


def test_a_ranking_that_was_broken_off_goes_on(world, tmp_path, calls):
    few = {"batch_size": 8, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        ranked(world, **few)
    assert num_kept(tmp_path) == 8
    found = ranked(world, **few)
    # the first prompt is not asked again
    assert calls == [("dog and sun",), ("he or she",), ("he or she",), ("red or blue",)]
    expected = ranked(world)
    assert found.completions == expected.completions
    assert found.describe() == expected.describe()
    found.save(tmp_path)
    assert not (tmp_path / UNDER_WAY).exists()


@pytest.mark.parametrize("other", [{"seed": 1}, {"max_new_tokens": 3}, {"contrast": None}], ids=str)
def test_replies_of_another_ranking_are_not_gone_on_with(world, tmp_path, calls, other):
    few = {"batch_size": 8, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        ranked(world, **few)
    found = ranked(world, **few, **other)
    assert [c.text for c in found.completions] == [
        c.text for c in ranked(world, **other).completions
    ]
    assert len(calls) == 2 + 3 + 1


def test_a_log_of_another_kind_is_refused(world, tmp_path):
    (tmp_path / UNDER_WAY).write_text("no rows\n")
    with pytest.raises(MelboError, match="is not JSON"):
        ranked(world, folder=tmp_path)
