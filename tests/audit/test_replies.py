"""Likelihoods of replies under another model, against plain passes over the same tokens."""

import pytest
import torch
from cases import tiny_model

from melbo import Prompts
from melbo.audit.replies import judged
from melbo.features.generate import Completion


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama", torch.float32)


def mean_nll(lm, prompt, reply):
    """Mean cost of a reply's tokens, read in one plain pass."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*prompt, *reply]]), use_cache=False).logits[0]
    costs = -logits[len(prompt) - 1 : -1].log_softmax(-1)
    return costs[range(len(reply)), list(reply)].mean().item()


@pytest.mark.parametrize("other_tokenizer", [False, True])
def test_ratios_count_the_end_of_a_reply_in_both_models(lm, other_tokenizer):
    reference = tiny_model("gpt2", torch.float32)
    if other_tokenizer:  # it reads the same words as the same tokens
        reference.tokenizer.add_tokens(["<never said>"])
    prompts = Prompts.chat(lm, ["red dog", "yes"])
    words = tuple(lm.tokenizer("the red cat", add_special_tokens=False)["input_ids"])
    said = [words, (*words, lm.eos[0])]
    rows = [
        Completion("feature", i, p, prompts.texts[p], lm.tokenizer.decode(tokens[:3]), tokens)
        for p in range(2)
        for i, tokens in enumerate(said)
    ]
    asked = prompts.like(reference, prompts.texts)
    for row, reply in zip(rows, judged(lm, reference, prompts, "x", rows, False), strict=True):
        own = mean_nll(lm, prompts.tokens[row.prompt], row.tokens)
        other = mean_nll(reference, asked.tokens[row.prompt], row.tokens)
        assert reply.nll == pytest.approx(own, rel=1e-4)
        assert reply.ratio == pytest.approx(other - own, rel=1e-3, abs=1e-4)
