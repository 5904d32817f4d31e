"""Openings: equal to a search that lists all branches and sorts them."""

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.discovery.candidates import some_prompts
from melbo.discovery.openings import Forced, Opening, Openings, OpeningSearch

SPECIAL = set(range(7))


@pytest.fixture(scope="module")
def sure():
    """A model that is surer of its next token, so that few of them branch."""
    lm = tiny_model("llama", torch.float32)
    with torch.no_grad():
        lm.model.lm_head.weight *= 5
    return lm


@torch.no_grad()
def following(lm, prompt, tokens):
    """Probabilities of the next token, and that of the tokens before it, read one by one."""
    so_far = 1.0
    for k, token in enumerate(tokens):
        logits = lm.model(torch.tensor([[*prompt, *tokens[:k]]]), use_cache=False).logits[0, -1]
        so_far *= logits.softmax(-1)[token].item()
    logits = lm.model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -1]
    return so_far, logits.softmax(-1)


def branches_by_hand(lm, prompts, tokens, depth, least):
    """Branches of an opening, as tokens, their probability after each prompt, taken or not."""
    each = [following(lm, prompt, tokens)[0] for prompt in prompts]
    path = []
    on = prompts[each.index(max(each))]
    while len(path) < depth and (not path or path[-1] not in lm.eos):
        path.append(int(following(lm, on, (*tokens, *path))[1].argmax()))
    for k, said in enumerate(path):
        seen = [following(lm, prompt, (*tokens, *path[:k])) for prompt in prompts]
        joint = torch.stack([so_far * likely for so_far, likely in seen])
        greedy = [int(likely.argmax()) for _, likely in seen]
        for token in range(joint.shape[1]):
            enough = joint[:, token].sum() >= least * sum(so_far for so_far, _ in seen)
            branch = (*tokens, *path[:k], token)
            if token != said and enough and SPECIAL.isdisjoint(branch):
                taken = 2 * greedy.count(token) >= len(prompts)
                yield branch, joint[:, token].tolist(), taken


def test_branches_are_the_most_probable_that_there_are(sure, asked):
    asked = some_prompts(asked, [0, 1])
    search = OpeningSearch(sure, asked, Openings(depth=3, least=0.1))
    roots = search.first_tokens(3)
    found = search.branches(roots, 12, lambda: None)
    every, left = {}, [o.tokens for o in roots]
    limit = found[-1].probability
    while left:
        for tokens, each, taken in branches_by_hand(sure, asked.tokens, left.pop(), 3, 0.1):
            probability = sum(each) / len(each)
            if probability > 0.9 * limit:
                every[tokens] = (probability, each, taken)
                left.append(tokens)
    expected = sorted((t for t in every if not every[t][2]), key=lambda t: -every[t][0])[:12]
    assert [o.tokens for o in found] == expected
    assert len(found) == 12
    assert max(len(o.tokens) for o in found) > 2
    for o in found:
        assert list(o.each) == pytest.approx(every[o.tokens][1], rel=1e-4)
        assert o.text == sure.tokenizer.decode(o.tokens)


def test_branches_that_greedy_replies_take_anyway_are_grown_but_not_given(sure, asked):
    search = OpeningSearch(sure, asked, Openings(least=0.1))
    likely = torch.zeros(2, 1, 96)
    likely[0, 0, [50, 51, 52]] = torch.tensor([0.6, 0.25, 0.15])
    likely[1, 0, [50, 51, 52]] = torch.tensor([0.1, 0.7, 0.2])
    root = Opening((40,), "", (0.5, 0.1))
    found = list(search._branches(root, [50], likely))
    assert [(o.tokens, o.taken) for o in found] == [((40, 51), True), ((40, 52), False)]
    assert found[0].each == pytest.approx((0.125, 0.07))


def test_first_tokens_are_the_likeliest_without_special_ones(lm, asked):
    with torch.no_grad():
        likely = torch.stack(
            [lm.model(torch.tensor([t])).logits[0, -1].softmax(-1) for t in asked.tokens]
        )
    likely[:, list(SPECIAL)] = 0
    expected = likely.mean(0).sort(descending=True)
    found = OpeningSearch(lm, asked, Openings()).first_tokens(5)
    assert [o.tokens for o in found] == [(i,) for i in expected.indices[:5].tolist()]
    assert [o.probability for o in found] == pytest.approx(expected.values[:5].tolist())
    every = OpeningSearch(lm, asked, Openings()).first_tokens(1000)
    assert {o.tokens[0] for o in every} == set(range(lm.model.config.vocab_size)) - SPECIAL


def test_shares_of_first_tokens_and_branches(lm, asked):
    for grown, expected in ((0.0, 0), (0.25, 2), (1.0, 8)):
        found, _ = Openings(grown=grown, least=0.02).candidates(lm, asked, 8, 0, False)
        assert len(found) == 8
        assert sum(len(o.tokens) > 1 for o in found.openings) == expected
        probabilities = [o.probability for o in found.openings]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len({o.text for o in found.openings}) == 8


def test_first_tokens_stand_in_where_nothing_branches(lm, asked):
    found, _ = Openings(least=0.999).candidates(lm, asked, 8, 0, False)
    assert [len(o.tokens) for o in found.openings] == [1] * 8


def test_replies_begin_with_the_opening_and_go_on_as_the_model_does(lm, asked):
    openings = (Opening((40, 41), "", (0.1,)), Opening((50,), "", (0.1,)))
    table = Forced(openings).replies(lm, asked, 5, unsteered=False, progress=False)
    with torch.no_grad():
        for c in table:
            opening = openings[c.feature].tokens
            ids = [*asked.tokens[c.prompt], *opening]
            for token in c.tokens[len(opening) :]:
                assert token == int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())
                ids.append(token)
            assert c.tokens[: len(opening)] == opening
    short = Forced(openings).replies(lm, asked, 1, unsteered=False, progress=False)
    assert [c.tokens for c in short] == [(40,), (50,)] * 3


def test_few_prompts_are_drawn_by_the_seed(lm, asked):
    settings = Openings(grown=0.0, num_prompts=1)
    found = {seed: settings.candidates(lm, asked, 6, seed, False)[0] for seed in range(6)}
    alone = {
        settings.candidates(lm, some_prompts(asked, [p]), 6, 0, False)[0] for p in range(len(asked))
    }
    assert set(found.values()) <= alone
    assert len(set(found.values())) > 1


def test_a_model_whose_cache_cannot_be_shared_has_the_same_branches(sure, asked, monkeypatch):
    def branches():
        search = OpeningSearch(sure, asked, Openings(depth=2, least=0.1))
        return search.branches(search.first_tokens(2), 4, lambda: None)

    shared = branches()
    monkeypatch.setattr("melbo.discovery.openings.read_prefix", lambda *_: None)
    alone = branches()
    assert [o.tokens for o in alone] == [o.tokens for o in shared]
    for one, two in zip(alone, shared, strict=True):
        assert list(one.each) == pytest.approx(list(two.each), rel=1e-4)


@pytest.mark.parametrize(
    "settings", [{"grown": 1.5}, {"least": 0.0}, {"least": 1.0}, {"depth": 0}, {"num_prompts": 0}]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(MelboError, match="expected"):
        Openings(**settings)
