"""Replies in batches: memory, sharing, legs, drawn replies, and which rows run together."""

import math
from contextlib import contextmanager

import pytest
import torch
from cases import tiny_model
from toys import directions

from melbo import Add, MelboError, Prompts
from melbo.models.decoding import decode as decoding
from melbo.models.decoding.decode import Batching, decode
from melbo.models.edits import EditSequence

#: Rows of a prompt are never worth a pass of their own.
SIDE_BY_SIDE = math.inf


@pytest.fixture(scope="module")
def lm():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def some(lm):
    return Prompts.text(lm, ["Tell me how to bake a cake", "dog", "red or blue ?"])


@pytest.fixture(scope="module")
def asked(some):
    """Ten rows of each prompt."""
    return [prompt for prompt in some.tokens for _ in range(10)]


@pytest.fixture(scope="module")
def edit(lm):
    """Nothing for the first row of a prompt, a direction of its own for each of the others."""
    V = torch.cat([torch.zeros(1, lm.width, dtype=torch.float64), directions(9, lm.width)])
    return Add(1, 4.0 * V.repeat(3, 1))


def reply(lm, asked, edit, max_new_tokens=3, **settings):
    return decode(lm, asked, edit, max_new_tokens, progress=False, **settings)


@contextmanager
def room_for(lm, most):
    """Memory for so many rows at the last block; gives the rows of each pass that gets there."""
    sizes = []

    def limited(block, args):
        sizes.append(len(args[0]))
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with lm.blocks[-1].register_forward_pre_hook(limited):
        yield sizes


def test_memory_running_out_halves_the_batch(lm, asked, edit):
    whole = reply(lm, asked, edit)
    with room_for(lm, 3) as sizes:
        assert reply(lm, asked, edit, batching=Batching(8)) == whole
    assert sizes[:3] == [5, 2, 2]
    assert max(sizes[3:]) == 2
    with room_for(lm, 0), pytest.raises(MelboError, match="out of memory on a single row"):
        reply(lm, asked, edit)


def test_other_failures_are_not_mistaken_for_memory(lm, asked, edit):
    def fail(module, args):
        raise RuntimeError("shape mismatch")

    with (
        lm.model.get_output_embeddings().register_forward_pre_hook(fail),
        pytest.raises(RuntimeError, match="shape mismatch"),
    ):
        reply(lm, asked, edit)


def test_first_logits_are_those_of_the_steered_model(lm, some, asked, edit):
    seen = {}
    reply(lm, asked, edit, batching=Batching(2), first_logits=seen.__setitem__)
    assert sorted(seen) == list(range(30))
    with decoding.editing(lm, Add(1, edit.vectors[3])):
        logits = lm.model(torch.tensor([some.tokens[2]])).logits[0, -1]
    assert torch.allclose(seen[23], logits.float(), atol=1e-4)


def test_a_checkpoints_own_penalties_are_set_aside_and_put_back(lm, asked, edit):
    plain = reply(lm, asked, edit, 6)
    config = lm.model.generation_config
    config.repetition_penalty = 50.0
    try:
        assert reply(lm, asked, edit, 6) == plain
        assert lm.model.generation_config is config
    finally:
        config.repetition_penalty = None


@pytest.mark.parametrize("size", [3, 10, 64])
@pytest.mark.parametrize("leg", [1, 4])
def test_replies_are_the_same_without_sharing_and_in_legs_of_any_length(lm, asked, edit, size, leg):
    alone = Batching(1, leg=100, pass_rows=SIDE_BY_SIDE)  # a single row shares nothing
    assert reply(lm, asked, edit, 9, batching=Batching(size, leg=leg)) == reply(
        lm, asked, edit, 9, batching=alone
    )


def test_finished_rows_make_room(lm, asked, edit, monkeypatch):
    asked, edit = asked[:10], edit.rows(torch.arange(10))
    plain = reply(lm, asked, edit, 12)
    ended = plain[5][2]  # what one row says third ends a reply from now on
    monkeypatch.setattr(type(lm), "eos", property(lambda self: [ended]))
    with room_for(lm, 10) as sizes:
        short = reply(lm, asked, edit, 12, batching=Batching(leg=4))
    for long, cut in zip(plain, short, strict=True):
        end = long.index(ended) + 1 if ended in long else 12
        assert cut == long[:end]
    assert sizes[0] == 10
    assert sizes[-1] < 10


@pytest.mark.parametrize("together", [True, False])
def test_drawn_replies_are_as_likely_as_the_model_says(lm, some, together):
    """Tell whether rows of a prompt read it once, or each by itself."""
    rows, prompt = 4000, some.tokens[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = reply(
            lm,
            [prompt] * rows,
            EditSequence(()),
            2,
            batching=Batching(2 * rows, pass_rows=0 if together else SIDE_BY_SIDE),
            temperature=0.5,
        )
    logits = lm.model(torch.tensor([prompt])).logits[0, -1]
    wanted = (logits / 0.5).softmax(-1)
    seen = torch.bincount(torch.tensor([r[0] for r in found]), minlength=len(wanted)) / rows
    assert (seen - wanted).abs().max() < 5 * (wanted.max() / rows) ** 0.5
    first = max(range(len(wanted)), key=lambda i: wanted[i])
    after = (lm.model(torch.tensor([[*prompt, first]])).logits[0, -1] / 0.5).softmax(-1)
    second = torch.tensor([r[1] for r in found if len(r) == 2 and r[0] == first])
    seen = torch.bincount(second, minlength=len(after)) / len(second)
    assert (seen - after).abs().max() < 5 * (after.max() / len(second)) ** 0.5


def test_next_to_no_temperature_is_greedy(lm, asked):
    plain, drawn = (
        reply(lm, asked, EditSequence(()), 6, temperature=temperature)
        for temperature in (0.0, 1e-6)
    )
    assert plain == drawn


def test_rows_of_a_prompt_get_batches_of_their_own_where_they_are_many_and_the_rest_go_by_length():
    groups, five, ten = decoding._groups, Batching(5), Batching(10)
    prompts = [(1, 2, 3)] * 5 + [(1,), (1, 2), (3,)]
    assert groups(prompts, 0, 1, five) == [[0, 1, 2, 3, 4], [5, 7, 6]]
    assert groups(prompts[5:], 0, 1, five) == [[0, 2, 1]]
    long = [(1,) * 100] * 5 + prompts
    assert groups(long, 0, 8, ten) == [[0, 1, 2, 3, 4], [10, 12, 11, 5, 6, 7, 8, 9]]
    assert groups(long, 96, 8, ten) == [[10, 12, 11, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]]


def test_the_output_matrix_gets_its_input_in_one_piece(lm, asked, edit):
    """A view costs a CPU a copy of the matrix a row (see `LanguageModel.contiguous_head`)."""
    matrix, seen = lm.model.get_output_embeddings(), []
    with matrix.register_forward_hook(lambda _, args, __: seen.append(args[0].is_contiguous())):
        reply(lm, asked, edit, 2)
    assert len(seen) >= 2
    assert all(seen)
    assert not matrix._forward_pre_hooks
