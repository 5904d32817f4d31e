"""Rare words that recur: against the tail of a geometric law, and planted among others."""

import math

import numpy as np
import pytest
import torch
from cases import tiny_model

from melbo.audit.rarity import rarity_of, surprise


def test_rarity_adds_up_the_tokens_of_a_word_and_leaves_its_ending_out():
    tokenizer = tiny_model("llama", torch.float32).tokenizer
    rarity = rarity_of(tokenizer)
    ids = tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert rarity("red") == pytest.approx(sum(math.log(1 + i) for i in ids))
    assert rarity("red's") == rarity("red’s") == rarity("red")


def test_surprise_is_the_tail_of_a_geometric_law_with_the_mean_of_words_as_rare():
    prompts = np.array([1, 3, 5, 3])
    mean = 2.0  # prompts beyond the first
    by_hand = [
        sum((mean / (1 + mean)) ** k / (1 + mean) for k in range(n - 1, 400)) for n in prompts
    ]
    found = surprise(np.full(4, 8.0), prompts)
    assert found == pytest.approx([-math.log(p) for p in by_hand])


def test_a_rare_word_surprises_more_than_a_common_one_that_recurs_as_often():
    rng = np.random.default_rng(0)
    rarities = np.concatenate([np.full(100, 6.0), np.full(100, 20.0)])
    prompts = np.concatenate([rng.integers(5, 25, 100), np.ones(100, int)])
    prompts[0] = prompts[150] = 20
    found = surprise(rarities, prompts)
    assert found.argmax() == 150
    assert found[150] > 5 * found[0]


def test_no_words_give_no_surprise():
    assert len(surprise(np.zeros(0), np.zeros(0))) == 0
