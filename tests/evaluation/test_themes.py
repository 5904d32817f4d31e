import pytest
import torch

from melbo import MelboError, themes
from melbo.features.generate import Completion, Completions

COMMON = ["the", "a", "of", "to", "and", "in", "that", "it", "is", "was", "for", "on"]


def told(features, prompts, say, seed=0):
    """A table: feature i answers prompt p by ``say(i, p, draw)``, no feature by common words."""
    g = torch.Generator().manual_seed(seed)

    def draw(words, n=8):
        return " ".join(words[i] for i in torch.randint(len(words), (n,), generator=g))

    rows = []
    for p in range(prompts):
        rows.append(Completion("unsteered", None, p, f"prompt {p}", draw(COMMON), ()))
        rows += [
            Completion("feature", i, p, f"prompt {p}", say(i, p, draw), ()) for i in range(features)
        ]
    return Completions(tuple(rows))


def test_features_with_words_of_their_own_have_a_theme():
    result = themes(told(20, 8, lambda i, p, draw: draw([f"own{i}"] * 6 + COMMON)))
    assert result.score == 1
    assert (
        result.distinct > 3
    )  # twenty and one, less a correction that is large with eight replies each


def test_features_that_say_what_everybody_says_have_none():
    scores = [themes(told(40, 8, lambda i, p, draw: draw(COMMON), seed)) for seed in range(5)]
    rate = sum(s.score for s in scores) / 5
    print(f"share by chance {rate:.3f}, told apart {[round(s.distinct, 2) for s in scores]}")
    assert rate < 0.03
    assert all(s.distinct < 1.2 for s in scores)


def test_only_those_with_a_theme_are_counted():
    result = themes(
        told(20, 8, lambda i, p, draw: draw([f"own{i}"] * 6 + COMMON) if i < 5 else draw(COMMON))
    )
    assert result.themed[:5] == (True,) * 5
    assert sum(result.themed[5:]) <= 1


def test_synonymous_features_are_one():
    """Twenty features with one theme: none can be told from the others, all from no feature."""
    result = themes(told(20, 8, lambda i, p, draw: draw(["arr", "ahoy", "ship"])))
    assert result.score < 0.1
    assert result.distinct < 1.5


def test_words_of_a_prompt_are_no_theme():
    """Every feature repeats its prompt: that recurs within a prompt, not from prompt to prompt."""
    assert (
        themes(told(20, 8, lambda i, p, draw: draw([f"prompt{p}", f"once{i}{p}", *COMMON]))).score
        < 0.1
    )


def test_empty_replies_are_a_reply_like_any_other():
    result = themes(told(6, 8, lambda i, p, draw: "" if i == 0 else draw(COMMON)))
    assert result.themed[0]


def test_it_is_the_same_every_time_and_json_able():
    table = told(10, 6, lambda i, p, draw: draw([f"own{i % 5}"] * 6 + COMMON))
    assert themes(table).describe() == themes(table).describe()
    assert set(themes(table).describe()) == {
        "hits",
        "replies",
        "chance",
        "themed",
        "distinct",
        "score",
    }


def test_too_few_prompts_are_refused():
    with pytest.raises(
        MelboError, match="10 features to 3 prompts: expected one or more, and 4 prompts or more"
    ):
        themes(told(10, 3, lambda i, p, draw: draw(COMMON)))
    with pytest.raises(MelboError, match="0 features"):
        themes(told(10, 4, lambda i, p, draw: draw(COMMON)), kind="control")


def test_a_feature_that_says_what_the_unsteered_model_says_has_no_theme():
    table = told(20, 8, lambda i, p, draw: draw([f"own{i}"] * 6 + COMMON))
    plain = {c.prompt: c.text for c in table if c.kind == "unsteered"}
    inert = [
        Completion(c.kind, c.feature, c.prompt, c.prompt_text, plain[c.prompt], ())
        if c.feature in (3, 4)
        else c
        for c in table
    ]
    result = themes(Completions(tuple(inert)))
    assert not result.themed[3]
    assert not result.themed[4]
    assert sum(result.themed) == 18


def test_replies_without_a_word_are_alike():
    result = themes(told(6, 8, lambda i, p, draw: "!" * (p + 1) if i == 2 else draw(COMMON)))
    assert result.themed[2]
    assert themes(told(3, 4, lambda i, p, draw: "")).score <= 1  # and no error
