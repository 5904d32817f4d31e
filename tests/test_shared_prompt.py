import sys

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, tiny_model
from toys import directions

from melbo import FeatureSet, Prompts, generate
from melbo.shared_prompt import can_read_once, read_once
from melbo.steer import Add, edit

generation = sys.modules["melbo.generate"]  # the name in the package is the function's

#: Where the blocks or the cache do not let a batch grow on the way; their rows are read one by one.
OWN_ROWS = {"gpt_bigcode", "lfm2", "recurrent_gemma"}


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_rows_that_share_a_prompt_read_what_each_would_alone(name):
    lm = tiny_model(name)
    place = Add(1, 2.0 * directions(5, lm.width), skip_first=True)
    assert can_read_once(lm, place) == (name not in OWN_ROWS)
    if name in OWN_ROWS:
        return
    ids = torch.arange(3, 12)[None]  # longer than the sliding windows
    cache, logits = read_once(lm, ids, place)
    with edit(lm, place):
        own = lm.model(input_ids=ids.expand(5, -1), use_cache=True)
        following = torch.arange(20, 25)[:, None]
        after = lm.model(input_ids=following, past_key_values=own.past_key_values).logits
        ours = lm.model(input_ids=following, past_key_values=cache).logits
    tolerance = 1e-4 if name in FLOAT32_INSIDE else 1e-5
    assert torch.allclose(logits, own.logits[:, -1].float(), atol=tolerance, rtol=1e-4)
    assert torch.allclose(ours, after, atol=tolerance, rtol=1e-4)


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def bank(lm):
    return FeatureSet(directions(9, lm.width), directions(9, lm.width, 1), torch.ones(9, dtype=torch.float64), 4.0, 1, 3)


@pytest.fixture(scope="module")
def some(lm):
    return Prompts.text(lm, ["Tell me how to bake a cake", "dog", "red or blue ?"])


@pytest.mark.parametrize("batch_size", [3, 10, 64])
def test_replies_are_the_same_without_sharing_and_in_legs_of_any_length(lm, bank, some, batch_size, monkeypatch):
    monkeypatch.setattr(generation, "can_read_once", lambda *a: False)
    monkeypatch.setattr(generation, "_LEG", 100)
    plain = generate(lm, some, bank, max_new_tokens=9, progress=False)
    monkeypatch.undo()
    for leg in (1, 4):
        monkeypatch.setattr(generation, "_LEG", leg)
        assert generate(lm, some, bank, max_new_tokens=9, batch_size=batch_size, progress=False) == plain


def test_finished_rows_make_room(lm, bank, some, monkeypatch):
    plain = generate(lm, some[0], bank, max_new_tokens=12, progress=False)
    third = {c.feature: c.tokens[2] for c in plain}
    ended = third[4]  # what one feature says third ends a reply from now on
    monkeypatch.setattr(type(lm), "eos", property(lambda self: [ended]))
    monkeypatch.setattr(generation, "_LEG", 4)
    sizes = []
    greedy = generation.greedy
    monkeypatch.setattr(generation, "greedy", lambda lm, ids, *a, **k: sizes.append(len(ids)) or greedy(lm, ids, *a, **k))
    short = generate(lm, some[0], bank, max_new_tokens=12, progress=False)
    for long, cut in zip(plain, short, strict=True):
        end = long.tokens.index(ended) + 1 if ended in long.tokens else 12
        assert cut.tokens == long.tokens[:end]
    assert sizes[0] >= sizes[-1]
    assert sizes[-1] < 10


def test_rows_of_a_prompt_get_batches_of_their_own_and_the_rest_go_by_length():
    vector = torch.zeros(2)
    jobs = [generation.Job(tokens, vector) for tokens in [(1, 2, 3)] * 5 + [(1,), (1, 2), (3,)]]
    assert generation._groups(jobs) == [[0, 1, 2, 3, 4], [5, 7, 6]]
    assert generation._groups(jobs[5:]) == [[0, 2, 1]]
