"""Continuations: the model's own first sentence, a forced token, then what the model says."""

import pytest
import torch
from cases import tiny_model

from melbo.discovery.candidates import some_prompts
from melbo.discovery.continuations import Continuations, _first_sentence, beginnings
from melbo.discovery.openings import Openings

LENGTH = 12


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


@pytest.fixture
def asked(asked):
    return some_prompts(asked, [0, 1])


@torch.no_grad()
def greedy(lm, tokens, num):
    """Greedy reply, the whole text read again for each token."""
    said = []
    while len(said) < num and not (said and said[-1] in lm.eos):
        logits = lm.model(torch.tensor([[*tokens, *said]]), use_cache=False).logits[0, -1]
        said.append(int(logits.argmax()))
    return said


def test_replies_are_as_decoded_by_hand(lm, asked):
    found, _ = Continuations(Openings(grown=0)).candidates(lm, asked, 3, 0, False)
    table = found.replies(lm, asked, LENGTH, unsteered=True, progress=False)
    begun = beginnings(lm, asked, LENGTH // 2)
    left = LENGTH - max(map(len, begun))
    for p, (prompt, start) in enumerate(zip(asked.tokens, begun, strict=True)):
        own = greedy(lm, prompt, LENGTH)
        assert list(start) == own[: len(start)]
        assert list(table.of("unsteered")[p].tokens) == own
        for i in range(len(found)):
            forced = found.describe(i)["tokens"]
            whole = [*start, *forced]
            expected = [*whole, *greedy(lm, [*prompt, *whole], left - len(forced))]
            row = table.of("feature", i)[p]
            assert list(row.tokens) == expected
            assert row.begun == len(whole)


def test_tokens_are_the_likeliest_after_the_first_sentence(lm, asked):
    found, read = Continuations(Openings(grown=0)).candidates(lm, asked, 4, 0, False)
    likely = []
    for prompt, start in zip(asked.tokens, beginnings(lm, asked, 20), strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *start]])).logits[0, -1]
        likely.append(logits.softmax(-1))
    mean = torch.stack(likely).mean(0)
    special = {*lm.tokenizer.all_special_ids, *lm.eos}
    order = [t for t in mean.argsort(descending=True).tolist() if t not in special]
    texts = [lm.tokenizer.decode([t]) for t in order]
    expected = [t for t, text in zip(order, texts, strict=True) if text.strip()][:4]
    assert [found.describe(i)["tokens"] for i in range(4)] == [[t] for t in expected]
    assert read > 0


@pytest.mark.parametrize(
    ("pieces", "length"),
    [
        (["It", " is", " a", " day", ".", " We", " go"], 5),
        (["It", " costs", " about", " 3", ".", "5", " euros", ".", " Yes"], 8),
        (["These", " are", " some", " ideas", ":", "\n", "\n", "1"], 5),
        (["1", ".", " Rest", " well", " now"], 5),
        (["It", " is", " a", " day", "?\n", "We"], 5),
    ],
)
def test_a_sentence_ends_where_another_begins(lm, pieces, length):
    class Speaker:
        eos = (99,)
        tokenizer = type(
            "T", (), {"batch_decode": lambda self, rows: [pieces[r[0]] for r in rows]}
        )()

    assert len(_first_sentence(Speaker(), [*range(len(pieces)), 99])) == length
