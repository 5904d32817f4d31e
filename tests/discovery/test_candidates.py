"""The interface of all candidates: tables, independence of each other, accounts."""

import json

import pytest
import torch
from cases import tiny_model

from melbo import MelboError
from melbo.discovery.candidates import in_shares, some_prompts
from melbo.discovery.differences import ActivationDifference, WeightDifference
from melbo.discovery.draws import Drawn, Temperature
from melbo.discovery.noise import ActivationNoise
from melbo.discovery.openings import Openings
from melbo.discovery.own import Own, load_function
from melbo.discovery.steered import Features
from melbo.discovery.weight_noise import WeightNoise
from melbo.models.decoding.decode import decode
from melbo.models.edits import EditSequence

NUM, LENGTH = 6, 7


def tuned_from(lm):
    """The same model with some of its output matrices changed by a rank-two edit."""
    tuned = tiny_model("llama", torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in (0, 1):
            weight = tuned.model.model.layers[block].mlp.down_proj.weight
            a, b = (torch.randn(2, n, generator=generator) for n in weight.shape)
            weight += 0.3 * a.T @ b
    return tuned


ELICITORS = {
    "openings": lambda lm: Openings(least=0.02),
    "directions": lambda lm: Features("exponential"),
    "random": lambda lm: Features("random"),
    "linear": lambda lm: Features("linear"),
    "adapters": lambda lm: Features("adapters"),
    "temperature": lambda lm: Temperature(),
    "noise": lambda lm: ActivationNoise(),
    "weight-noise": lambda lm: WeightNoise(),
    "weight-difference": lambda lm: WeightDifference(tuned_from(lm)),
    "activation-difference": lambda lm: ActivationDifference(tuned_from(lm)),
}


@pytest.fixture(scope="module", params=[*ELICITORS])
def elicitor(lm, request):
    return ELICITORS[request.param](lm)


@pytest.fixture(scope="module")
def found(lm, asked, elicitor):
    return elicitor.candidates(lm, asked, NUM, 3, False)


@pytest.fixture(scope="module")
def table(lm, asked, found):
    return found[0].replies(lm, asked, LENGTH, unsteered=True, progress=False)


def test_every_candidate_replies_to_every_prompt(lm, asked, found, table):
    assert len(found[0]) == NUM
    assert [(c.kind, c.feature, c.prompt) for c in table] == [
        (kind, i, p)
        for p in range(len(asked))
        for kind, i in [("unsteered", None), *(("feature", i) for i in range(NUM))]
    ]
    own = decode(lm, asked.tokens, EditSequence(()), LENGTH, progress=False)
    assert [list(c.tokens) for c in table.of("unsteered")] == own
    for c in table:
        assert c.text == lm.tokenizer.decode(c.tokens, skip_special_tokens=True)
        assert c.prompt_text == asked.texts[c.prompt]
        assert 0 < len(c.tokens) <= LENGTH
    assert len({tuple(c.tokens for c in table.of("feature", i)) for i in range(NUM)}) > 1


def test_replies_depend_on_nothing_beside_a_candidate(lm, asked, found, table):
    alone = found[0].only([5, 2])
    turned = some_prompts(asked, [2, 0])
    again = alone.replies(lm, turned, LENGTH, unsteered=False, progress=False)
    assert len(again) == 4
    for i, number in enumerate((5, 2)):
        before = {c.prompt: c.tokens for c in table.of("feature", number)}
        now = [c.tokens for c in again.of("feature", i)]
        assert now == [before[2], before[0]]
        assert alone.describe(i) == found[0].describe(number)


def test_the_same_seed_finds_the_same_and_another_one_does_not(lm, asked, elicitor, found, table):
    again, cost = elicitor.candidates(lm, asked, NUM, 3, False)
    assert cost == pytest.approx(found[1])
    assert list(again.replies(lm, asked, LENGTH, unsteered=True, progress=False)) == list(table)
    random = ("temperature", "noise", "weight-noise", "adapters")
    if elicitor.name in random or getattr(elicitor, "recipe", "") == "random":
        other, _ = elicitor.candidates(lm, asked, NUM, 4, False)
        replies = other.replies(lm, asked, LENGTH, unsteered=True, progress=False)
        assert list(replies) != list(table)


def test_accounts_are_json_and_differ(found):
    accounts = [json.dumps(found[0].describe(i), allow_nan=False) for i in range(NUM)]
    assert len(set(accounts)) == NUM
    assert all(json.loads(each)["kind"] for each in accounts)


def test_elicitors_have_a_name_and_say_what_they_do(elicitor):
    assert elicitor.name in {*ELICITORS} - {"random", "linear"}
    assert len(elicitor.description) > len(elicitor.name)


def test_finding_costs_what_is_read(elicitor, found):
    free = {"temperature", "weight-noise"}
    assert (found[1] == 0) == (elicitor.name in free)


def test_the_model_is_left_as_it_was(lm, asked, elicitor):
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    tried, _ = elicitor.candidates(lm, asked, 4, 0, False)
    tried.replies(lm, asked, 3, unsteered=False, progress=False)
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name]), name
    own = decode(lm, asked.tokens, EditSequence(()), LENGTH, progress=False)
    table = tried.replies(lm, asked, LENGTH, unsteered=True, progress=False)
    assert [list(c.tokens) for c in table.of("unsteered")] == own


@pytest.mark.parametrize(
    ("num", "parts", "unit", "expected"),
    [(7, 3, 1, [3, 2, 2]), (6, 3, 2, [2, 2, 2]), (8, 3, 2, [4, 2, 2]), (1, 2, 1, [1, 0])],
)
def test_shares_are_as_equal_as_may_be(num, parts, unit, expected):
    assert in_shares(num, parts, unit) == expected


OWN = """
from melbo.discovery.draws import Drawn

def hot(lm, prompts, num, seed):
    "Very hot draws."
    return Drawn((5.0,) * (num + 2), tuple(range(seed, seed + num + 2)))

def broken(lm, prompts, num, seed):
    return 1 / 0

def wrong(lm, prompts, num, seed):
    return [1, 2]

def none(lm, prompts, num, seed):
    return Drawn((), ())

number = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return path


def test_a_function_of_ones_own_gives_candidates(lm, asked, file):
    own = Own.of(f"{file}:hot")
    assert (own.name, own.description) == ("hot", "Very hot draws.")
    found, cost = own.candidates(lm, asked, 3, 7, False)
    assert cost == 0
    assert found == Drawn((5.0,) * 3, (7, 8, 9))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "the elicitor broken failed .ZeroDivisionError: division by zero"),
        ("wrong", "returned a list without only, replies, describe: expected candidates"),
        ("none", "returned a Drawn with no candidate in it: expected candidates"),
    ],
)
def test_functions_that_give_no_candidates_are_refused(lm, asked, file, name, message):
    with pytest.raises(MelboError, match=message):
        Own.of(f"{file}:{name}").candidates(lm, asked, 3, 7, False)


def test_functions_that_are_not_there_are_refused(file):
    with pytest.raises(MelboError, match="has no function 'number'"):
        load_function(f"{file}:number")
    with pytest.raises(MelboError, match="expected FILE.py:NAME with a file that is there"):
        load_function("nowhere.py:hot")


def test_directions_are_no_more_than_the_dimensions_of_each_slice(lm, asked):
    found, _ = Features("exponential").candidates(lm, asked, 3 * lm.width, 0, False)
    assert len(found) == 2 * lm.width
    sources = [found.describe(i)["source"] for i in range(len(found))]
    assert sorted(map(sources.count, set(sources))) == [lm.width] * 2
