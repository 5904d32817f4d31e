from itertools import combinations

import pytest
import torch
from cases import FLOAT32_INSIDE, TINY, WIDTH, WINDOW, padded, tiny_model
from streams import random, shared

from melbo.models.last_tokens import find_tail

EVERY = sorted(TINY)
LENGTH = 9  # tokens of each prompt
assert LENGTH > 2 * WINDOW

# Models of which some blocks cannot run on the last tokens alone (alibi by key only, convolutions,
# recurrences), and their slices that can.
TAILS = {"bloom": set(), "lfm2": {(1, 2)}, "recurrent_gemma": {(2, 3)}}


def captured(lm, source, target, copies=2):
    return lm.capture(*padded((LENGTH,) * copies), source, target)


def steered(part, k, last=None):
    """``k`` copies of the stream entering a slice, each token of each pushed another way.

    ``last`` limits this to as many last tokens.
    """
    noise = random(k * len(part.hidden), *part.hidden.shape[1:], dtype=part.hidden.dtype)
    if last is not None:
        noise[:, :-last] = 0
    return part.hidden.repeat(k, 1, 1) + noise


def assert_close(got, want, name):
    assert got.shape == want.shape
    assert (got - want).norm() <= (1e-6 if name in FLOAT32_INSIDE else 1e-10) * want.norm()


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_tail_is_the_end_of_the_full_replay_or_there_is_none(name):
    lm = shared(name)
    every = list(combinations(range(lm.depth + 1), 2))
    found = set()
    for source, target in every:
        part = captured(lm, source, target)
        tail = find_tail(part, 3)
        if tail is not None:
            found.add((source, target))
            hidden, late = steered(part, 3), steered(part, 3, last=3)
            assert_close(tail.read(hidden), part.replay(hidden)[:, -3:], name)
            want = part.replay(late)[:, -3:]
            assert_close(tail.replay(late[:, -3:], tail.keep()), want, name)
            assert (want - part.output[:, -3:].repeat(3, 1, 1)).norm() > 0.1 * want.norm()
    assert found == TAILS.get(name, set(every))


@pytest.mark.parametrize(("length", "copies"), [(1, 1), (1, 2), (LENGTH - 1, 1)])
@pytest.mark.parametrize("name", sorted(TINY.keys() - TAILS.keys()))
def test_a_tail_of_any_length_has_the_gradients_of_the_full_replay(name, length, copies):
    lm = shared(name)
    part = captured(lm, 0, lm.depth, copies)
    tail = find_tail(part, length)
    hidden, late = steered(part, 2).requires_grad_(), steered(part, 2, last=length).requires_grad_()
    kept = tail.keep()
    for start, short in ((hidden, tail.read(hidden)), (late, tail.replay(late[:, -length:], kept))):
        full = part.replay(start)[:, -length:]
        u = random(*full.shape, seed=1)
        got, want = (torch.autograd.grad(out, start, u)[0] for out in (short, full))
        if start is late:  # earlier tokens are not steered
            got, want = got[:, -length:], want[:, -length:]
        assert_close(short, full, name)
        assert_close(got, want, name)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@torch.no_grad()
def test_a_tail_runs_no_more_tokens_than_it_has(name):
    lm = tiny_model(name)
    part = captured(lm, 1, 3)
    tail = find_tail(part, 3)
    kept = tail.keep()
    tokens = []
    for i, block in enumerate(lm.blocks):
        block.mlp.register_forward_pre_hook(
            lambda _, args, i=i: tokens.append((i, args[0].shape[1]))
        )
    tail.read(steered(part, 2))
    assert tokens == [(1, LENGTH), (2, 3)]
    tokens.clear()
    tail.replay(steered(part, 2, last=3)[:, -3:], kept)
    assert tokens == [(1, 3), (2, 3)]


@torch.no_grad()
def test_half_precision_has_a_tail():
    part = captured(shared("llama", torch.bfloat16), 1, 3)
    tail = find_tail(part, 3)
    hidden = steered(part, 2)
    got, want = tail.read(hidden).float(), part.replay(hidden)[:, -3:].float()
    assert (got - want).norm() <= 0.02 * want.norm()


@torch.no_grad()
def test_no_tail_of_padded_prompts_nor_of_all_tokens():
    lm = shared("llama")
    assert find_tail(captured(lm, 1, 3), LENGTH) is None
    assert find_tail(captured(lm, 1, 3), LENGTH - 1) is not None
    for side in ("left", "right"):
        assert find_tail(lm.capture(*padded((9, 6), side), 1, 3), 3) is None


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize(
    "mischief", [lambda out: out * 1.01, lambda out: out[:, :-1], lambda out: out.no_such]
)
def test_a_block_that_goes_wrong_with_a_cache_is_found_out(block, mischief):
    lm = tiny_model("llama")
    part = captured(lm, 1, 3)
    assert find_tail(part, 3) is not None

    def spoil(_, args, kwargs, out):
        return out if kwargs["past_key_values"] is None else mischief(out)

    lm.blocks[block].register_forward_hook(spoil, with_kwargs=True)
    assert find_tail(part, 3) is None
    assert torch.equal(part.replay(part.hidden), part.output)


@torch.no_grad()
def test_what_is_kept_belongs_to_the_tokens_before_the_tail():
    part = captured(shared("llama"), 1, 3)
    kept = find_tail(part, 3).keep()
    assert [(tuple(k.shape), tuple(v.shape)) for k, v in kept] == [
        ((2, 2, LENGTH - 3, WIDTH // 4),) * 2
    ] * 2
